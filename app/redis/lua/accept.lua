-- Accept a batch: see include/accepting.lua for KEYS, ARGV and the answer. Refused where Redis is full.
-- include: accepting
return accept(ARGV[4], #KEYS - 6, true)
