-- Take the next batch off the queue, or find the one that was taken before.
-- KEYS  1 running  2 queue
-- ARGV  1 worker_id
-- Answers what `take` does.
-- include: even_if_full
-- include: taking
return unless_damaged(taken_before, KEYS[1], ARGV[1]) or unless_damaged(take, KEYS[1], KEYS[2], ARGV[1])
