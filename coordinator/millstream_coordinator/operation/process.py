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
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ..errors import GroupError

T = TypeVar("T")

DONE = 0
CHECK_FAILED = 1
USAGE_ERROR = 2
UNREACHABLE = 3
INTERRUPTED = 130

_CANCEL_AGAIN_S = 0.05


class Stopper:
    """Why and when a process ends. ``stopping`` is set by whatever comes first."""

    def __init__(
        self, on_stop: Callable[[], object] | None = None, *, end_with_stdin: bool = False
    ) -> None:
        """Listen from now on; must be made on the loop. ``on_stop`` is called once."""
        self.stopping = asyncio.Event()
        self.code = DONE
        self._on_stop = on_stop
        loop = asyncio.get_running_loop()
        _on_signal(loop, signal.SIGTERM, lambda: self.stop(DONE))
        _on_signal(loop, signal.SIGINT, lambda: self.stop(INTERRUPTED))
        if end_with_stdin:
            _on_end_of_stdin(lambda: loop.call_soon_threadsafe(self.stop, DONE))

    def stop(self, code: int) -> None:
        """End with this exit code; the first one told counts."""
        if self.stopping.is_set():
            return
        self.code = code
        self.stopping.set()
        if self._on_stop is not None:
            self._on_stop()


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; None if ``stopping`` is set before: then it was cancelled.

    For what waits for a server, which may never answer. Raises what ``work`` raises.
    """
    working = asyncio.create_task(work, name="work")
    told = asyncio.create_task(stopping.wait(), name="wait for the end")
    try:
        await asyncio.wait([working, told], return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        while not working.done():
            # More than once: wait_for of Python 3.11, which the client uses, drops a
            # cancellation that comes at the same moment as its result.
            working.cancel()
            await asyncio.wait([working], timeout=_CANCEL_AGAIN_S)
    return None if working.cancelled() else working.result()


def write_ready(path: Path | None, facts: Mapping[str, object]) -> None:
    """Say in ``path``, if one is wanted, that the process is ready. GroupError if that fails."""
    if path is not None:
        write_by_rename(path, {"pid": os.getpid(), **facts})


def write_by_rename(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON document; a reader sees all of it or none. GroupError if that fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(document) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise GroupError(f"cannot write {path}: {error.strerror or error}") from error


def say(line: str, *, to: TextIO | None = None) -> bool:
    """Print a line of a long run; False when its reader is gone.

    A run that does something goes on then, in silence; one that only tells has come to its end.
    ``to``: standard output or error, by default the former.
    """
    stream = to or sys.stdout
    try:
        stream.write(line + "\n")
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


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
