-- See what each key of a page is.
-- KEYS  the keys
-- ARGV  none
-- Answers for each: {type, ms to live, 1 or 0 for head, data and out}.
local rows = {}
for i = 1, #KEYS do
  local kind, row = redis.call('TYPE', KEYS[i]).ok, {}
  if kind == 'hash' then
    for j, name in ipairs({'head', 'data', 'out'}) do row[j] = redis.call('HEXISTS', KEYS[i], name) end
  end
  rows[i] = {kind, redis.call('PTTL', KEYS[i]), row[1] or 0, row[2] or 0, row[3] or 0}
end
return rows
