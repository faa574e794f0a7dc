-- close(batch_id, queue, pending, deadlines, backlog, open): take what is open of a batch out of the indexes and
-- the backlog. Counts as 0 where every job was cancelled: negating nil would give '-0'.
local function close(batch_id, queue, pending, deadlines, backlog, open)
  redis.call('HINCRBY', backlog, queue, 0 - (redis.call('HGET', open, batch_id) or 0))
  redis.call('HDEL', open, batch_id)
  redis.call('ZREM', pending, batch_id)
  redis.call('ZREM', deadlines, batch_id)
end
