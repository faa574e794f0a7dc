-- Give an idempotency key back, unless its job was accepted.
-- KEYS  1 the key
-- ARGV  1 fence
-- Answers 1 if it was given back, else 0. An accept whose confirmation was lost has written the job id: it stays.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
