-- Put an open batch into the indexes that lack it.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open
-- ARGV  1 batch_id  2 queue  3 accepted_at_ms  4 last_deadline_ms  5 n_jobs
-- Answers 1 if it is open, else 0.
if redis.call('HEXISTS', KEYS[1], 'data') == 0 or redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 0 end
redis.call('ZADD', KEYS[2], 'NX', ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], 'NX', ARGV[4], ARGV[1])
if redis.call('HEXISTS', KEYS[6], ARGV[1]) == 0 then
  local open = tonumber(ARGV[5])
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(name, 1, 2) == 'c:' then open = open - 1 end
  end
  redis.call('HSET', KEYS[6], ARGV[1], open)
  redis.call('HINCRBY', KEYS[4], ARGV[2], open)
end
return 1
