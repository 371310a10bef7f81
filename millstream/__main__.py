"""The ``millstream`` command: what the console script and ``python -m millstream`` run."""

import sys

from millstream_coordinator.operation.streams import mend_streams

from .cli import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    mend_streams()
    raise SystemExit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
