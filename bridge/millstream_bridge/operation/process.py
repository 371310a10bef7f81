"""What a command owes its surroundings: a loop to run on, files written whole, an end when told."""

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigurationError

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one; logs go to standard error."""
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


def write_ready(path: Path | None, facts: dict[str, Any]) -> None:
    """Say in ``path``, if one is wanted, that the process is ready."""
    if path is not None:
        write_by_rename(path, {"pid": os.getpid(), **facts})


def write_report(path: Path | None, summary: dict[str, Any]) -> None:
    """Write a report to ``path``, if one is wanted."""
    if path is not None:
        write_by_rename(path, summary)


def write_by_rename(path: Path, content: dict[str, Any]) -> None:
    """A reader sees the whole file or none. ConfigurationError: it cannot be written."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
        Path(name).replace(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error


def call_at_end_of_stdin(call: Callable[[], object]) -> None:
    """A parent that is gone, however it went, closes the pipe that is our standard input."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):
            call()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
