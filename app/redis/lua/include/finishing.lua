-- finish(): write a batch's outcome, close it and publish the outcome.
-- KEYS  1 batch  2 pending  3 deadlines  4 backlog  5 running  6 open  7 quarantine
-- ARGV  1 batch_id  2 queue  3 worker_id ('' for a batch that nobody holds)  4 outcome  5 ttl_ms  6 channel
--       7 most jobs in quarantine  8… index and samples of each job to quarantine
-- True if the worker holds the claim and the batch had no outcome. A batch whose record is gone stays in the
-- indexes: forget.lua takes it out together with its jobs in the backlog.
-- include: close
-- include: pieces
local function finish()
  if (redis.call('HGET', KEYS[5], ARGV[1]) or '') ~= ARGV[3] then return false end
  redis.call('HDEL', KEYS[5], ARGV[1])
  if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HSETNX', KEYS[1], 'out', ARGV[4]) == 0 then return false end
  redis.call('HDEL', KEYS[1], 'data', 'by', 'at')
  drop_pieces(KEYS[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  close(ARGV[1], ARGV[2], KEYS[2], KEYS[3], KEYS[4], KEYS[6])
  redis.call('PUBLISH', ARGV[6], ARGV[1] .. ARGV[4])
  if #ARGV > 7 then
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    for i = 8, #ARGV, 2 do
      redis.call('HSET', KEYS[1], 'q:' .. ARGV[i], ARGV[i + 1])
      redis.call('ZADD', KEYS[7], now_ms, ARGV[1] .. '.' .. ARGV[i])
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now_ms - ARGV[5])
    redis.call('ZREMRANGEBYRANK', KEYS[7], 0, -1 - ARGV[7])
    redis.call('PEXPIRE', KEYS[7], ARGV[5])
  end
  return true
end
