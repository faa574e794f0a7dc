-- Accept a batch that was accepted before and lost: see include/accept.lua for KEYS, ARGV and the answer. Its
-- idempotency keys are its own, whatever they hold.
-- include: even_if_full
-- include: accept
return accept(false)
