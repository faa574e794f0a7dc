"""``modelyard train``. The command itself is beside what it does, where ``python -m training`` finds it too."""

from training.command import command

__all__ = ["command"]
