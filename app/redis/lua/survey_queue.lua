-- See whether a queue is behind.
-- KEYS  1 pending  2 deadlines  3 running  4 queue
-- ARGV  1 grace_ms
-- Answers {time in ms, the oldest batches that nobody runs, each with when it was accepted, the next message, the
-- batch that is longest overdue and that nobody runs}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local unclaimed, overdue = {}, ''
local oldest = redis.call('ZRANGE', KEYS[1], 0, 127, 'WITHSCORES')
for i = 1, #oldest, 2 do
  if redis.call('HEXISTS', KEYS[3], oldest[i]) == 0 then
    unclaimed[#unclaimed + 1] = oldest[i]
    unclaimed[#unclaimed + 1] = oldest[i + 1]
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms - ARGV[1], 'LIMIT', 0, 128)) do
  if overdue == '' and redis.call('HEXISTS', KEYS[3], id) == 0 then overdue = id end
end
return {now_ms, unclaimed, redis.call('LINDEX', KEYS[4], -1) or '', overdue}
