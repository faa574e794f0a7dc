-- requeue(): take the claim from a worker and send the batch again, to the head of the queue: it has waited longest.
-- KEYS  1 batch  2 running  3 queue
-- ARGV  1 batch_id  2 worker_id ('' for nobody)  3 message
-- 1 if the worker held it and it has no outcome, else 0.
local function requeue()
  if (redis.call('HGET', KEYS[2], ARGV[1]) or '') ~= ARGV[2] then return 0 end
  redis.call('HDEL', KEYS[2], ARGV[1])
  if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
  redis.call('HDEL', KEYS[1], 'by')
  redis.call('RPUSH', KEYS[3], ARGV[3])
  return 1
end
