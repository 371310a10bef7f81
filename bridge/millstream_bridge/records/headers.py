"""Kafka headers on the NATS wire and back, without loss; and the headers the bridge adds.

Kafka headers are an ordered list of (text name, any bytes or null), names may repeat. A NATS header
block is lines of ``Name: value`` in which clients disagree about everything but plain text. So:

* A header goes as it is (**one to one**) when its name is an HTTP token that occurs once in the
  record, whatever the case, and is not one the server, the clients or the bridge give a meaning;
  and its value is printable ASCII without a space at either end, because readers trim.
* All others are **packed**: a MessagePack array of ``[place, name, value or nil]``, base64, in one
  header ``Millstream-Headers``. ``place`` is the header's index in the Kafka list, so that reading
  both kinds back gives the list as it was.

``Millstream-Source: <topic> <kafka_partition> <offset> <timestamp_ms> <c|l> [flags]`` says where a
message comes from. It is the bridge's checkpoint too: the newest one of a partition in the stream
is that partition's position. Flags: ``n`` null value, ``k`` null key, ``h`` packed headers, ``x``
the record is not here (it was parked or skipped), ``r`` it was replayed and is not in its place.
A dead letter that was published again is not in its place either, and says so in a header of the
coordinator's (`is_letter`).

Names reserved beside the prefixes ``Nats-`` and ``Millstream-``: ``Status`` and ``Description``,
which clients (nats-py 2.16) read as the server's own status line.
"""

import base64
import binascii
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from millstream_coordinator.naming import REPLAY

from ..model import KafkaHeader, TimestampType

SOURCE_HEADER: Final = "Millstream-Source"
ORIGIN_HEADER: Final = "Millstream-Origin"
PACKED_HEADER: Final = "Millstream-Headers"
LARGE_HEADER: Final = "Millstream-Large"

NULL_VALUE: Final = "n"
NULL_KEY: Final = "k"
PACKED: Final = "h"
NOT_HERE: Final = "x"
REPLAYED: Final = "r"

HEADER_BLOCK_BYTES_MAX: Final = 65_535
"""A stream takes no message with a longer header block (error 10097)."""

_PLAIN_NAME = re.compile(
    r"(?!(?i:nats-|millstream-|status$|description$))[A-Za-z0-9!#$%&'*+.^_`|~-]+"
)
_PLAIN_VALUE = re.compile(rb"[!-~]([ -~]*[!-~])?")

NatsHeaders = Sequence[tuple[str, str]]
"""Header lines in the order of the block."""


class HeaderError(ValueError):
    """A header the bridge is to read does not have the form it writes."""


class SourceHeader(NamedTuple):
    """Where a message comes from."""

    topic: str
    kafka_partition: int
    offset: int
    timestamp_ms: int
    timestamp_type: TimestampType
    flags: str = ""

    @property
    def text(self) -> str:
        """The header's value."""
        flags = f" {self.flags}" if self.flags else ""
        return (
            f"{self.topic} {self.kafka_partition} {self.offset}"
            f" {self.timestamp_ms} {self.timestamp_type}{flags}"
        )

    @classmethod
    def parse(cls, text: str) -> "SourceHeader":
        """Read a header's value; HeaderError if it is not of the form above."""
        match = _SOURCE.fullmatch(text)
        if match is None:
            raise HeaderError(f"{text!r} is no {SOURCE_HEADER}")
        topic, partition, offset, timestamp, kind, flags = match.groups()
        return cls(
            topic, int(partition), int(offset), int(timestamp), TimestampType(kind), flags or ""
        )


_SOURCE = re.compile(
    r"([A-Za-z0-9._-]{1,249}) (\d{1,10}) (\d{1,19}) (-?\d{1,19}) ([cl])(?: ([nkhrx]{1,5}))?",
    re.ASCII,
)


def pack(headers: Sequence[KafkaHeader]) -> tuple[list[tuple[str, str]], str | None]:
    """Split a record's headers into lines that go one to one and the packed rest, None if empty."""
    if _are_plain(tuple([name for name, _ in headers])):
        lines = [
            (name, value.decode("ascii"))
            for name, value in headers
            if value is not None and _PLAIN_VALUE.fullmatch(value)
        ]
        if len(lines) == len(headers):
            return lines, None
    names: dict[str, int] = {}
    for name, _ in headers:
        names[name.lower()] = names.get(name.lower(), 0) + 1
    plain: list[tuple[str, str]] = []
    rest: list[tuple[int, str, bytes | None]] = []
    for place, (name, value) in enumerate(headers):
        if (
            value is not None
            and names[name.lower()] == 1
            and _PLAIN_NAME.fullmatch(name)
            and _PLAIN_VALUE.fullmatch(value)
        ):
            plain.append((name, value.decode("ascii")))
        else:
            rest.append((place, name, value))
    if not rest:
        return plain, None
    return plain, base64.b64encode(msgspec.msgpack.encode(rest)).decode("ascii")


@functools.lru_cache(4096)
def _are_plain(names: tuple[str, ...]) -> bool:
    """Whether headers of these names, in this order, go one to one; the same few come again."""
    return len({name.lower() for name in names}) == len(names) and all(
        map(_PLAIN_NAME.fullmatch, names)
    )


def unpack(plain: Iterable[tuple[str, str]], packed: str | None) -> tuple[KafkaHeader, ...]:
    """The Kafka headers that `pack` split; HeaderError if the packed part is damaged."""
    headers: list[KafkaHeader] = [(name, value.encode("latin-1")) for name, value in plain]
    if packed is None:
        return tuple(headers)
    try:
        rest = _UNPACK.decode(base64.b64decode(packed, validate=True))
    except (binascii.Error, msgspec.DecodeError) as error:
        raise HeaderError(f"{PACKED_HEADER} is damaged: {error}") from error
    for place, name, value in rest:
        if not 0 <= place <= len(headers):
            raise HeaderError(f"{PACKED_HEADER} names place {place} of {len(headers)} headers")
        headers.insert(place, (name, value))
    return tuple(headers)


_UNPACK = msgspec.msgpack.Decoder(list[tuple[int, str, bytes | None]])


def is_own(name: str) -> bool:
    """Whether a header of a bridged message is the bridge's or the server's, not the record's."""
    if name.startswith(_OWN_PREFIXES):
        return True
    return name[0:1] in "mMnN" and name.lower().startswith(_OWN_LOWER_PREFIXES)


_OWN_PREFIXES = ("Millstream-", "Nats-")
_OWN_LOWER_PREFIXES = ("millstream-", "nats-")


def is_letter(headers: NatsHeaders) -> bool:
    """Whether a message is for one coordinator group alone, as a dead letter published again is.

    It has the headers it was first stored with, a record's source among them.
    """
    return any(name == REPLAY for name, _ in headers)


def lines_of(block: bytes) -> list[tuple[str, str]]:
    """The header lines of any message, none where its block is empty or no block of headers.

    A server stores whatever a client gave out for one.
    """
    try:
        return parse_block(block)[1] if block else []
    except HeaderError:
        return []


def parse_block(block: bytes) -> tuple[int | None, list[tuple[str, str]]]:
    """A header block's status code, None mostly, and its lines; bytes are read as Latin-1.

    HeaderError: not a NATS header block.
    """
    if not block.startswith(b"NATS/1.0"):
        raise HeaderError("a header block does not begin with NATS/1.0")
    first, *lines = block.decode("latin-1").split("\r\n")
    status = first[len("NATS/1.0") :].strip().split(" ")[0]
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers.append((name, value.strip(" ")))
    return (int(status) if status.isdecimal() else None), headers
