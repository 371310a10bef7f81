"""Messages in memory: the store of memory streams, and of tests.

A body is kept as it came: the payload alone, or a pair with the headers. Nothing outlives the
process, so ``flush`` and ``sync`` have nothing to do.
"""

from collections.abc import Iterable, MutableSequence, Sequence

from ..message import Message
from .errors import StoreError
from .index import Entry, IndexedStore, MessageIndex
from .port import Recovery, RemovedMessage, StoredMessage

Body = bytes | tuple[bytes, bytes]

_OVERHEAD = 16


def _new_bodies(bodies: Iterable[Body]) -> MutableSequence[Body]:
    return list(bodies)


class MemoryStore(IndexedStore[Body]):
    """A ``MessageStore`` without files."""

    def __init__(self, *, first_seq: int = 1) -> None:
        super().__init__(MessageIndex(_new_bodies, first_seq=first_seq))

    @property
    def recovery(self) -> Recovery:
        return Recovery()

    @property
    def maintenance_error(self) -> StoreError | None:
        return None

    def append_run(self, messages: Sequence[Message], ts_ns: int) -> int:
        subjects: list[str] = []
        sizes: list[int] = []
        bodies: list[Body] = []
        for subject, _, headers, payload in messages:
            size = len(subject) if subject.isascii() else len(_encode(subject))
            size += len(payload) + _OVERHEAD
            subjects.append(subject)
            if headers is None:
                sizes.append(size)
                bodies.append(payload)
            else:
                sizes.append(size + len(headers))
                bodies.append((headers, payload))
        return self._index.extend(subjects, ts_ns, sizes, bodies)

    def skip(self, count: int, ts_ns: int) -> None:
        self._index.skip_to(self._table.last_seq + count, ts_ns)

    def flush(self) -> None:
        """Nothing to hand over."""

    def sync(self) -> None:
        """Nothing to make safe."""

    def load(self, seq: int) -> StoredMessage | None:
        entry = self._index.entry(seq)
        return None if entry is None else _message(entry)

    def load_run(self, seqs: Iterable[int], max_bytes: int) -> list[StoredMessage]:
        found: list[StoredMessage] = []
        for seq in seqs:
            entry = self._index.entry(seq)
            if entry is None or max_bytes <= 0:
                break
            found.append(_message(entry))
            max_bytes -= entry.size
        return found

    def remove(self, seq: int, *, erase: bool = False) -> RemovedMessage | None:
        """``erase`` changes nothing: the bytes are given back to the allocator either way."""
        entry = self._index.remove(seq)
        if entry is None:
            return None
        return RemovedMessage(seq, entry.ts_ns, entry.subject, entry.size)

    def purge(self, *, subject: str = ">", below_seq: int | None = None, keep: int = 0) -> int:
        seqs = self._index.to_purge(subject, below_seq, keep)
        for seq in seqs:
            self._index.remove(seq)
        return len(seqs)

    def close(self) -> None:
        """Nothing to close."""


def _message(entry: Entry[Body]) -> StoredMessage:
    body = entry.cell
    if isinstance(body, tuple):
        return StoredMessage(entry.seq, entry.ts_ns, entry.subject, *body)
    return StoredMessage(entry.seq, entry.ts_ns, entry.subject, None, body)


def _encode(subject: str) -> bytes:
    return subject.encode("utf-8", "surrogateescape")
