"""What every process shares: settings, names, wire format, job ledger, pool records, errors."""
