"""What a command owes its surroundings: a loop to run on, and files written whole.

When and with which exit code a long command ends is told in the coordinator's ``process``, whose
`Stopper` they share.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Coroutine, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from millstream_coordinator import GroupError
from millstream_coordinator.operation.process import say, write_by_rename

from ..errors import ConfigurationError

T = TypeVar("T")

_NEW_OBJECTS = 20_000
_WAITING = "millstream_bridge.kafka.clients.waiting"
"""By its name: not every command needs a client of Kafka."""


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one; logs go to standard error.

    Records come by the ten thousand and are gone soon, none of them in a circle. Looking for
    circles as often as Python does by itself costs a sixth of proving them.
    """
    with closing(work):
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS)
        logging.basicConfig(
            level=log_level("WARNING"),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        if sys.stderr.isatty():
            logging.getLogger(_WAITING).setLevel(logging.INFO)
        try:
            import uvloop  # noqa: PLC0415 - not on every platform
        except ImportError:
            return asyncio.run(work)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)


def log_level(default: str) -> str:
    """What ``MILLSTREAM_LOG`` says; ConfigurationError: it is no level."""
    level = (os.environ.get("MILLSTREAM_LOG") or default).upper()
    if level not in logging.getLevelNamesMapping():
        known = "DEBUG, INFO, WARNING, ERROR"
        raise ConfigurationError(f"MILLSTREAM_LOG: {level!r} is none of {known}")
    return level


def tell(line: str) -> None:
    """A line for people on standard error; work goes on where nobody reads it or a disk is full."""
    with suppress(OSError):
        say(line, to=sys.stderr)


def write_ready(path: Path | None, facts: Mapping[str, object]) -> None:
    """Say in ``path``, if one is wanted, that the process is ready. ConfigurationError."""
    write_report(path, {"pid": os.getpid(), **facts})


def check_writable(path: Path | None) -> None:
    """ConfigurationError: no file can be written there. Asked before the work it is to tell of."""
    if path is None:
        return
    try:
        is_other = path.exists() and not path.is_file()
        is_room = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    except OSError as error:  # one may not even look, or the name is too long
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    if is_other or not is_room:
        what = "it is no file" if is_other else f"no files can be made in {path.parent}"
        raise ConfigurationError(f"cannot write {path}: {what}")


def write_report(path: Path | None, report: Mapping[str, object]) -> None:
    """Write a report to ``path``, if one is wanted. ConfigurationError: that cannot be done."""
    if path is None:
        return
    try:
        write_by_rename(path, report)
    except GroupError as error:
        raise ConfigurationError(str(error)) from error
