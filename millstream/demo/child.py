"""How a process of the demo behaves towards the one that started it.

A child says that it is ready by renaming a file into place, and ends when its standard input ends.
The scene holds the only other end of that pipe, so however the scene goes, a SIGKILL included, the
kernel closes it and every child sees the end of file. (A *stopped* child sees nothing; how the
kernel wakes it is told in ``processes.py``.)
"""

import os
import threading
from pathlib import Path

import msgspec


def announce(file: Path, **facts: object) -> None:
    """Write the ready file, whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(msgspec.json.encode({"pid": os.getpid(), **facts}))
    partial.replace(file)


def end_with_standard_input() -> None:
    """End this process at once when standard input ends, whatever else it is doing.

    From a thread of its own: the event loop may be waiting for a server that ended as well. Nothing
    is to be saved, since every line of a ledger is written when it happens.
    """

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="end with standard input", daemon=True).start()
