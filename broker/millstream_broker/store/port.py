"""What JetStream asks of a store; memory and file stores keep the same contract.

A store keeps the messages of one stream in sequence order and answers by sequence, subject and
time. It knows nothing of limits, consumers or the API: the stream decides what goes and says so.

What ``append``, ``skip`` and ``remove`` changed is in the operating system when ``flush`` returns;
the stream acknowledges only after that, so that a killed process loses nothing it acked. ``purge``
flushes by itself. A ``flush`` (or ``purge``) that raises leaves the store exactly as it was at the
last flush that returned: appended messages are gone and their sequences free again, removed ones
are back. Sequences and subjects may be asked for before the flush. Where even taking the failed
write back fails, the store is broken: it answers questions, and everything that would change it
raises ``StoreBroken``.

Errors are those of ``errors``: ``StoreError`` names the file, what was tried and why it failed.
Patterns are never empty: "everything" is ``[">"]``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..message import Message
from .errors import StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of one file that are not what was written, and what stood there as far as known."""

    path: str
    position: int
    size_bytes: int
    lost_messages: int
    """At most this many messages that were not removed before stood here; 0 for other records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What opening a store found. All zero and empty when the files were whole."""

    truncated_bytes: int = 0
    """The end of a write that a crash cut off; nothing in it was ever acknowledged."""
    damages: tuple[Damage, ...] = ()

    @property
    def lost_messages(self) -> int:
        return sum(damage.lost_messages for damage in self.damages)

    @property
    def lost_bytes(self) -> int:
        return sum(damage.size_bytes for damage in self.damages)


class StoredMessage(NamedTuple):
    """One message. ``headers`` is the whole block from ``NATS/1.0`` to the empty line."""

    seq: int
    ts_ns: int
    subject: str
    headers: bytes | None
    payload: bytes


class RemovedMessage(NamedTuple):
    """What a removal tells of the message it took; the body is not read for it."""

    seq: int
    ts_ns: int
    subject: str
    size_bytes: int


class MessageStore(Protocol):
    """The messages of one stream. Sequences start at 1 unless ``first_seq`` said otherwise."""

    @property
    def recovery(self) -> Recovery:
        """What opening found; log it, and report ``lost`` in STREAM.INFO when there is damage."""

    @property
    def messages(self) -> int: ...
    @property
    def size_bytes(self) -> int:
        """What STREAM.INFO reports as bytes (nats-server's formula for the storage type)."""

    @property
    def first_seq(self) -> int:
        """Sequence of the oldest message; ``last_seq + 1`` when there is none."""

    @property
    def last_seq(self) -> int: ...
    @property
    def first_ts_ns(self) -> int:
        """Store time of the oldest message; 0 when there is none."""

    @property
    def last_ts_ns(self) -> int: ...
    @property
    def num_subjects(self) -> int: ...
    @property
    def num_deleted(self) -> int:
        """How many sequences between ``first_seq`` and ``last_seq`` are gone."""

    @property
    def maintenance_error(self) -> StoreError | None:
        """Why the last tidying of old blocks failed (nothing is lost by it); else None."""

    def append_run(self, messages: Sequence[Message], ts_ns: int) -> int:
        """Store one or more from ``last_seq + 1`` on; the first's sequence. StoreError: none is."""

    def skip(self, count: int, ts_ns: int) -> None:
        """Use up ``count`` sequences, storing nothing (interest streams without interest)."""

    def flush(self) -> None:
        """Hand everything changed so far to the operating system. Raises StoreError."""

    def sync(self) -> None:
        """``flush``, then make it survive a power loss."""

    def load(self, seq: int) -> StoredMessage | None:
        """None when it is not there. Raises DamagedRecord when its bytes went bad on disk."""

    def load_run(self, seqs: Iterable[int], max_bytes: int) -> list[StoredMessage]:
        """Those of these messages, which are there, that make up ``max_bytes``; asks for no more.

        Ends before the first whose bytes went bad on disk.
        """

    def remove(self, seq: int, *, erase: bool = False) -> RemovedMessage | None:
        """Remove one message; None when it is not there. ``load`` it before if the body matters.

        ``erase`` overwrites its bytes, too, after the next flush.
        """

    def purge(self, *, subject: str = ">", below_seq: int | None = None, keep: int = 0) -> int:
        """Remove what matches ``subject`` below ``below_seq`` except the newest ``keep`` matching.

        Returns how many went; flushes. ``first_seq`` becomes the oldest left, or ``last_seq + 1``.
        """

    def deleted(self) -> Iterator[int]:
        """The gone sequences between ``first_seq`` and ``last_seq``, ascending."""

    def subject_state(self, subject: str) -> tuple[int, int, int] | None:
        """(first_seq, last_seq, count) of one literal subject; None when it holds no message."""

    def subjects(self, pattern: str) -> dict[str, int]:
        """Literal subjects matching ``pattern`` with their message counts."""

    def next_match(self, patterns: Sequence[str], start_seq: int) -> int | None:
        """Sequence of the first message at or after ``start_seq`` on any of ``patterns``."""

    def next_matches(self, patterns: Sequence[str], start_seq: int, count: int) -> Iterator[int]:
        """The first so many of the messages at or after ``start_seq`` on any of ``patterns``.

        Looked for as they are asked for; nothing may change in between.
        """

    def count_matches(self, patterns: Sequence[str], start_seq: int) -> int:
        """How many messages at or after ``start_seq`` match any of ``patterns``."""

    def last_matches(self, patterns: Sequence[str], *, up_to_seq: int | None = None) -> list[int]:
        """Per matching subject its last sequence (at or below ``up_to_seq``), ascending."""

    def seq_at(self, ts_ns: int) -> int:
        """First sequence stored at or after this time; ``last_seq + 1`` when there is none."""

    def close(self) -> None: ...


