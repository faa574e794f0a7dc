-- Drop a batch without a record from the indexes.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open
-- ARGV  1 batch_id  2 queue
-- Answers 1 if it had no record, else 0.
-- include: close
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
close(ARGV[1], ARGV[2], KEYS[2], KEYS[3], KEYS[4], KEYS[6])
return 1
