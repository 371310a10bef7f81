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
from pathlib import Path
from typing import Any, TypeVar

from millstream_coordinator import GroupError
from millstream_coordinator.operation.process import write_by_rename

from ..errors import ConfigurationError

T = TypeVar("T")

_NEW_OBJECTS = 20_000


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one; logs go to standard error.

    Records come by the ten thousand and are gone soon, none of them in a circle. Looking for
    circles as often as Python does by itself costs a sixth of proving them.
    """
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    logging.basicConfig(
        level=os.environ.get("MILLSTREAM_LOG", "WARNING").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def write_ready(path: Path | None, facts: Mapping[str, object]) -> None:
    """Say in ``path``, if one is wanted, that the process is ready. ConfigurationError."""
    write_report(path, {"pid": os.getpid(), **facts})


def write_report(path: Path | None, report: Mapping[str, object]) -> None:
    """Write a report to ``path``, if one is wanted. ConfigurationError: that cannot be done."""
    if path is None:
        return
    try:
        write_by_rename(path, report)
    except GroupError as error:
        raise ConfigurationError(str(error)) from error
