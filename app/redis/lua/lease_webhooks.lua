-- Lease webhooks that are due: until the lease is over, no other controller gets them. What deletes first is not
-- refused where Redis is full.
-- KEYS  1 webhooks
-- ARGV  1 now_ms  2 end of the lease, ms  3 most
-- Answers their job ids, the longest due first.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
if #due > 0 then redis.call('ZREM', KEYS[1], unpack(due)) end
for _, job_id in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], job_id) end
return due
