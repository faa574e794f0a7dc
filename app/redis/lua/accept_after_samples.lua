-- Accept a batch whose samples the same transaction has written: see include/accepting.lua for KEYS, ARGV and the answer.
-- A full Redis refuses those samples, and with them the whole transaction.
-- include: even_if_full
-- include: accepting
return accept(ARGV[4], #KEYS - 6, true)
