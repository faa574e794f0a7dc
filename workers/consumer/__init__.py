"""The Celery worker: consumer, transport and remote control."""
