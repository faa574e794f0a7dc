"""A Celery worker bound to one model version: load, infer, publish its record."""
