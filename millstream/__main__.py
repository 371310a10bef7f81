"""The ``millstream`` command: what the console script and ``python -m millstream`` run."""

import sys

from millstream_coordinator.operation.entry import begin


def main() -> None:
    """Run the command line and leave with its exit code."""
    begin()
    from .cli import run  # noqa: PLC0415 - imports come after the beginning

    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
