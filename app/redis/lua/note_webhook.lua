-- Note an attempt to deliver a webhook in its job's record, and list it for the next attempt, or no longer.
-- KEYS  1 batch  2 webhooks
-- ARGV  1 job id  2 field of the state  3 state  4 next attempt, ms, or '' after the last one
-- A delivered webhook stays delivered: an attempt whose lease was over may end later than the one that succeeded.
-- Answers 1 if it was noted, 0 if it was delivered before or its record has expired.
local old = redis.call('HGET', KEYS[1], ARGV[2])
local is_delivered = old and string.find(old, '"status":"delivered"', 1, true)
redis.call('ZREM', KEYS[2], ARGV[1])  -- first, so that the rest is not refused where Redis is full
if is_delivered or redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
