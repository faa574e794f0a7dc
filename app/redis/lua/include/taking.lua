-- take(running, queue, worker_id): claim the batch whose message is next on the queue, and take the message off.
-- Any other message is left where it is, for Celery's consumer to judge.
-- taken_before(running, worker_id): what the worker holds although it has no running batch, because the answer of
-- the script that took it was lost.
-- Both answer what `claim` does and, last, the batch's id; false where there is nothing.
-- unless_damaged(get, …): false where a damaged record makes `get` fail. Its message stays, for claim.lua to tell.
-- include: claiming
local RECORD, BATCH_ID_LENGTH = 'modelyard:batch:', 32
local function take(running, queue, worker_id)
  local message = redis.call('LINDEX', queue, -1)
  local batch_id = message and string.match(message, '"correlation_id": "([%w_-]+)"')
  if not batch_id or #batch_id ~= BATCH_ID_LENGTH then return false end
  local answer = claim(RECORD .. batch_id, running, batch_id, worker_id)
  if not answer then return false end
  redis.call('RPOP', queue)
  answer[#answer + 1] = batch_id
  return answer
end
local function taken_before(running, worker_id)
  local entries = redis.call('HGETALL', running)
  for i = 1, #entries, 2 do
    local record = RECORD .. entries[i]
    if entries[i + 1] == worker_id and redis.call('HEXISTS', record, 'data') == 1 then
      local answer = fields_of(record)
      answer[#answer + 1] = entries[i]
      return answer
    end
  end
  return false
end
local function unless_damaged(get, ...)
  local is_whole, answer = pcall(get, ...)
  return is_whole and answer
end
