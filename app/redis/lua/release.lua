-- Let go of a batch without an outcome.
-- KEYS  1 batch  2 running
-- ARGV  1 batch_id  2 worker_id
-- Answers 1 if the worker held it, else 0.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'by')
return 1
