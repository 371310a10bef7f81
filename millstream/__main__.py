"""The ``millstream`` command: what the console script and ``python -m millstream`` run."""

import os
import sys

from .cli import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    _fill_streams()
    raise SystemExit(run(sys.argv[1:]))


def _fill_streams() -> None:
    """Let a standard stream that is closed lead nowhere.

    Who starts daemons may close them. A socket would then get the stream's number, and uvloop
    aborts when it meets one of those.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)  # what it starts has a stream there, too
            setattr(sys, name, os.fdopen(lowest_free, mode))


if __name__ == "__main__":
    main()
