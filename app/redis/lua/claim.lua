-- Claim a batch whose message Celery delivered.
-- KEYS  1 batch  2 running
-- ARGV  1 batch_id  2 worker_id
-- Answers what `claim` does.
-- include: even_if_full
-- include: claiming
return claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
