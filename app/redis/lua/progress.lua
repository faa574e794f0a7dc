-- Note which job is about to run alone, and the outcome of the one before it.
-- KEYS  1 batch  2 running
-- ARGV  1 batch_id  2 worker_id  3 next index ('' for none)  4 index that is done  5 its outcome (both '' for none)
-- Answers 1 if the worker holds the batch, else 0.
-- include: even_if_full
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'o:' .. ARGV[4], ARGV[5]) end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], 'at') else redis.call('HSET', KEYS[1], 'at', ARGV[3]) end
return 1
