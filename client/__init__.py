"""Python client (sync and async) and the benchmark records."""

from client.http import AsyncClient, Client
from client.jobs import Job, Prediction, Readiness, Replica, WorkerInfo
from client.retries import RetryPolicy

__all__ = ["AsyncClient", "Client", "Job", "Prediction", "Readiness", "Replica", "RetryPolicy", "WorkerInfo"]
