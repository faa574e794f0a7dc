-- Send a batch again: see include/requeuing.lua for KEYS, ARGV and the answer.
-- include: requeuing
return requeue()
