"""What a command that runs for long owes its surroundings: ends when told, says when ready.

* SIGTERM ends it with exit code 0, SIGINT with 130, both after a clean stop.
* With ``--end-with-stdin`` the end of its standard input ends it: a child whose parent is gone,
  however that went, does not stay behind.
* ``--ready-file`` is written by rename when it is ready: who sees the file sees all of it.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import GroupError

DONE = 0
CHECK_FAILED = 1
USAGE_ERROR = 2
UNREACHABLE = 3
INTERRUPTED = 130


class Stopper:
    """Why and when a process ends. ``stopping`` is set by whatever comes first."""

    def __init__(self, *, end_with_stdin: bool = False) -> None:
        """Listen from now on; must be made on the loop."""
        self.stopping = asyncio.Event()
        self.code = DONE
        loop = asyncio.get_running_loop()
        _on_signal(loop, signal.SIGTERM, lambda: self.stop(DONE))
        _on_signal(loop, signal.SIGINT, lambda: self.stop(INTERRUPTED))
        if end_with_stdin:
            _on_end_of_stdin(lambda: loop.call_soon_threadsafe(self.stop, DONE))

    def stop(self, code: int) -> None:
        """End with this exit code; the last one told counts."""
        self.code = code
        self.stopping.set()


def write_ready(path: Path | None, facts: Mapping[str, object]) -> None:
    """Say in ``path``, if one is wanted, that the process is ready. GroupError if that fails."""
    if path is None:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps({"pid": os.getpid(), **facts}) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise GroupError(f"cannot write {path}: {error.strerror or error}") from error


def say(line: str) -> None:
    """Print a line of a long run; if its reader is gone the run goes on in silence."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _on_signal(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, action: Callable[[], None]
) -> None:
    try:
        loop.add_signal_handler(number, action)
    except NotImplementedError:  # Windows has no loop signal handlers
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(action))


def _on_end_of_stdin(action: Callable[[], object]) -> None:
    """Call ``action``, on a thread of its own, when standard input ends: our parent is gone."""

    def wait() -> None:
        # Not sys.stdin: an interpreter that ends while a thread holds its lock aborts.
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop is closed: we are at our end anyway
            action()

    threading.Thread(target=wait, name="end of stdin", daemon=True).start()
