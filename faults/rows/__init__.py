"""The rows of the table, by what they are done to. Importing this registers them all."""

from faults.rows import overload, workers

__all__ = ["overload", "workers"]
