"""`python -m cli` is the `modelyard` command, for where no script directory is on PATH."""

from cli.main import main

main()
