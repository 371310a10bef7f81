"""Marks of records that could not be moved: made and read. Pure; see `moving.stand_in`."""

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, cast

from ..model import Piece, Record
from .headers import NOT_HERE, SOURCE_HEADER, SourceHeader
from .mapping import Mapping

POISON_HEADER: Final = "Millstream-Poison"
_REASON_BYTES_MAX = 500

Fate = Literal["parked", "skipped"]


class Mark(NamedTuple):
    """What a mark says: the record it stands for, what became of it and why."""

    source: SourceHeader
    fate: Fate
    reason: str


def mark(mapping: Mapping, record: Record, fate: Fate, reason: str) -> Piece:
    """The message that stands for a record which is not there."""
    source = SourceHeader(
        mapping.route.topic,
        record.kafka_partition,
        record.offset,
        record.timestamp_ms,
        record.timestamp_type,
        NOT_HERE,
    )
    text = re.sub(r"\s+", " ", reason).encode("ascii", "replace")[:_REASON_BYTES_MAX].decode()
    lines = (
        f"{SOURCE_HEADER}: {source.text}\r\n{mapping.origin_line}"
        f"{POISON_HEADER}: {fate} {text.strip()}\r\n"
    )
    subject = f"{mapping.poison_subject(record.kafka_partition)}.{record.offset}"
    return Piece(subject, lines, b"")


def mark_in(headers: Iterable[tuple[str, str]]) -> Mark | None:
    """The mark that a message is, None if it is none; HeaderError: damaged."""
    found = dict(headers)
    fate, _, reason = found.get(POISON_HEADER, "").partition(" ")
    if fate not in ("parked", "skipped"):
        return None
    return Mark(SourceHeader.parse(found.get(SOURCE_HEADER, "")), cast(Fate, fate), reason)
