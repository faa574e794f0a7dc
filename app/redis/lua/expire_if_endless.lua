-- Give a key a time to live, unless it has one.
-- KEYS  1 the key
-- ARGV  1 ttl_ms
-- Answers 1 if it was given one, else 0.
if redis.call('PTTL', KEYS[1]) ~= -1 then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