class StreamDirectory(Protocol):
    """Where one stream lives: its configuration, its messages and its consumers' files."""

    def save_config(self, document: bytes) -> None:
        """Replace the stream's configuration atomically (an opaque document of JetStream's)."""

    def load_config(self) -> bytes: ...
    def save_sources(self, document: bytes) -> None:
        """Replace what the stream knows of its sources atomically (opaque, as the others)."""

    def load_sources(self) -> bytes:
        """The document last saved; empty when none was."""

    def open_messages(self, *, first_seq: int = 1, sync_always: bool = False) -> MessageStore:
        """Open, or recover after a crash; ``first_seq`` counts only for a new, empty store."""

    def consumers(self) -> list[str]: ...
    def save_consumer(self, name: str, document: bytes) -> None:
        """Replace one consumer's configuration and state atomically, and empty its journal."""

    def load_consumer(self, name: str) -> tuple[bytes, list[bytes]]:
        """The document last saved and the journal entries after it, oldest first."""

    def journal_consumer(self, name: str, entry: bytes) -> None:
        """Append one entry (buffered until ``flush_consumers``); a torn tail is dropped on load."""

    def flush_consumers(self) -> None:
        """Hand all entries to the operating system, one write per consumer.

        Raises StoreError; what could not be written stays buffered and goes with the next flush.
        """

    def delete_consumer(self, name: str) -> None: ...
    @property
    def damages(self) -> tuple[Damage, ...]:
        """Journal entries ``load_consumer`` had to skip so far (their acks are repeated)."""

    def close(self) -> None:
        """Flush and close the messages and the consumers' files."""

    def destroy(self) -> None:
        """Close everything and delete the stream."""


class Storage(Protocol):
    """All streams of one server, by account and name; one for memory, one for a folder."""

    def streams(self, account: str) -> list[str]: ...
    def create_stream(self, account: str, name: str) -> StreamDirectory:
        """Raises StoreError when the folder can't be written."""

    def open_stream(self, account: str, name: str) -> StreamDirectory: ...
    def accounts(self) -> list[str]: ...
    def close(self) -> None:
        """Close every stream and let go of the folder."""
