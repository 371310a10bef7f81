"""What a record is, as byte strings that no other record has. Pure.

The first is its offset, timestamp, the timestamp's type, and flags for a null value and a null key,
just as the source header has them behind the partition, so that it can be cut out of a message. Key
and value follow, and one string for each header, in order. Nothing says how the record was moved.
The lengths tell where one ends: whoever joins them must keep those too.
"""

import functools
import re
from array import array
from typing import Final

from ..model import KafkaHeader, Record, TimestampType
from ..records.headers import NULL_KEY, NULL_VALUE

Parts = tuple[bytes, ...]

_PLAIN_NAME: Final = re.compile(r"[!-9;-~]+")
_NULL: Final = b"\0"
_ODD: Final = b"\1"
_COLON: Final = b": "


def parts_of(record: Record) -> Parts:
    """Head, key, value, headers."""
    _, offset, timestamp_ms, kind, key, value, headers = record
    head = b"%d %d %b" % (offset, timestamp_ms, kind.encode())
    if key is None or value is None:
        flags = (NULL_VALUE if value is None else "") + (NULL_KEY if key is None else "")
        head = b"%b %b" % (head, flags.encode())
    if not headers:
        return head, key or b"", value or b""
    beginning = _beginning
    lines = [
        _NULL + _text(name) if content is None else beginning(name) + content
        for name, content in headers
    ]
    return head, key or b"", value or b"", *lines


def record_of(kafka_partition: int, parts: Parts) -> Record:
    """The record that has these parts."""
    head, key, value, *headers = parts
    offset, timestamp_ms, kind, *rest = head.decode().split(" ")
    flags = rest[0] if rest else ""
    return Record(
        kafka_partition,
        int(offset),
        int(timestamp_ms),
        TimestampType(kind),
        None if NULL_KEY in flags else key,
        None if NULL_VALUE in flags else value,
        tuple(map(_header_of, headers)),
    )


def joined(parts: Parts) -> bytes:
    """All of them in one."""
    return b"%d %b%b" % (len(parts), lengths(parts), b"".join(parts))


def lengths(parts: Parts | list[bytes]) -> bytes:
    """The length of each, in four bytes."""
    return array("I", map(len, parts)).tobytes()


@functools.lru_cache(4096)
def _beginning(name: str) -> bytes:
    """What stands before a header's value, ``name: `` if the name has neither colon nor space.

    The same names come again.
    """
    text = _text(name)
    if _PLAIN_NAME.fullmatch(name):
        return text + _COLON
    return b"%b%d %b" % (_ODD, len(text), text)


def _text(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _header_of(part: bytes) -> KafkaHeader:
    if part.startswith(_NULL):
        return part[1:].decode("utf-8", "surrogatepass"), None
    if not part.startswith(_ODD):
        name, _, value = part.partition(_COLON)
        return name.decode(), value
    length, _, rest = part[1:].partition(b" ")
    return rest[: int(length)].decode("utf-8", "surrogatepass"), rest[int(length) :]
