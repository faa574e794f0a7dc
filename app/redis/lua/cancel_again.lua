-- Write a confirmed cancel again after Redis lost it. A worker that has claimed the batch meanwhile does not know of
-- the cancel, so its claim is taken away; the reconciler sends the batch again.
-- KEYS  1 batch  2 running  3 backlog  4 open
-- ARGV  1 batch_id  2 queue  3 index
-- Answers 'cancelled', 'finished' or 'unknown'.
-- include: even_if_full
if redis.call('HEXISTS', KEYS[1], 'head') == 0 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 'finished' end
if redis.call('HSETNX', KEYS[1], 'c:' .. ARGV[3], 1) == 1 then
  redis.call('HINCRBY', KEYS[4], ARGV[1], -1)
  redis.call('HINCRBY', KEYS[3], ARGV[2], -1)
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], 'by')
end
return 'cancelled'
