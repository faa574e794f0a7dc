"""Who may enter, and when: authentication, rate limit, idempotency, wait estimate."""
