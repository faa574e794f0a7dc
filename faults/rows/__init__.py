"""The rows of the table, by what they are done to. Importing this registers them all."""

from faults.rows import workers

__all__ = ["workers"]
