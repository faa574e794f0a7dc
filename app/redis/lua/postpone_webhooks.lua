-- Return leased webhooks to the list, unless they became due meanwhile or the lease was over.
-- KEYS  1 webhooks
-- ARGV  1 end of the lease, ms  2… job id and next look, ms, of each
-- Answers 1.
for i = 2, #ARGV, 2 do
  local at_ms = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at_ms and tonumber(at_ms) == tonumber(ARGV[1]) then redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i]) end
end
return 1
