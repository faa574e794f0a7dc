-- Accept a batch whose samples the same transaction has written: see include/accept.lua for KEYS, ARGV and the answer.
-- A full Redis refuses those samples, and with them the whole transaction.
-- include: even_if_full
-- include: accept
return accept(true)
