"""A partitioned topic and the groups on it, as a description says them (``description.py``).

Of three layouts: one stream whose subjects carry the partition's token, a stream per partition, and
a work-queue stream of each group's own, sourced from any other. What that means on a server is in
``layout.py``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from ..model import FailurePolicy, Retention
from .key import KeyRule
from .partition import Partitioner


class Layout(StrEnum):
    """Where a topic's partitions are."""

    TOKEN = "token"
    STREAMS = "streams"
    SOURCED = "sourced"


class WrittenBy(StrEnum):
    """Who writes the partition's token into the subject."""

    SERVER = "server"
    PRODUCERS = "producers"


class Storage(StrEnum):
    """Where a stream's messages are, with the wire's values."""

    FILE = "file"
    MEMORY = "memory"


class Discard(StrEnum):
    """What a full stream does, with the wire's values."""

    OLD = "old"
    NEW = "new"


class Compression(StrEnum):
    """Of the messages in a file, with the wire's values."""

    NONE = "none"
    S2 = "s2"


class StartKind(StrEnum):
    """What a start position is given by."""

    EARLIEST = "earliest"
    LATEST = "latest"
    SEQUENCE = "sequence"
    TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a group begins to read, at its first start; ``sequence`` is the first it reads."""

    kind: StartKind = StartKind.EARLIEST
    sequence: int = 0
    time: datetime | None = None

    @classmethod
    def parse(cls, text: str) -> "Start":
        """Read ``earliest``, ``latest``, ``sequence:N`` or ``time:<RFC 3339>``; or ValueError."""
        kind, _, value = text.partition(":")
        if text in (StartKind.EARLIEST, StartKind.LATEST):
            return cls(kind=StartKind(text))
        if kind == StartKind.SEQUENCE and re.fullmatch(r"[1-9][0-9]{0,18}", value):
            return cls(kind=StartKind.SEQUENCE, sequence=int(value))
        if kind == StartKind.TIME:
            try:
                time = datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is no date and time") from error
            return cls.at(time)
        raise ValueError(
            f"{text!r} is none of 'earliest', 'latest', 'sequence:N', 'time:2026-01-31T00:00:00Z'"
        )

    @classmethod
    def at(cls, time: datetime) -> "Start":
        """Begin with the first message stored at ``time`` or after; ValueError without a zone."""
        if time.tzinfo is None:
            raise ValueError(f"{time.isoformat()!r} has no time zone (write 'Z' for UTC)")
        return cls(kind=StartKind.TIME, time=time.astimezone(UTC))

    def __str__(self) -> str:
        match self.kind:
            case StartKind.SEQUENCE:
                return f"sequence:{self.sequence}"
            case StartKind.TIME:
                assert self.time is not None
                return f"time:{self.rfc3339}"
            case _:
                return str(self.kind)

    @property
    def rfc3339(self) -> str:
        """The time as JetStream's JSON writes it; of `StartKind.TIME` only."""
        assert self.time is not None
        return self.time.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What one stream keeps and where; None is no limit."""

    storage: Storage = Storage.FILE
    replicas: int = 1
    max_age: timedelta | None = None
    max_bytes: int | None = None
    max_messages: int | None = None
    max_message_bytes: int | None = None
    discard: Discard = Discard.OLD
    duplicate_window: timedelta | None = None
    compression: Compression = Compression.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDescription:
    """``[topic.NAME]``. ``rule`` is its ``subject``, None where an origin is only read."""

    name: str
    layout: Layout = Layout.TOKEN
    rule: KeyRule | None = None
    partitions: int = 0
    """The first level; 0 with `Layout.SOURCED`."""
    written_by: WrittenBy = WrittenBy.SERVER
    partitioner: Partitioner = Partitioner.KAFKA
    retention: Retention = Retention.LIMITS
    options: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription:
    """``[group.NAME]``. ``rule`` fits the subjects of the stream that the group itself reads."""

    name: str
    topic: str
    rule: KeyRule
    partitions: int
    """The first level."""
    level: int | None = None
    """With how many partitions it begins, if not with the first level."""
    max_ack_pending: int = 256
    on_failure: FailurePolicy = FailurePolicy.RETRY
    max_attempts: int = 5
    start: Start = field(default_factory=Start)
    options: StreamOptions = field(default_factory=StreamOptions)
    """Of its own streams: work queue, bucket and dead letters."""
    dead_letters: StreamOptions = field(default_factory=StreamOptions)

    @property
    def levels(self) -> tuple[int, ...]:
        """All numbers of partitions it can have without new streams, ascending."""
        return self.rule.levels(self.partitions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One file: topics and groups by name, checked as a whole."""

    file: str
    topics: Mapping[str, TopicDescription]
    groups: Mapping[str, GroupDescription]

    def groups_on(self, topic: str) -> tuple[GroupDescription, ...]:
        """The groups that read a topic."""
        return tuple(group for group in self.groups.values() if group.topic == topic)


def subject_space(topic: TopicDescription) -> Iterable[str]:
    """Patterns of what a topic's streams listen on or store."""
    if topic.rule is None:
        return []
    stored = topic.rule.subject_filter()
    if topic.layout is Layout.TOKEN and topic.written_by is WrittenBy.SERVER:
        return [published_filter(topic.rule), stored]
    return [stored]


def published_filter(rule: KeyRule) -> str:
    """Return what producers publish where the server writes the partitions' tokens."""
    places = {rule.partition_place, *rule.finer.values()}
    tokens = rule.subject_filter().split(".")
    return ".".join(token for place, token in enumerate(tokens) if place not in places)


def stream_names(topic: TopicDescription) -> list[str]:
    """Names of the topic's streams."""
    if topic.layout is Layout.STREAMS:
        return [f"{topic.name}-{partition}" for partition in range(topic.partitions)]
    return [topic.name]


def origin_filter(rule: KeyRule) -> str:
    """Which subjects of the origin the group of a work-queue stream's rule reads."""
    return ".".join(rule.subject_filter().split(".")[work_tokens(rule) :])


def work_tokens(rule: KeyRule) -> int:
    """How many tokens a work-queue stream's rule has before the origin's subject."""
    assert rule.partition_place is not None
    return max(rule.partition_place, *rule.finer.values(), 0) + 1
