"""A Celery worker bound to one model version: loads it, runs batches and publishes a worker record."""
