-- claim(record, running, batch_id, worker_id): the worker holds the batch from now on. Answers the record's fields
-- and the time, false where there is nothing to run or another worker holds the batch: if that worker is dead, a
-- controller takes the claim away first. False too where the batch was moved to another queue.
-- fields_of(record): names and values, then seconds and microseconds. Samples of LARGE_SAMPLES_BYTES and more, and their
-- pieces, are answered as '': Lua would copy and hash them; the worker reads them by commands of their own.
local LARGE_SAMPLES_BYTES = 16384
local function fields_of(record)
  local answer, time = {}, redis.call('TIME')
  if redis.call('HSTRLEN', record, 'data') < LARGE_SAMPLES_BYTES then
    answer = redis.call('HGETALL', record)
  else
    for _, name in ipairs(redis.call('HKEYS', record)) do
      answer[#answer + 1] = name
      local is_large = name == 'data' or string.sub(name, 1, 2) == 'p:'
      answer[#answer + 1] = is_large and '' or redis.call('HGET', record, name)
    end
  end
  answer[#answer + 1], answer[#answer + 2] = time[1], time[2]
  return answer
end
local function claim(record, running, batch_id, worker_id)
  local owner = redis.call('HGET', running, batch_id)
  if owner and owner ~= worker_id then return false end
  local to = redis.call('HGET', record, 'to')
  if to and to ~= running then return false end
  if redis.call('HEXISTS', record, 'data') == 0
    and (redis.call('EXISTS', record) == 0 or redis.call('HEXISTS', record, 'out') == 1) then return false end
  redis.call('HSET', running, batch_id, worker_id)
  redis.call('HSET', record, 'by', worker_id)
  redis.call('HINCRBY', record, 'attempts', 1)
  local at = redis.call('HGET', record, 'at')
  if at then
    redis.call('HINCRBY', record, 'x:' .. at, 1)
    redis.call('HDEL', record, 'at')
  end
  return fields_of(record)
end
