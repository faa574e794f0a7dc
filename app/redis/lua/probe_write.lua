-- Change nothing, and be refused where the ledger's scripts would be.
-- KEYS  1 any key of the ledger
-- ARGV  none
-- Answers 0.
return redis.call('HDEL', KEYS[1], '')
