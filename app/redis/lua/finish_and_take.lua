-- Write the outcome of a batch and take the next one: see include/finishing.lua for KEYS and ARGV, and
-- KEYS  8 queue, where the next batch may be taken
-- Answers {1 if the outcome is written, else 0; what `take` does}. Sent again because its answer was lost, it finds
-- its own outcome written.
-- include: taking
-- include: finishing
if finish() then return {1, KEYS[8] and unless_damaged(take, KEYS[5], KEYS[8], ARGV[3])} end
if redis.call('HGET', KEYS[1], 'out') ~= ARGV[4] then return {0} end
return {1, unless_damaged(taken_before, KEYS[5], ARGV[3])}
