"""The job ledger: records, ids, commands, and what controllers and workers do with them."""
