-- Note the outcome of one job of an open batch, whoever holds the batch, unless one was noted before.
-- KEYS  1 batch
-- ARGV  1 index  2 outcome
-- Answers 1 if it was noted, else 0.
-- include: even_if_full
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
return redis.call('HSETNX', KEYS[1], 'o:' .. ARGV[1], ARGV[2])
