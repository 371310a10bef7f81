"""Record batches written to a broker byte by byte: such as no producer makes, damaged ones.

The mock stores what it is given without looking at the checksum, as a broker does with what lies on
its disk.
"""

import socket
import struct
from collections.abc import Sequence

TIMESTAMP_MS = 1_357_034_400_000


def crc32c(data: bytes) -> int:
    """The checksum of a record batch (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record_batch(values: Sequence[bytes], *, codec: int = 0, spoil: bool = False) -> bytes:
    """Records without key, of less than 50 bytes each.

    ``codec`` is said only: nothing is compressed. ``spoil`` changes a byte behind the checksum's
    back.
    """
    records = b"".join(_record(n, value) for n, value in enumerate(values))
    fields = (codec, len(values) - 1, TIMESTAMP_MS, TIMESTAMP_MS, -1, -1, -1, len(values))
    body = struct.pack(">hiqqqhii", *fields) + records
    checksum = crc32c(body)
    if spoil:
        body = body[:-2] + bytes([body[-2] ^ 1]) + body[-1:]
    tail = struct.pack(">ibI", -1, 2, checksum) + body
    return struct.pack(">qi", 0, len(tail)) + tail


def produce_bytes(bootstrap: str, topic: str, partition: int, batch: bytes) -> None:
    """Give a batch to the broker as it is (Produce version 7); returns when it is taken."""
    name = topic.encode()
    request = (
        struct.pack(">hhih", 0, 7, 1, -1)
        + struct.pack(">hhi", -1, -1, 5_000)
        + struct.pack(f">ih{len(name)}s", 1, len(name), name)
        + struct.pack(">iii", 1, partition, len(batch))
        + batch
    )
    host, _, port = bootstrap.split(",", maxsplit=1)[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
        answer = connection.recv(size, socket.MSG_WAITALL)
    error, offset = struct.unpack_from(">hq", answer, 4 + 4 + 2 + len(name) + 4 + 4)
    assert error == 0, (error, offset)


def _record(place: int, value: bytes) -> bytes:
    body = b"\0" + _varint(0) + _varint(place) + _varint(-1) + _varint(len(value)) + value + b"\0"
    return _varint(len(body)) + body


def _varint(number: int) -> bytes:
    """Zigzag, of one byte: from -64 to 63."""
    return bytes([number * 2 if number >= 0 else -number * 2 - 1])
