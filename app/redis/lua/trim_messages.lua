-- Take messages of batches that are gone off a queue.
-- KEYS  1 queue  2 pending
-- ARGV  id and message of each batch
-- Answers how many were taken off.
local n = 0
for i = 1, #ARGV, 2 do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then n = n + redis.call('LREM', KEYS[1], -1, ARGV[i + 1]) end
end
return n
