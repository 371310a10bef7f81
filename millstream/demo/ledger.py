"""What the workers write down, and how the scene reads it while they do.

Each worker appends to two files of its own in the run's directory, one line with one write(2), so
that a SIGKILL loses nothing that was written and tears no line:

* ``handled-<worker>.ndjson``, a line when the handler is entered (`Call`),
* ``effects-<worker>.ndjson``, a line when it ends, with what became of the effect (`Effect`).

A call without an effect line is one whose worker was killed in the middle, or still runs.

``time`` is nanoseconds of the machine's monotonic clock, which all processes of a machine share, so
that a moment noted by the scene (a kill) and one noted by a worker (a call) can be subtracted.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Self, TypeVar

import msgspec

APPLIED = "applied"
REPEAT = "repeat"
STALE = "stale"
FAILED = "failed"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One handler call. ``key`` is the tail number, None where the row has none."""

    worker: str
    epoch: int
    kafka_partition: int
    offset: int
    key: str | None
    seq: int
    time: int


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How a handler call ended: ``applied``, ``repeat`` or ``stale`` (refused), or ``failed``."""

    worker: str
    epoch: int
    kafka_partition: int
    offset: int
    seq: int
    time: int
    outcome: str


Line = TypeVar("Line", Call, Effect)


class Ledger:
    """A file to append to. ``write`` is one system call."""

    def __init__(self, file: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(file, flags, 0o644)
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, line: Call | Effect) -> None:
        """Append a line; it is with the operating system when this returns."""
        os.write(self._descriptor, self._encoder.encode(line) + b"\n")


class Reader(Generic[Line]):
    """Reads what was appended to all files of one pattern, again and again."""

    def __init__(self, directory: Path, pattern: str, kind: type[Line]) -> None:
        self._directory = directory
        self._pattern = pattern
        self._decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(kind)
        self._positions: dict[Path, int] = {}

    def new(self) -> list[Line]:
        """The whole lines that are new since the last call, file by file."""
        return [self._decoder.decode(line) for line in self._new_lines()]

    def _new_lines(self) -> Iterator[bytes]:
        for file in sorted(self._directory.glob(self._pattern)):
            position = self._positions.get(file, 0)
            with file.open("rb") as opened:
                opened.seek(position)
                data = opened.read()
            whole = data.rfind(b"\n") + 1
            self._positions[file] = position + whole
            yield from data[:whole].splitlines()


def calls(directory: Path) -> Reader[Call]:
    """A reader of all workers' handler calls."""
    return Reader(directory, "handled-*.ndjson", Call)


def effects(directory: Path) -> Reader[Effect]:
    """A reader of all workers' effects."""
    return Reader(directory, "effects-*.ndjson", Effect)
