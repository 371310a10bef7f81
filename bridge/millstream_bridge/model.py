"""The bridge's values: route, record, positions, and what a run reports."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, get_args

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


class Piece(NamedTuple):
    """One of the messages that stand for a record which cannot be one; header lines end in CRLF."""

    subject: str
    lines: str
    payload: bytes


class Watermarks(NamedTuple):
    """A partition's first kept offset and the offset the next record will get."""

    low: int
    high: int


Mode = Literal["grouped", "dense"]
OnPoison = Literal["stop", "park", "skip"]
OnGap = Literal["stop", "continue"]
Large = Literal["refuse", "chunks", "object-store"]
Storage = Literal["file", "memory"]

PARTITION_FIELD: Final = "{partition}"
ROUTE_NAME_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule: records of ``topic`` go to ``stream`` under subjects made from ``subject``.

    ``subject`` is a template (see `records.template`), as in ``flights.{partition}.{key}``.

    ``mode``: ``grouped``, one stream for the topic; ``dense``, one for each Kafka partition, whose
    sequences are offset + 1: ``stream`` then holds ``{partition}``. ``shared`` says that others
    publish to these subjects too. ``null_token`` stands for the null key. ``name`` marks what the
    route wrote (header ``Millstream-Origin``); by default the topic's name with dots as dashes.

    ``on_poison``: what becomes of a record that cannot be moved. ``on_gap``: whether to go on where
    retention removed records from Kafka before they were moved. ``large``: how a record goes that
    is over one message. ``tombstone_ttl_s``: how long a record without a value stays in the stream;
    None, as long as any other.

    The rest is the configuration of a stream made for the route: ``replicas``, ``storage``, and the
    limits ``max_age_s``, ``max_bytes``, ``max_msgs_per_subject``, None for no limit.
    """

    topic: str
    stream: str
    subject: str
    mode: Mode = "grouped"
    shared: bool = False
    null_token: str = "%null"
    name: str = ""
    on_poison: OnPoison = "stop"
    on_gap: OnGap = "stop"
    large: Large = "refuse"
    tombstone_ttl_s: int | None = None
    replicas: int = 1
    storage: Storage = "file"
    max_age_s: float | None = None
    max_bytes: int | None = None
    max_msgs_per_subject: int | None = None

    def __post_init__(self) -> None:
        """Refuse what Kafka or NATS would refuse later, and what contradicts itself."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", self.topic):
            raise ConfigurationError(f"{self.topic!r} is no Kafka topic name")
        self._check_choices()
        self._check_stream()
        name = self.name or default_name(self.topic)
        if not re.fullmatch(_ROUTE_NAME, name):
            raise ConfigurationError(f"{name!r} is no route name: {_ROUTE_NAME}")
        object.__setattr__(self, "name", name)
        self._check_limits()
        if self.mode == "dense" and self.large == "chunks":
            raise self._wrong("large", "is not for a dense route: its sequences are offsets")

    def _check_choices(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise self._wrong(name, f"is none of {', '.join(get_args(kind))}")

    def _check_stream(self) -> None:
        marks = self.stream.count(PARTITION_FIELD)
        if not re.fullmatch(_STREAM_NAME, self.stream.replace(PARTITION_FIELD, "0")):
            raise ConfigurationError(f"{self.stream!r} is no stream name")
        if self.mode == "dense" and marks != 1:
            raise self._wrong("stream", f"of a dense route needs {PARTITION_FIELD} once")
        if self.mode == "grouped" and re.search(r"[{}]", self.stream):
            raise self._wrong("stream", "has braces, which only a dense route's has")
        if self.mode == "dense" and self.shared:
            raise self._wrong("shared", "is not for a dense route: its sequences are offsets")

    def _check_limits(self) -> None:
        for name in ("tombstone_ttl_s", "max_age_s", "max_bytes", "max_msgs_per_subject"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise self._wrong(name, "is not above 0")
        if not 1 <= self.replicas <= _REPLICAS_MAX:
            raise self._wrong("replicas", f"is not between 1 and {_REPLICAS_MAX}")
        if self.mode == "dense":
            return  # its place is written down, and outlives the messages
        if self.max_bytes is not None:
            raise self._wrong("max_bytes", "needs a dense route: it could remove the position")
        if self.shared:
            return  # the checkpoint outlives the messages
        for name in ("tombstone_ttl_s", "max_age_s"):
            if getattr(self, name) is not None:
                raise self._wrong(name, "needs a shared or dense route: the position would expire")

    def _wrong(self, name: str, what: str) -> ConfigurationError:
        value: Any = getattr(self, name)
        return ConfigurationError(f"route of topic {self.topic}: {name} {value!r} {what}")


def default_name(topic: str) -> str:
    """A route's name where none is given."""
    return topic.replace(".", "-")[:ROUTE_NAME_MAX]


_ROUTE_NAME: Final = rf"[A-Za-z0-9_-]{{1,{ROUTE_NAME_MAX}}}"
_STREAM_NAME: Final = r"[^\s.*>/\\\x00-\x1f]{1,255}"
_REPLICAS_MAX: Final = 5
_CHOICES: Final = {
    "mode": Mode,
    "on_poison": OnPoison,
    "on_gap": OnGap,
    "large": Large,
    "storage": Storage,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeReport:
    """What one run did. ``records`` and ``payload_bytes`` count what the server acknowledged to it.

    A record whose acknowledgement was lost with a connection is stored but not counted here:
    ``positions``, read from the stream, is the truth. ``refusals`` counts sessions that ended
    because somebody else wrote, ``foreign_seqs`` has the first hundred stray messages met,
    ``stood_back`` the times a rival bridge was given way to. ``parked`` and ``skipped`` are among
    ``records``, ``missed_offsets`` those that Kafka no longer had and the route goes on without.
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
    parked: int = 0
    skipped: int = 0
    missed_offsets: int = 0

    @property
    def records_per_second(self) -> float:
        """The mean over the whole run, waiting included."""
        return self.records / self.seconds if self.seconds else 0.0


def counted(number: int, what: str) -> str:
    """``1 route``, ``2,000 routes``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
