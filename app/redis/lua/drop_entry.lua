-- Take an entry that is no batch's id out of a queue's indexes.
-- KEYS  1 pending  2 deadlines  3 running  4 open
-- ARGV  1 the entry
-- Answers how many indexes held it.
return redis.call('ZREM', KEYS[1], ARGV[1]) + redis.call('ZREM', KEYS[2], ARGV[1])
  + redis.call('HDEL', KEYS[3], ARGV[1]) + redis.call('HDEL', KEYS[4], ARGV[1])
