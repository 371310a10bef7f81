"""Large records: a value that is over one message goes as pieces, or by reference. Pure.

The record itself is always **one** message on its own subject, so that readers, order and positions
know nothing of its size. It has no payload, and its header ``Millstream-Large`` says where the
value is and what it must hash to (128 bits of BLAKE2b):

* ``chunks <count> <bytes> <hash>``: in the ``count`` messages of the stream right before it, in
  order. They are stored under the same chain, or in the same atomic batch, so nothing comes in
  between, and a mirror keeps the sequences. Their subjects (``…._chunk.<partition>.<place>.<n>``)
  are outside what readers of a partition ask for. ``place`` is made from the record's subject, so
  that a stream which keeps one message per subject drops the pieces of older records too.
* ``object <bucket> <bytes> <hash> <name>``: in a NATS Object Store.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from ..model import Piece, Record
from .headers import LARGE_HEADER, HeaderError, SourceHeader
from .mapping import Mapping

CHUNK_HEADER: Final = "Millstream-Chunk"
HEADER_BYTES_RESERVED: Final = 1_024
"""What a chunk's headers, and the guard of any message, may take of it."""
CHUNKS_MAX: Final = 997
"""With a batch's mark, the record's message and a checkpoint: what one atomic batch takes."""

_REFERENCE = re.compile(
    r"chunks (?P<count>[1-9]\d{0,4}) (?P<cbytes>\d{1,12}) (?P<chash>[0-9a-f]{32})"
    r"|object (?P<bucket>[A-Za-z0-9_-]+) (?P<obytes>\d{1,12}) (?P<ohash>[0-9a-f]{32})"
    r" (?P<name>[!-~]+)"
)


class Reference(NamedTuple):
    """Where a large record's value is. ``chunks`` is 0 where it is an object."""

    size: int
    digest: str
    chunks: int = 0
    bucket: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The header's value."""
        if self.chunks:
            return f"chunks {self.chunks} {self.size} {self.digest}"
        return f"object {self.bucket} {self.size} {self.digest} {self.name}"

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read a header's value; HeaderError if it is not of the form above."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise HeaderError(f"{text!r} is no {LARGE_HEADER}")
        if match["count"]:
            return cls(int(match["cbytes"]), match["chash"], chunks=int(match["count"]))
        return cls(int(match["obytes"]), match["ohash"], bucket=match["bucket"], name=match["name"])

    def check(self, value: bytes) -> bytes:
        """The value itself; HeaderError if it is not the one the reference was made for."""
        if len(value) != self.size or digest_of(value) != self.digest:
            raise HeaderError(
                f"a large value of {len(value)} bytes is not the one that was stored ({self.text})"
            )
        return value


def digest_of(value: bytes) -> str:
    """The hash a reference has."""
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def reference_in(headers: Iterable[tuple[str, str]]) -> Reference | None:
    """The reference of a large record's message, None for any other; HeaderError: damaged."""
    return next((Reference.parse(text) for name, text in headers if name == LARGE_HEADER), None)


def is_chunk(headers: Iterable[tuple[str, str]], source: SourceHeader) -> bool:
    """Whether a message is a piece of that large record."""
    wanted = f" {_whose(source.topic, source.kafka_partition, source.offset)}"
    return any(name == CHUNK_HEADER and text.endswith(wanted) for name, text in headers)


def _whose(topic: str, kafka_partition: int, offset: int) -> str:
    return f"{topic} {kafka_partition} {offset}"


def pieces(mapping: Mapping, record: Record, message_bytes_max: int) -> list[Piece] | None:
    """The chunks and, last, the record's own message; None where its value cannot be cut so."""
    value = record.value or b""
    size = message_bytes_max - HEADER_BYTES_RESERVED
    if not value or size * CHUNKS_MAX < len(value):
        return None
    parts = [value[at : at + size] for at in range(0, len(value), size)]
    subject = mapping.subject(record)
    place = hashlib.blake2b(subject.encode("ascii"), digest_size=8).hexdigest()
    head = f"{mapping.chunk_subject(record.kafka_partition)}.{place}"
    whose = _whose(mapping.route.topic, record.kafka_partition, record.offset)
    chunks = [
        Piece(f"{head}.{n}", f"{CHUNK_HEADER}: {n}/{len(parts)} {whose}\r\n", part)
        for n, part in enumerate(parts, 1)
    ]
    reference = Reference(len(value), digest_of(value), chunks=len(parts))
    return [*chunks, by_reference(mapping, record, reference)]


def by_reference(mapping: Mapping, record: Record, reference: Reference) -> Piece:
    """The record's own message, its value elsewhere."""
    lines = f"{mapping.header_lines(record)}{LARGE_HEADER}: {reference.text}\r\n"
    return Piece(mapping.subject(record), lines, b"")
