"""What the runner needs of its two ends, so that either can be another one or a model.

A source of your own needs no more than `Source`: numbered partitions of records with growing
offsets, which can be read again from any offset that is not stored yet. The stream says where to go
on, so a source remembers nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from .errors import BridgeError
from .model import Positions, Record, Watermarks


class Polled(NamedTuple):
    """What one poll brought. ``ends``: partitions now read to their end, and the offset of it.

    Offsets may have gaps (transactions, compaction), so an end is not known from records alone.
    ``error`` came after the records.
    """

    records: Sequence[Record]
    ends: Mapping[int, int]
    error: BridgeError | None = None


class Source(Protocol):
    """The Kafka side: one topic, read by explicit positions.

    An offset always means the same record, and a record keeps its partition. `known_ends`,
    `partition_count` and `topic_id` may be asked while a poll is under way; nothing else is.
    """

    @property
    def place(self) -> tuple[str, str]:
        """What it is, and where, as errors name it: ``("Kafka", "broker:9092")``."""
        ...

    async def watermarks(self) -> dict[int, Watermarks]:
        """Every partition of the topic; Unreachable, or ConfigurationError for an unknown topic."""
        ...

    async def topic_id(self) -> str | None:
        """Another one if the topic is another under the same name; None: not known. Unreachable."""
        ...

    async def partition_count(self) -> int:
        """How many partitions the topic has now; Unreachable."""
        ...

    async def known_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """The ends of partitions as far as the source knows them without asking."""
        ...

    async def assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        """Read these partitions from these positions on; what was fetched before is dropped."""
        ...

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        """Records in order per partition; the error if one ended it.

        Waits for the first, ``wait_s`` at most, and for no other.
        """
        ...

    async def close(self) -> None:
        """Leave; may be called twice."""
        ...


class Publisher(Protocol):
    """The NATS side: one route, one session at a time. All of it may raise SessionLost."""

    batch_records: int
    """How many records one `send` should get for full speed."""
    foreign_seqs: list[int]
    """The first hundred stray messages that ended a session."""

    async def open(self, marks: Mapping[int, Watermarks], *, known: Positions) -> dict[int, int]:
        """Read the positions of these partitions from the stream and begin a session after them.

        A missing stream is made only where no position of it is ``known``: what was stored once
        must be there. ConfigurationError: it is not, or the stream cannot take the route.
        """
        ...

    def check_same(self, record: Record) -> None:
        """RecordError: the newest stored record of a partition is not this one of its offset.

        ``record`` is the one right before a position that `open` gave. Nothing is raised where that
        is not known.
        """
        ...

    async def send(self, records: Sequence[Record]) -> None:
        """Publish in this order; may return before they are stored.

        RecordError: one cannot be moved; all before it are stored.
        """
        ...

    def check(self) -> None:
        """Raise if the session is over or its answers are overdue."""
        ...

    async def drain(self) -> None:
        """Return when all that was sent is stored."""
        ...

    async def end(self) -> None:
        """Forget the session and what it has not stored; may be called twice."""
        ...

    async def met_rival(self) -> bool | None:
        """After a refusal: whether another bridge of this route ended the session.

        None: nobody wrote; the server refused a record, and did not say so.
        """
        ...

    async def progress_mark(self) -> int:
        """A number that moves whenever any bridge of this route stores something."""
        ...

    @property
    def positions(self) -> Positions:
        """Per partition, one past the last offset known to be stored."""
        ...

    @property
    def stored(self) -> tuple[int, int]:
        """Records and payload bytes acknowledged in all sessions of this publisher."""
        ...

    @property
    def set_aside(self) -> tuple[int, int]:
        """How many of these records were parked, and how many skipped."""
        ...
