-- accept(samples, n_once, is_fenced): write a batch, its index entries, its open jobs and its wake-up message, unless it
-- was accepted before. `samples` is '' where the record holds them already, `n_once` counts the idempotency keys.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 queue  6 open  7… idempotency keys
-- ARGV  1 batch_id  2 queue  3 head  4 samples  5 n_jobs  6 accepted_at_ms
--       7 last_deadline_ms  8 ttl_ms  9 message  10 once_ttl_ms  11… value of each idempotency key from now on
--       … fence of each idempotency key
-- A fence is the value of an idempotency key for as long as the post that reserved it holds it. Where a key has
-- another value or none, its post was refused long ago or another post has the key: the whole batch is refused. So a
-- command that arrives late cannot make a second job of a key.
-- Answers 1 if it was written, 0 if it was accepted before, or the places, from 0, of the keys that are lost.
-- A batch that has its outcome has no use for data that transactions wrote before; nor has one that comes whole, for the
-- pieces that are left of a loss.
-- include: pieces
local function accept(samples, n_once, is_fenced)
  if redis.call('HEXISTS', KEYS[1], 'head') == 1 then
    if redis.call('HEXISTS', KEYS[1], 'out') == 1 then
      redis.call('HDEL', KEYS[1], 'data')
      drop_pieces(KEYS[1])
    end
    return 0
  end
  local lost = {}
  for i = 1, is_fenced and n_once or 0 do
    if redis.call('GET', KEYS[6 + i]) ~= ARGV[10 + n_once + i] then lost[#lost + 1] = i - 1 end
  end
  if #lost > 0 then
    redis.call('DEL', KEYS[1])
    return lost
  end
  redis.call('HSET', KEYS[1], 'head', ARGV[3])
  if samples ~= '' then
    drop_pieces(KEYS[1])
    redis.call('HSET', KEYS[1], 'data', samples)
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
  redis.call('ZADD', KEYS[3], ARGV[7], ARGV[1])
  redis.call('HSET', KEYS[6], ARGV[1], ARGV[5])
  redis.call('HINCRBY', KEYS[4], ARGV[2], ARGV[5])
  redis.call('LPUSH', KEYS[5], ARGV[9])
  for i = 1, n_once do redis.call('SET', KEYS[6 + i], ARGV[10 + i], 'PX', ARGV[10]) end
  return 1
end
