"""The bridge's values: route, record, positions, and what a run and a proof report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from .errors import ConfigurationError

Positions = Mapping[int, int]
"""Kafka partition to the next offset to be read; a partition that is not there starts at its low
watermark."""

KafkaHeader = tuple[str, bytes | None]


class TimestampType(StrEnum):
    """Who set a record's timestamp; the values are those of the ``Millstream-Source`` header."""

    CREATE = "c"
    LOG_APPEND = "l"


class Record(NamedTuple):
    """One Kafka record. ``timestamp_ms`` is -1 where the record has none; None is Kafka's null.

    A named tuple because a backfill makes a hundred thousand of them a second: three times as
    cheap to make as a frozen dataclass.
    """

    kafka_partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: TimestampType
    key: bytes | None
    value: bytes | None
    headers: tuple[KafkaHeader, ...] = ()


class Watermarks(NamedTuple):
    """A partition's first kept offset and the offset the next record will get."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule: records of ``topic`` go to ``stream`` under subjects made from ``subject``.

    ``subject`` is a template of whole tokens, ``{topic}``, ``{partition}``, ``{key}`` and literal
    ones, as in ``flights.{partition}.{key}``. ``shared`` says that others publish to these subjects
    too. ``null_token`` stands for the null key. ``name`` marks what the route wrote (header
    ``Millstream-Origin``); by default the topic's name with dots as dashes.
    """

    topic: str
    stream: str
    subject: str
    shared: bool = False
    null_token: str = "%null"
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse names that Kafka or NATS would refuse later, in the middle of work."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", self.topic):
            raise ConfigurationError(f"{self.topic!r} is no Kafka topic name")
        if not re.fullmatch(r"[^\s.*>/\\\x00-\x1f]{1,255}", self.stream):
            raise ConfigurationError(f"{self.stream!r} is no stream name")
        name = self.name or self.topic.replace(".", "-")[:64]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ConfigurationError(f"{name!r} is no route name: [A-Za-z0-9_-]{{1,64}}")
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeReport:
    """What one run did. ``records`` and ``payload_bytes`` count what the server acknowledged to it.

    A record whose acknowledgement was lost with a connection is stored but not counted here:
    ``positions``, read from the stream, is the truth. ``refusals`` counts sessions ended because
    somebody else wrote, ``foreign_seqs`` the first hundred stray messages met, ``stood_back`` the
    times a rival bridge was given way to.
    """

    topic: str
    stream: str
    ended: str
    records: int
    payload_bytes: int
    seconds: float
    sessions: int
    refusals: int
    stood_back: int
    foreign_seqs: tuple[int, ...]
    positions: Mapping[int, int]

    @property
    def records_per_second(self) -> float:
        """The mean over the whole run, waiting included."""
        return self.records / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a partition: how many records, their first and last offset, and their hash."""

    count: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where the two sides first part, in the order of a partition's records."""

    kafka_partition: int
    offset: int
    seq: int | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionProof:
    """Both sides of one partition, up to the high watermark noted when the check began."""

    kafka: Side
    nats: Side
    difference: Difference | None = None

    @property
    def is_equal(self) -> bool:
        """Same records in the same order on both sides."""
        return self.difference is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What `verify` found.

    ``foreign`` counts messages of the route's subjects without a source, ``older`` stored records
    that Kafka no longer has, which nothing can be compared with.
    """

    topic: str
    stream: str
    partitions: Mapping[int, PartitionProof] = field(default_factory=dict)
    foreign: int = 0
    older: int = 0
    seconds: float = 0.0

    @property
    def difference(self) -> Difference | None:
        """The first difference of the lowest partition that has one."""
        return next(
            (p.difference for _, p in sorted(self.partitions.items()) if p.difference), None
        )

    @property
    def equal(self) -> bool:
        """No partition differs."""
        return self.difference is None

    @property
    def records(self) -> int:
        """Records on the Kafka side."""
        return sum(partition.kafka.count for partition in self.partitions.values())
