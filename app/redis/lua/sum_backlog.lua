-- Compare a queue's backlog with the sum of its open jobs.
-- KEYS  1 backlog  2 open
-- ARGV  1 queue  2 most batches that are added up  3 1 to repair the backlog, else 0
-- Answers {backlog, sum} where they differ, {} where they do not, nil where there are too many batches.
if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[2]) then return false end
local sum, count = 0, redis.call('HGET', KEYS[1], ARGV[1])
for _, n in ipairs(redis.call('HVALS', KEYS[2])) do sum = sum + (tonumber(n) or 0) end
if tonumber(count or 0) == sum then return {} end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], ARGV[1], sum) end
return {count or 'none', tostring(sum)}
