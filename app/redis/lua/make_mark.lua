-- Make the next mark of a controller. Two writes, so that Redis logs them as a transaction: one alone it logs as a
-- plain command.
-- KEYS  1 marks
-- ARGV  none
-- Answers count and time of the mark that stands there, of the one that was confirmed, and of the new one.
local before = redis.call('HMGET', KEYS[1], 'count', 'at_ms', 'confirmed_count', 'confirmed_at_ms')
local time = redis.call('TIME')
local at_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'at_ms', at_ms)
return {before[1], before[2], before[3], before[4], redis.call('HINCRBY', KEYS[1], 'count', 1), at_ms}
