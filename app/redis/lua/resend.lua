-- Accept a quarantined job again, as a new job of its own; the samples never leave Redis.
-- KEYS and ARGV as in include/accept.lua, and last:
-- KEYS  the quarantined job's batch
-- ARGV  its index  the new job's id  1 to send again what was sent again before, else 0
-- Answers the id of the job that runs in its place; nil where its samples are gone.
-- include: accept
local old = table.remove(KEYS)
local again, new_id, index = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local given = redis.call('HGET', old, 'r:' .. index)
if given and again == '0' then return given end
ARGV[4] = redis.call('HGET', old, 'q:' .. index)
if not ARGV[4] then return false end
redis.call('HSET', old, 'r:' .. index, new_id)
accept(false)
return new_id
