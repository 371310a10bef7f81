"""What a record is, as byte strings that no other record has. Pure.

The first is its offset, timestamp, the timestamp's type, and flags for a null value and a null key,
just as the source header has them behind the partition, so that it can be cut out of a message. Key
and value follow, and where it has headers one string for all of them: their lines, just as a
message has those that go one to one. Nothing says how the record was moved. The lengths tell where
one ends: whoever joins them must keep those too.

A header's line is ``name: value``, with other beginnings for a null value and for a name that has a
colon or a space. Where a line could not be told from two, all are put one behind the other with
their lengths.
"""

import functools
import itertools
import re
from array import array
from collections.abc import Sequence
from typing import Final

from ..model import KafkaHeader, Record, TimestampType
from ..records.headers import NULL_KEY, NULL_VALUE

Parts = tuple[bytes, ...]

_PLAIN_NAME: Final = re.compile(r"[!-9;-~]+")
_NULL: Final = b"\0"
_ODD: Final = b"\1"
_APART: Final = b"\2"
_END: Final = b"\r\n"
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
    return head, key or b"", value or b"", _lines_of(headers)


def parts_of_all(records: Sequence[Record]) -> list[Parts]:
    """Those of each; half as dear where they are alike, as a topic's mostly are."""
    if not records:
        return []
    _, offsets, timestamps_ms, kinds, keys, values, headers = zip(*records)  # noqa: B905
    if None in keys or None in values or kinds.count(kinds[0]) < len(kinds):
        return [*map(parts_of, records)]
    form = b"%d %d " + kinds[0].encode()
    heads = [form % place for place in zip(offsets, timestamps_ms, strict=True)]
    if not any(headers):
        return [*zip(heads, keys, values, strict=True)]
    lines = _lines_of_all(headers)
    if lines is None:
        return [*map(parts_of, records)]
    return [*zip(heads, keys, values, lines, strict=True)]


def record_of(kafka_partition: int, parts: Parts) -> Record:
    """The record that has these parts."""
    head, key, value, *lines = parts
    offset, timestamp_ms, kind, *rest = head.decode().split(" ")
    flags = rest[0] if rest else ""
    return Record(
        kafka_partition,
        int(offset),
        int(timestamp_ms),
        TimestampType(kind),
        None if NULL_KEY in flags else key,
        None if NULL_VALUE in flags else value,
        tuple([_header_of(line) for it in lines for line in _lines_in(it)]),
    )


def joined(parts: Parts) -> bytes:
    """All of them in one."""
    return b"%d %b%b" % (len(parts), lengths(parts), b"".join(parts))


def lengths(parts: Parts | list[bytes]) -> bytes:
    """The length of each, in four bytes."""
    return array("I", map(len, parts)).tobytes()


def _lines_of(headers: Sequence[KafkaHeader]) -> bytes:
    """The lines of one header or more."""
    names, values = zip(*headers)  # noqa: B905 - pairs are pairs
    try:
        lines: bytes = _form(names) % values
    except TypeError:
        lines = b""  # a value is null
    if lines.count(_END) == len(headers):
        return lines
    apart = [
        _NULL + _text(name) if value is None else _beginning(name) + value
        for name, value in headers
    ]
    return _APART + joined(tuple(apart))


def _lines_of_all(headers: Sequence[Sequence[KafkaHeader]]) -> list[bytes] | None:
    """The lines of each, where all have the same names and none needs a closer look."""
    count = len(headers[0])
    flat = [*itertools.chain.from_iterable(itertools.chain.from_iterable(headers))]
    names, values = tuple(flat[: 2 * count : 2]), flat[1::2]
    are_alike = {*map(len, headers)} == {count} and flat[::2] == [*names] * len(headers)
    if not are_alike or None in values:
        return None
    form = _form(names)
    lines = [form % of_one for of_one in zip(*[iter(values)] * count)]  # noqa: B905
    has_ends = sum(it.count(_END) for it in lines) > len(values)
    return None if has_ends else lines


def _lines_in(lines: bytes) -> Sequence[bytes]:
    if not lines.startswith(_APART):
        return lines.removesuffix(_END).split(_END)
    count, _, rest = lines[len(_APART) :].partition(b" ")
    sizes = array("I")
    sizes.frombytes(rest[: int(count) * sizes.itemsize])
    ends = [*itertools.accumulate(sizes, initial=int(count) * sizes.itemsize)]
    return [rest[start:end] for start, end in itertools.pairwise(ends)]


@functools.lru_cache(4096)
def _form(names: tuple[str, ...]) -> bytes:
    """What makes the lines of headers with these names of their values; the same few come again."""
    return b"".join(_beginning(name).replace(b"%", b"%%") + b"%b" + _END for name in names)


def _beginning(name: str) -> bytes:
    """What stands before a header's value."""
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
