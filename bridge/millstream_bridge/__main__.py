"""``python -m millstream_bridge``: the bridge's commands without the front door."""

import sys

from millstream_coordinator.operation.entry import begin, begun, guarded


def main() -> None:
    """Run the command line and leave with its exit code."""
    begin()
    # Imports come after the beginning.
    from millstream_coordinator.operation.commands import loaded  # noqa: PLC0415

    from .operation.cli import app  # noqa: PLC0415

    run = loaded(app, sys.argv[1:])
    begun()
    raise SystemExit(guarded("millstream bridge", lambda: run(prog_name="millstream bridge")))


if __name__ == "__main__":
    main()
