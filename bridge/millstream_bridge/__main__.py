"""``python -m millstream_bridge``: the bridge's commands without the front door."""

from .operation.cli import main

if __name__ == "__main__":
    main()
