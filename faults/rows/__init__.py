"""The rows of the table, by what they are done to. Importing this registers them all."""

from faults.rows import controllers, deploys, overload, redis, shipped, soak, surroundings, workers

__all__ = ["controllers", "deploys", "overload", "redis", "shipped", "soak", "surroundings", "workers"]
