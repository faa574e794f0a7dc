-- Redis refuses a script at its first write where it is full, and never refuses a deletion (`lua_oom` in 6.2,
-- `scriptVerifyOOM` in 7). A script that ends accepted work deletes first, so that it is never refused.
redis.call('HDEL', KEYS[1], '')
