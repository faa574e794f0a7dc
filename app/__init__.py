"""Code shared by all server processes: settings, contracts, job ledger, Redis, worker records, errors."""
