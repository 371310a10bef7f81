"""One record of a block file, byte by byte.

All numbers are little-endian. A record is

| bytes | what |
|---|---|
| 2 | mark ``A5 4D``, by which records are found again behind damage |
| 1 | kind: 1 message, 2 skip, 3 removal, 4 erased message |
| 1 | flags: bit 0 = the message has headers |
| 4 | size of the whole record |
| 8 | sequence (skip: the new last sequence; removal: the first sequence removed) |
| 8 | store time in ns (removal: the last sequence removed) |
| 2 | size of the subject |
| n | subject, [4 bytes size of the headers, headers,] payload; erased: zeros |
| 4 | CRC-32 of everything before, started from the block's seed plus the record's position |

Without headers that is 30 bytes beside subject and payload, with headers 34: exactly what
nats-server counts per message of a file stream, so a record's size is also its share of
STREAM.INFO bytes. The seeded checksum makes a record that is whole but not in its place (an old
write come back, a block copied over another) as visible as a flipped bit.
"""

import struct
from typing import NamedTuple
from zlib import crc32

MESSAGE, SKIP, REMOVAL, ERASED = 1, 2, 3, 4
HAS_HEADERS = 1
MARK = b"\xa5\x4d"
HEAD = struct.Struct("<2sBBIQqH")
TAIL = struct.Struct("<I")
OVERHEAD = HEAD.size + TAIL.size
MAX_SUBJECT_BYTES = 0xFFFF
_U32 = 0xFFFFFFFF

_pack_head, _pack_u32 = HEAD.pack, TAIL.pack
_read_head, _read_u32 = HEAD.unpack_from, TAIL.unpack_from


class Head(NamedTuple):
    """The fixed part of a record, as read."""

    mark: bytes
    kind: int
    flags: int
    size: int
    seq: int
    ts_ns: int
    subject_size: int


def encode_message(
    seed: int, seq: int, ts_ns: int, subject: bytes, headers: bytes | None, payload: bytes
) -> bytes:
    """One message; ``seed`` is that of its block plus its position there."""
    if headers is None:
        size = OVERHEAD + len(subject) + len(payload)
        head = _pack_head(MARK, MESSAGE, 0, size, seq, ts_ns, len(subject))
        body = head + subject + payload
    else:
        size = OVERHEAD + 4 + len(subject) + len(headers) + len(payload)
        head = _pack_head(MARK, MESSAGE, HAS_HEADERS, size, seq, ts_ns, len(subject))
        body = b"".join((head, subject, _pack_u32(len(headers)), headers, payload))
    return body + _pack_u32(crc32(body, seed & _U32))


def encode_skip(seed: int, last_seq: int, ts_ns: int) -> bytes:
    """Sequences up to ``last_seq`` are used up."""
    return _bare(SKIP, seed, last_seq, ts_ns)


def encode_removal(seed: int, first: int, last: int) -> bytes:
    """Messages ``first`` to ``last`` are gone."""
    return _bare(REMOVAL, seed, first, last)


def _bare(kind: int, seed: int, seq: int, second: int) -> bytes:
    body = _pack_head(MARK, kind, 0, OVERHEAD, seq, second, 0)
    return body + _pack_u32(crc32(body, seed & _U32))


def encode_erased(seed: int, size: int, seq: int, ts_ns: int) -> bytes:
    """What overwrites a message of ``size`` bytes; a valid record that tells nothing."""
    body = _pack_head(MARK, ERASED, 0, size, seq, ts_ns, 0) + bytes(size - OVERHEAD)
    return body + _pack_u32(crc32(body, seed & _U32))


def reseal(body: bytes, seed: int) -> bytes:
    """A record without its checksum, given the checksum of another place."""
    return body + _pack_u32(crc32(body, seed & _U32))


def is_whole(data: bytes, start: int, size: int, seed: int) -> bool:
    """Whether the record at ``start`` carries the checksum of its bytes and place."""
    end = start + size - TAIL.size
    stored: int = TAIL.unpack_from(data, end)[0]
    with memoryview(data) as view:
        return crc32(view[start:end], seed & _U32) == stored


def read_head(data: bytes, start: int) -> Head | None:
    """The head of what may be a record; None when it cannot be one within ``data``."""
    if start + OVERHEAD > len(data):
        return None
    head = Head._make(HEAD.unpack_from(data, start))
    if head.mark != MARK or not MESSAGE <= head.kind <= ERASED:
        return None
    if head.size < OVERHEAD + head.subject_size or start + head.size > len(data):
        return None
    return head


def decode_message(
    data: bytes, start: int, size: int, seq: int, seed: int
) -> tuple[bytes | None, bytes] | None:
    """Headers and payload of the message record at ``start``; None when it is not that message."""
    end = start + size - TAIL.size
    if (
        end + TAIL.size > len(data)
        or crc32(data[start:end], seed & _U32) != _read_u32(data, end)[0]
    ):
        return None
    _, kind, flags, stored_size, stored_seq, _, subject_size = _read_head(data, start)
    if kind != MESSAGE or stored_size != size or stored_seq != seq:
        return None
    place: int = start + HEAD.size + subject_size
    if not flags & HAS_HEADERS:
        return None, data[place:end]
    headers_end: int = place + TAIL.size + _read_u32(data, place)[0]
    return data[place + TAIL.size : headers_end], data[headers_end:end]
