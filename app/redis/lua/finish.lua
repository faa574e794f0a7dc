-- Write the outcome of a batch: see include/finish.lua for KEYS and ARGV.
-- Answers 1 if it was written, else 0.
-- include: finish
return finish() and 1 or 0
