"""What Ctrl-C does to the command: it ends it at once, or raises in the subcommand that runs."""

import os
import signal

INTERRUPTED = 130


def end_on_interrupt() -> None:
    """From now on Ctrl-C ends the process at once: an import can print, change or swallow a KeyboardInterrupt."""
    _replace(signal.default_int_handler, _end)


def raise_on_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    _replace(_end, signal.default_int_handler)


def _end(signum: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def _replace(old: object, new: object) -> None:
    # A process in the background ignores the signal, and goes on so.
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)  # type: ignore[arg-type]
