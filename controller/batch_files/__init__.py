"""`POST /batches`: files whose rows are predicted into other files, each by a process of its own."""
