"""Webhooks: delivers jobs with a `callback_url` when they have ended."""
