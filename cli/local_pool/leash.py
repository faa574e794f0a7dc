"""`python -m cli.local_pool.leash NAME`: runs one service of a pool and stops it when its supervisor dies.

supervisord starts this module in the state directory. A file there contains the command, because supervisord's
configuration cannot represent some characters of a path.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from workers.process.prefork_supervisor import signal_at_parents_death

SERVICES = "services.json"
PID_FILE = "supervisord.pid"
NOT_RUN = 126  # a shell's exit status for a program that it cannot run


def main() -> NoReturn:
    """Replace this process by the service."""
    name = sys.argv[1]
    supervisor = int(Path(PID_FILE).read_text())
    ask_for_signal = signal_at_parents_death(signal.SIGTERM)
    if ask_for_signal:
        ask_for_signal()
    if os.getppid() != supervisor:  # it died before the signal was requested
        sys.exit(f"the supervisor, process {supervisor}, has gone")
    service = json.loads(Path(SERVICES).read_text())[name]
    try:
        os.chdir(service["folder"])
        os.environ.update(service["environment"])
        os.execvp(service["command"][0], service["command"])  # noqa: S606  (a list that we wrote)
    except OSError as error:
        print(f"{error.filename or service['command'][0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_RUN)


if __name__ == "__main__":
    main()
