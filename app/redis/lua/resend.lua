-- Accept a quarantined job again, as a new job of its own; the samples never leave Redis.
-- KEYS  1 to 6 as in include/accepting.lua  7 the quarantined job's batch
-- ARGV  1 to 10 as in include/accepting.lua, without samples  11 index of the quarantined job  12 the new job's id
--       13 1 to send again what was sent again before, else 0
-- Answers the id of the job that runs in its place; nil where its samples are gone.
-- include: accepting
local given = redis.call('HGET', KEYS[7], 'r:' .. ARGV[11])
if given and ARGV[13] == '0' then return given end
local samples = redis.call('HGET', KEYS[7], 'q:' .. ARGV[11])
if not samples then return false end
redis.call('HSET', KEYS[7], 'r:' .. ARGV[11], ARGV[12])
accept(samples, 0, false)
return ARGV[12]
