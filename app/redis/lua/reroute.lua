-- Move a batch that no worker holds to the queue of another version.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open  7 the other queue  8 its pending
--       9 its deadlines  10 its open  11 its running
-- ARGV  1 batch_id  2 queue  3 head as it was read  4 head from now on  5 message
-- Answers the number of its jobs without an outcome that were moved; 0 if a worker holds it, if it has its outcome, if
-- its last deadline has passed, or if its head is another one.
-- Messages on the old queue are not looked for: `to` has every claim of that queue refused.
if redis.call('HEXISTS', KEYS[5], ARGV[1]) == 1 then return 0 end
if redis.call('HGET', KEYS[1], 'head') ~= ARGV[3] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 or redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
local accepted_at_ms = redis.call('ZSCORE', KEYS[2], ARGV[1])
local deadline_ms = redis.call('ZSCORE', KEYS[3], ARGV[1])
local time = redis.call('TIME')
if not accepted_at_ms or not deadline_ms then return 0 end
if time[1] * 1000 + time[2] / 1000 >= tonumber(deadline_ms) then return 0 end
local open = tonumber(redis.call('HGET', KEYS[6], ARGV[1]) or 0)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('HINCRBY', KEYS[4], ARGV[2], -open)
redis.call('HSET', KEYS[1], 'head', ARGV[4], 'to', KEYS[11])
redis.call('ZADD', KEYS[8], accepted_at_ms, ARGV[1])
redis.call('ZADD', KEYS[9], deadline_ms, ARGV[1])
redis.call('HSET', KEYS[10], ARGV[1], open)
redis.call('HINCRBY', KEYS[4], KEYS[7], open)
redis.call('LPUSH', KEYS[7], ARGV[5])
return open
