-- Cancel a job that no worker has claimed.
-- KEYS  1 batch  2 running  3 backlog  4 open
-- ARGV  1 batch_id  2 queue  3 index  4 deadline_ms
-- Answers 'cancelled', or why not: 'unknown', 'finished', 'running', 'expired', or 'moved' to another queue.
-- include: even_if_full
if redis.call('HEXISTS', KEYS[1], 'head') == 0 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 'finished' end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 'running' end
local to = redis.call('HGET', KEYS[1], 'to')
if to and to ~= KEYS[2] then return 'moved' end
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 >= tonumber(ARGV[4]) then return 'expired' end
if redis.call('HSETNX', KEYS[1], 'c:' .. ARGV[3], 1) == 1 then
  redis.call('HINCRBY', KEYS[4], ARGV[1], -1)
  redis.call('HINCRBY', KEYS[3], ARGV[2], -1)
end
return 'cancelled'
