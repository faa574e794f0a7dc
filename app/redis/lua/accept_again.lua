-- Accept a batch that was accepted before and lost: see include/accepting.lua for KEYS, ARGV and the answer. Its
-- idempotency keys are its own, whatever they hold.
-- include: even_if_full
-- include: accepting
return accept(ARGV[4], #KEYS - 6, false)
