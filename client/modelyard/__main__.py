"""The `modelyard` command, also as `python -m modelyard`."""

import sys


def main() -> None:
    """Run the command, or name the package that it lacks; Ctrl-C ends it quietly, also while it is imported."""
    try:
        from modelyard.commands.interrupts import end_on_interrupt

        end_on_interrupt()
        from modelyard.commands.main import run

        run()
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("modelyard: the command needs click: pip install 'modelyard-client[commands]'")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
