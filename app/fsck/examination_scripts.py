"""The scripts by which `app.fsck.examination` sees what belongs together at one moment; only the last may change it."""

from __future__ import annotations

# KEYS of a page. Answers for each: type, ms to live, and whether it holds head, data and out.
SURVEY = """
local rows = {}
for i = 1, #KEYS do
  local kind, row = redis.call('TYPE', KEYS[i]).ok, {}
  if kind == 'hash' then
    for j, name in ipairs({'head', 'data', 'out'}) do row[j] = redis.call('HEXISTS', KEYS[i], name) end
  end
  rows[i] = {kind, redis.call('PTTL', KEYS[i]), row[1] or 0, row[2] or 0, row[3] or 0}
end
return rows
"""

# KEYS pending deadlines running open, records of a page; ARGV their batches. Answers for each: type, whether it holds
# head, data and out, whether it stands in pending and in deadlines, owner, open jobs.
LOOK = """
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
"""

# KEYS pending deadlines running queue; ARGV grace_ms. Answers: time in ms, oldest batches that nobody runs with when
# they were accepted, the message that is next, the batch that is longest overdue and that nobody runs.
QUEUE = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local unclaimed, overdue = {}, ''
local oldest = redis.call('ZRANGE', KEYS[1], 0, 127, 'WITHSCORES')
for i = 1, #oldest, 2 do
  if redis.call('HEXISTS', KEYS[3], oldest[i]) == 0 then
    unclaimed[#unclaimed + 1] = oldest[i]
    unclaimed[#unclaimed + 1] = oldest[i + 1]
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms - ARGV[1], 'LIMIT', 0, 128)) do
  if overdue == '' and redis.call('HEXISTS', KEYS[3], id) == 0 then overdue = id end
end
return {now_ms, unclaimed, redis.call('LINDEX', KEYS[4], -1) or '', overdue}
"""

# KEYS backlog open; ARGV queue most mend. Answers the count and the sum where they differ; with mend, sets the count.
BACKLOG_SUM = """
if redis.call('HLEN', KEYS[2]) > tonumber(ARGV[2]) then return false end
local sum, count = 0, redis.call('HGET', KEYS[1], ARGV[1])
for _, n in ipairs(redis.call('HVALS', KEYS[2])) do sum = sum + (tonumber(n) or 0) end
if tonumber(count or 0) == sum then return {} end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], ARGV[1], sum) end
return {count or 'none', tostring(sum)}
"""
