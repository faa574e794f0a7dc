-- Put a readable head and an outcome in place of a record that cannot be read. Nobody is told: the caller's controller
-- stood in the head; controllers look after what they have not heard of.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open
-- ARGV  1 batch_id  2 queue  3 worker_id  4 head  5 outcome  6 ttl_ms
-- Answers 1 if it was open and no other worker held it, else 0.
-- include: close
local owner = redis.call('HGET', KEYS[5], ARGV[1])
if owner and owner ~= ARGV[3] then return 0 end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or kind == 'hash' and redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'head', ARGV[4], 'out', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('HDEL', KEYS[5], ARGV[1])
close(ARGV[1], ARGV[2], KEYS[2], KEYS[3], KEYS[4], KEYS[6])
return 1
