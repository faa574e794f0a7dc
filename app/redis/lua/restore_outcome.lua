-- Write an announced outcome, and its batch's record, again after Redis lost it. A worker that runs the batch again
-- loses its claim: the announced outcome is the one. Nobody is told anew.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open  7… idempotency keys
-- ARGV  1 batch_id  2 queue  3 head  4 outcome  5 ttl_ms  6… values of the idempotency keys
-- Answers 1 if it was lost, else 0.
-- include: even_if_full
-- include: close
-- include: pieces
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[1], 'data', 'by', 'at')
drop_pieces(KEYS[1])
redis.call('HSET', KEYS[1], 'head', ARGV[3], 'out', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
close(ARGV[1], ARGV[2], KEYS[2], KEYS[3], KEYS[4], KEYS[6])
for i = 7, #KEYS do redis.call('SET', KEYS[i], ARGV[i - 1], 'PX', ARGV[5]) end
return 1
