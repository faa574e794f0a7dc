"""`python -m cli` is the `modelyard` command, for where no script directory is on PATH."""

from modelyard.__main__ import main

main()
