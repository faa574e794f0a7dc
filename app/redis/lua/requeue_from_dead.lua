-- Send a batch again if the worker that claimed it is dead: see include/requeuing.lua, and
-- KEYS  4 the worker's record
-- Answers what `requeue` does.
-- include: requeuing
if redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
return requeue()
