"""What keeps the two directions of a route apart: the mark on records that came back from NATS.

A message that was published straight to NATS and then written to Kafka by the way back has two
Kafka headers before its own: ``Millstream-Origin: <route>`` and ``Millstream-Source: <stream>
<sequence>``. The route that brought it to Kafka never takes it to NATS again: it is there already,
at the sequence the header says. Other routes move it like any record. A record that Kafka had first
gets no mark: it must come out of the round trip byte for byte as it was, and only goes to another
topic than its own.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..model import KafkaHeader, Record
from .headers import ORIGIN_HEADER, SOURCE_HEADER


class Return(NamedTuple):
    """Where a record that came back from NATS is there."""

    stream: str
    seq: int


def marks(route_name: str, back_from: Return) -> tuple[KafkaHeader, ...]:
    """The two headers that go before a returned message's own."""
    return (
        (ORIGIN_HEADER, route_name.encode("ascii")),
        (SOURCE_HEADER, f"{back_from.stream} {back_from.seq}".encode()),
    )


def returned(headers: Sequence[KafkaHeader], route_name: str) -> Return | None:
    """Where the record came back from by this route, None if it did not."""
    if len(headers) < _MARKS or headers[0][0] != ORIGIN_HEADER:
        return None
    if headers[0][1] != route_name.encode("ascii"):
        return None
    name, value = headers[1]
    match = _RETURN.fullmatch(value or b"") if name == SOURCE_HEADER else None
    if match is None:
        return None
    return Return(match[1].decode("utf-8", "replace"), int(match[2]))


def without_returned(records: Sequence[Record], route_name: str) -> Sequence[Record]:
    """The records that this route is to move: all but those that it brought back itself."""
    return [
        record
        for record in records
        if not record.headers or returned(record.headers, route_name) is None
    ]


_MARKS = 2
_RETURN = re.compile(rb"([^\s]{1,1000}) (\d{1,19})")
