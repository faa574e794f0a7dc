"""The rows of the table, one module per faulty part. Importing this package registers all rows."""

from faults.rows import (
    controllers,
    deploys,
    overload,
    redis,
    redis_failover,
    shipped,
    soak,
    surroundings,
    workers,
)

__all__ = [
    "controllers",
    "deploys",
    "overload",
    "redis",
    "redis_failover",
    "shipped",
    "soak",
    "surroundings",
    "workers",
]
