"""The `modelyard` command, also as `python -m modelyard`."""

import sys


def main() -> None:
    """Run the command, or name the package that it lacks."""
    try:
        from modelyard.commands.main import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("modelyard: the command needs click: pip install 'modelyard-client[commands]'")
    run()


if __name__ == "__main__":
    main()
