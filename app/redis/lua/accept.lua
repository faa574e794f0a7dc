-- Accept a batch: see include/accept.lua for KEYS, ARGV and the answer. Refused where Redis is full.
-- include: accept
return accept(true)
