"""`modelyard train`. The command is defined in `training.command`, which `python -m training` uses as well."""

from training.command import command

__all__ = ["command"]
