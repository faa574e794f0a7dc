-- Publish a worker's record, unless another worker of its queue serves another model. The others are looked at only
-- where this record was not there: at the start, and after Redis or the worker was away.
-- KEYS  1 record  2 workers  3 numbers
-- ARGV  1 record  2 ttl_ms  3 worker_id  4 queue  5 channel ('' where nothing changed)  6 run_id  7 model_id
--       8 prefix of the keys of records  9 queue as JSON
-- Answers {seconds, microseconds, the queue's worker number or nil, the record of a worker that serves another model}.
-- What deletes first is not refused where Redis is full.
local function differs(text)
  if not text or not string.find(text, ARGV[9], 1, true) then return false end
  local is_json, other = pcall(cjson.decode, text)
  if not is_json or type(other) ~= 'table' or other.queue ~= ARGV[4] then return false end
  if other.run_id ~= ARGV[6] then return true end
  return type(other.model_id) == 'string' and other.model_id ~= ARGV[7]
end
local time = redis.call('TIME')
local number = redis.call('HGET', KEYS[3], ARGV[4])
if redis.call('DEL', KEYS[1]) == 0 then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local other = redis.call('GET', ARGV[8] .. id)
    if differs(other) then return {time[1], time[2], number, other} end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.3f', time[1] * 1000 + time[2] / 1000), ARGV[3])
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[5], ARGV[3]) end
return {time[1], time[2], number}
