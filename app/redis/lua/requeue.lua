-- Send a batch again: see include/requeue.lua for KEYS, ARGV and the answer.
-- include: requeue
return requeue()
