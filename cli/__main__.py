"""`python -m cli` is the `modelyard` command, for where no script directory is on PATH."""

import sys

try:
    from modelyard.__main__ import main

    main()
except KeyboardInterrupt:  # while the package is imported
    sys.exit(130)
