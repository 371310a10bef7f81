"""Records to the bytes of HPUB operations, the hot path of a backfill.

One f-string per record, everything constant made once: about 2 µs a record. A frame the server
would close the connection for, or refuse for its size, is found here, before anything of it is
sent.
"""

from collections.abc import Callable, Sequence

from ..errors import PoisonRecord, RecordError, RecordTooLarge
from ..model import Piece, Record
from .headers import HEADER_BLOCK_BYTES_MAX
from .mapping import Mapping
from .template import SubjectError


class Frames:
    """Encoder of one route over one connection.

    ``message_bytes_max`` is what the server (``max_payload``) and the stream (``max_msg_size``)
    take, header block included.
    """

    def __init__(self, mapping: Mapping, message_bytes_max: int) -> None:
        self.mapping = mapping
        self.message_bytes_max = message_bytes_max

    def chained(
        self, records: Sequence[Record], guard: Callable[[int], str], frame: int, reply: str
    ) -> tuple[bytes, int, RecordError | None]:
        """Frames of ``records`` under a chain: the bytes, how many records, the trouble.

        ``guard`` gives the header lines that bind frame n, ``frame`` is the last one sent before.
        The last one asks for an answer at ``reply``.

        Stops before the first record that cannot be moved and says so in the last value, so that
        the caller can first store what is before it.
        """
        subject_of = self.mapping.subject
        lines_of = self.mapping.header_lines
        parts: list[bytes] = []
        error = None
        for record in records:
            frame += 1
            try:
                subject = subject_of(record)
            except SubjectError as trouble:
                error = self._refused(record, str(trouble))
                break
            block = f"NATS/1.0\r\n{guard(frame)}{lines_of(record)}\r\n"
            value = record.value or b""
            block_bytes = len(block)
            size = block_bytes + len(value)
            if size > self.message_bytes_max or block_bytes > HEADER_BLOCK_BYTES_MAX:
                error = self._too_large(record, block_bytes, size)
                break
            head = f"HPUB {subject} {block_bytes} {size}\r\n{block}".encode("ascii")
            parts += (head, value, b"\r\n")
        if parts:
            verb, to, rest = parts[-3].split(b" ", 2)
            parts[-3] = b"%b %b %b %b" % (verb, to, reply.encode(), rest)
        return b"".join(parts), len(parts) // 3, error

    def plain(self, record: Record, guard: str, reply: str = "") -> bytes:
        """One frame with other guard lines; RecordError if the record cannot be moved."""
        try:
            subject = self.mapping.subject(record)
        except SubjectError as trouble:
            raise self._refused(record, str(trouble)) from trouble
        block = f"NATS/1.0\r\n{guard}{self.mapping.header_lines(record)}\r\n"
        value = record.value or b""
        size = len(block) + len(value)
        if size > self.message_bytes_max or len(block) > HEADER_BLOCK_BYTES_MAX:
            raise self._too_large(record, len(block), size)
        return encode(subject, reply, block, value)

    def piece(self, piece: Piece, guard: str, reply: str = "") -> bytes:
        """The frame of one piece of what stands for a record."""
        return encode(piece.subject, reply, f"NATS/1.0\r\n{guard}{piece.lines}\r\n", piece.payload)

    def _too_large(self, record: Record, block_bytes: int, size: int) -> RecordError:
        if block_bytes > HEADER_BLOCK_BYTES_MAX:
            return self._refused(
                record,
                f"its headers take {block_bytes} bytes, over the limit of {HEADER_BLOCK_BYTES_MAX}",
            )
        return RecordTooLarge(
            self.mapping.route.topic,
            record.kafka_partition,
            record.offset,
            f"a message of {size} bytes is over the server's and stream's limit"
            f" of {self.message_bytes_max} (max_payload, max_msg_size)",
            self._remedy(is_large=True),
        )

    def _refused(self, record: Record, reason: str) -> RecordError:
        topic = self.mapping.route.topic
        return PoisonRecord(topic, record.kafka_partition, record.offset, reason, self._remedy())

    def _remedy(self, *, is_large: bool = False) -> str:
        """What the route could say, where this is the end of its run."""
        route = self.mapping.route
        if route.on_poison != "stop":
            return ""
        if is_large and route.large == "refuse":
            ways = '"object-store"' if route.mode == "dense" else '"chunks" or "object-store"'
            return f"large = {ways} in the project file moves it"
        return 'on_poison = "park" or "skip" in the project file goes on without it'


def encode(subject: str, reply: str, block: str, payload: bytes) -> bytes:
    """One HPUB operation."""
    to = f"{subject} {reply}" if reply else subject
    head = f"HPUB {to} {len(block)} {len(block) + len(payload)}\r\n{block}"
    return b"".join((head.encode("ascii"), payload, b"\r\n"))
