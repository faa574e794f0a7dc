-- Give a queue its worker number: the one asked for, its own, or the next free one.
-- KEYS  1 numbers
-- ARGV  1 queue  2 number asked for (0 for any)
-- Answers {number}, or {-1, the queue that has the number asked for}.
-- include: even_if_full
local own = redis.call('HGET', KEYS[1], ARGV[1])
local asked = tonumber(ARGV[2])
if own and (asked == 0 or tonumber(own) == asked) then return {tonumber(own)} end
local taken = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do taken[tonumber(all[i + 1])] = all[i] end
if asked == 0 then
  asked = 1
  while taken[asked] do asked = asked + 1 end
elseif taken[asked] then
  return {-1, taken[asked]}
end
redis.call('HSET', KEYS[1], ARGV[1], asked)
return {asked}
