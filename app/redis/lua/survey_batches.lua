-- See how the batches of a page stand in the indexes of their queue.
-- KEYS  1 pending  2 deadlines  3 running  4 open  5… records
-- ARGV  their batch ids
-- Answers for each: {type, 1 or 0 for head, data, out, pending and deadlines, owner, open jobs}.
local rows = {}
for i = 5, #KEYS do
  local id, kind, row = ARGV[i - 4], redis.call('TYPE', KEYS[i]).ok, {}
  if kind == 'hash' then
    for j, name in ipairs({'head', 'data', 'out'}) do row[j] = redis.call('HEXISTS', KEYS[i], name) end
  end
  rows[i - 4] = {
    kind, row[1] or 0, row[2] or 0, row[3] or 0,
    redis.call('ZSCORE', KEYS[1], id) and 1 or 0, redis.call('ZSCORE', KEYS[2], id) and 1 or 0,
    redis.call('HGET', KEYS[3], id) or '', redis.call('HGET', KEYS[4], id) or '',
  }
end
return rows
