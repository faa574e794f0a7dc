"""Admission control: authentication, rate limit, idempotency, wait estimate."""
