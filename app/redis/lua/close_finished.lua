-- Take a batch that has its outcome out of the indexes.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open
-- ARGV  1 batch_id  2 queue
-- Answers 1 if it has its outcome, else 0.
-- include: close
if redis.call('HEXISTS', KEYS[1], 'out') == 0 then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
close(ARGV[1], ARGV[2], KEYS[2], KEYS[3], KEYS[4], KEYS[6])
return 1
