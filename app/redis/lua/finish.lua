-- Write the outcome of a batch: see include/finishing.lua for KEYS and ARGV.
-- Answers 1 if it was written, else 0.
-- include: finishing
return finish() and 1 or 0
