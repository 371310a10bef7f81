"""One stream: its configuration, its messages, and everybody who must hear of a change to them.

The store keeps messages; the stream decides what goes in (``publish``, ``batch``), what goes
out (limits, age, retention, purge, delete) and tells its readers. A *reader* is a consumer or
another stream that sources from this one. Readers hear of a message once it is in the operating
system, and of a removal at once; a removal needs no answer to wait for it except where the API
asks for it.

``announce`` is the one place where stored becomes visible: it flushes, and only then readers
are told, so nobody ever acts on a message that a crash could take back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.errors import StoreError
from ..store.memory import MemoryStore
from ..store.port import MessageStore, StoredMessage, StreamDirectory
from ..subjects.transform import Transform
from . import stream_config, wire
from .codes import ApiError
from .dedup import DuplicateWindow
from .expiry import Expiry
from .host import Host
from .model import Discard, Retention, StorageType, StreamConfig
from .staging import Staged, Staging

if TYPE_CHECKING:
    from .consumer import Consumer
    from .publish import Ingest
    from .sources import Source

MSG_ID = "Nats-Msg-Id"
BATCH_ID = "Nats-Batch-Id"
BATCH_COMMIT = "Nats-Batch-Commit"
HEADER_BYTES_MAX = 65_535
SYNC_S = 120.0
"""nats-server's ``sync_interval``: what a power loss can take at most."""


class Reader(Protocol):
    """Who reads a stream and may hold its messages."""

    def on_stored(self, stored: Sequence[tuple[int, str]]) -> None:
        """These (sequence, subject) are stored and visible."""

    def on_removed(self, seq: int, subject: str) -> None:
        """One message is gone."""

    def on_reset(self) -> None:
        """Many messages are gone, or some never came: look again."""

    def wants(self, subject: str) -> bool:
        """Whether messages of this subject matter to it (interest retention)."""

    def needs(self, seq: int, subject: str) -> bool:
        """Whether this message must still be kept for it (interest retention)."""


class Stream:
    """The messages of one stream and who reads them."""

    def __init__(
        self,
        host: Host,
        config: StreamConfig,
        created_ns: int,
        directory: StreamDirectory,
        store: MessageStore,
    ) -> None:
        self.host = host
        self.config = config
        self.created_ns = created_ns
        self.directory = directory
        self.store = store
        self.consumers: dict[str, Consumer] = {}
        self.readers: dict[Reader, None] = {}
        self.sources: list[Source] = []
        self.window = DuplicateWindow(config.duplicate_window_ns)
        self.last_msg_id = ""
        self.expiry = Expiry(self)
        self.ingest: Ingest
        self.transform: Transform | None = None
        self.republish: Transform | None = None
        self.is_closed = False
        self._fresh: list[tuple[int, str]] = []
        self._began_at = config.first_seq
        self._is_sync_planned = False
        self._maintenance_error: StoreError | None = None
        self._compile()

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.config.name

    def _compile(self) -> None:
        """Make what the configuration says ready to apply."""
        rule, republish = self.config.subject_transform, self.config.republish
        random = self.host.random
        self.transform = None
        if rule is not None:
            self.transform = Transform(rule.src, rule.dest, random=random)
        self.republish = None
        if republish is not None:
            self.republish = Transform(republish.src, republish.dest, random=random)

    def read(self, seq: int) -> StoredMessage | None:
        """Load a message; one that went bad on disk is reported and passed over like a gone one."""
        try:
            return self.store.load(seq)
        except StoreError as error:
            facts = {"stream": self.name, "seq": seq, "error": str(error)}
            self.host.report("message_damaged", facts)
            return None

    def read_run(
        self, patterns: Sequence[str], start_seq: int, count: int, max_bytes: int
    ) -> list[StoredMessage]:
        """Load the next messages of these subjects; few or none before one that can't be read."""
        store = self.store
        try:
            return store.load_run(store.next_matches(patterns, start_seq, count), max_bytes)
        except StoreError:
            return []

    # Storing

    def now_ns(self) -> int:
        """Give the store time of this round; store times never go back."""
        return max(self.host.now.wall_ns, self.store.last_ts_ns)

    def size_of(self, subject: str, headers: bytes | None, payload: bytes) -> int:
        """Count what a message adds to the stream's bytes, as nats-server counts."""
        size = len(subject.encode("utf-8", "surrogateescape")) + len(payload)
        if self.config.storage is StorageType.MEMORY:
            return size + len(headers or b"") + 16
        return size + 30 + (4 + len(headers) if headers else 0)

    def admit(self, staged: Staged, staging: Staging | None) -> None:
        """Refuse what the limits have no room for under ``discard: new``. Raises ApiError 10077.

        ``staging`` is what the same batch will store before it.
        """
        config, subject = self.config, staged.subject
        if config.discard is not Discard.NEW:
            return
        count, size = self.store.messages, self.store.size_bytes
        same = 0
        if staging is not None:
            count, size = count + staging.count, size + staging.size_bytes
            same = staging.subjects[subject]
        replaced: int | None = None
        if config.max_msgs_per_subject > 0:
            state = self.store.subject_state(subject)
            if (state[2] if state else 0) + same >= config.max_msgs_per_subject:
                if config.discard_new_per_subject:
                    raise ApiError(10077, err="maximum messages per subject exceeded")
                replaced = state[0] if state else 0
        if 0 < config.max_msgs <= count and replaced is None:
            raise ApiError(10077, err="maximum messages exceeded")
        if config.max_bytes > 0:
            added = self.size_of(subject, staged.headers, staged.payload)
            oldest = self.read(replaced) if replaced else None
            freed = 0
            if oldest is not None:
                freed = self.size_of(subject, oldest.headers, oldest.payload)
            if size + added > config.max_bytes and freed < added:
                raise ApiError(10077, err="maximum bytes exceeded")

    def is_wanted(self, subject: str) -> bool:
        """Whether a message of this subject is to be kept: on an interest stream, by a reader."""
        if self.config.retention is not Retention.INTEREST:
            return True
        return any(reader.wants(subject) for reader in self.readers)

    @property
    def unannounced(self) -> Sequence[tuple[int, str]]:
        """What is stored and not visible yet: readers hear of it later, so it does not count."""
        return self._fresh

    def append(self, messages: Sequence[Message], ts_ns: int) -> int:
        """Store messages that passed all checks, in a row; the first's sequence. Not visible yet.

        ``ts_ns`` is the round's ``now_ns``. On an interest stream a message nobody listens to only
        uses up a sequence. Raises StoreError.
        """
        first_seq = self.store.last_seq + 1
        if self.config.retention is Retention.INTEREST:
            for seq, message in enumerate(messages, first_seq):
                if self.is_wanted(message.subject):
                    self.store.append_run((message,), ts_ns)
                    self._fresh.append((seq, message.subject))
                else:
                    self.store.skip(1, ts_ns)
            return first_seq
        self.store.append_run(messages, ts_ns)
        self._fresh += enumerate([message.subject for message in messages], first_seq)
        return first_seq

    def enforce(self, touched: Iterable[str]) -> None:
        """Remove what the limits no longer allow; ``touched`` are the subjects that grew.

        With ``discard: new`` only the limit per subject removes.
        """
        config, store = self.config, self.store
        if config.max_msgs_per_subject > 0:
            for subject in touched:
                state = store.subject_state(subject)
                while state is not None and state[2] > config.max_msgs_per_subject:
                    self.remove(state[0])
                    state = store.subject_state(subject)
        if config.discard is Discard.NEW:
            return
        if config.max_msgs > 0:
            while store.messages > config.max_msgs:
                self.remove(store.first_seq)
        if config.max_bytes > 0:
            while store.size_bytes > config.max_bytes and store.messages:
                self.remove(store.first_seq)

    def announce(self) -> None:
        """Flush; then tell the readers what is new. Raises StoreError, and then nothing was stored.

        After a failed flush the store stands where the last good one left it; so does the stream.
        """
        try:
            self.store.flush()
        except StoreError:
            self._roll_back()
            raise
        self._after_flush()
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        for reader in list(self.readers):
            reader.on_stored(fresh)
        self.expiry.on_stored()
        if self.republish is not None:
            self._republish(fresh)

    def _after_flush(self) -> None:
        """Plan the sync that bounds what a power loss can take; report what tidying ran into."""
        if not self._is_sync_planned and not self.host.limits.sync_always:
            self._is_sync_planned = True
            self.host.timers.set(self, self.host.now.mono_s + SYNC_S)
        error = self.store.maintenance_error
        if error is not self._maintenance_error:
            self._maintenance_error = error
            if error is not None:
                self.host.report("store_untidy", {"stream": self.name, "error": str(error)})

    def on_timer(self) -> None:
        """Make what was written survive a power loss."""
        self._is_sync_planned = False
        if self.is_closed:
            return
        try:
            self.store.sync()
        except StoreError as error:
            self.host.report("store_failed", {"stream": self.name, "error": str(error)})

    def _roll_back(self) -> None:
        self._fresh = []
        self.window.forget_above(self.store.last_seq)
        self.last_msg_id = self._stored_msg_id()
        self.expiry.rebuild()
        for reader in list(self.readers):
            reader.on_reset()

    def _republish(self, fresh: Sequence[tuple[int, str]]) -> None:
        assert self.republish is not None
        assert self.config.republish is not None
        for seq, subject in fresh:
            dest = self.republish.apply(subject)
            message = None if dest is None else self.read(seq)
            if message is None or dest is None:
                continue
            earlier = self.store.last_matches([subject], up_to_seq=seq - 1)
            pairs = [
                ("Nats-Stream", self.name),
                ("Nats-Subject", subject),
                ("Nats-Sequence", str(seq)),
                ("Nats-Time-Stamp", wire.format_time(message.ts_ns)),
                ("Nats-Last-Sequence", str(earlier[-1] if earlier else 0)),
            ]
            payload = message.payload
            if self.config.republish.headers_only:
                pairs.append(("Nats-Msg-Size", str(len(payload))))
                payload = b""
            block = header_blocks.add(message.headers, pairs)
            self.host.bus.publish(dest, payload, headers=block)

    # Removing

    def remove(self, seq: int, *, erase: bool = False) -> bool:
        """Remove one message and tell the readers; False when it is not there."""
        message = self.store.remove(seq, erase=erase)
        if message is None:
            return False
        if self.readers:
            for reader in list(self.readers):
                reader.on_removed(seq, message.subject)
        self.host.flush(self)
        return True

    def purge(self, *, subject: str = ">", below_seq: int | None = None, keep: int = 0) -> int:
        """Remove many and tell the readers; the count. Raises StoreError with nothing removed."""
        removed = self.store.purge(subject=subject, below_seq=below_seq, keep=keep)
        self._after_flush()
        if removed:
            for reader in list(self.readers):
                reader.on_reset()
            self.expiry.on_stored()
        return removed

    def roll_up(self, pattern: str, seq: int) -> None:
        """Remove what is below a message that replaces it; written with it, or neither is."""
        gone = self.store.next_match([pattern], 1)
        while gone is not None and gone < seq:
            self.remove(gone)
            gone = self.store.next_match([pattern], gone + 1)

    def skip_to(self, seq: int) -> None:
        """Have the next message stored at ``seq`` or later (a purge beyond the end does so)."""
        if seq > self.store.last_seq + 1:
            self.store.skip(seq - 1 - self.store.last_seq, self.now_ns())
            self.announce()

    def release(self, seq: int, subject: str) -> None:
        """A reader is done with a message: remove it when retention says nobody needs it."""
        retention = self.config.retention
        if retention is Retention.LIMITS:
            return
        if retention is Retention.INTEREST and any(
            reader.needs(seq, subject) for reader in self.readers
        ):
            return
        self.remove(seq)

    def sweep(self, *, keeps_unwanted: bool = False) -> None:
        """Remove what no reader of an interest stream needs any more (one of them is gone).

        A stream that becomes an interest stream keeps what none of its readers ever wanted.
        """
        if self.config.retention is not Retention.INTEREST:
            return
        keeps_unwanted = keeps_unwanted and bool(self.readers)
        seq = self.store.next_match([">"], 1)
        while seq is not None:
            message = self.read(seq)
            if message is not None and not (keeps_unwanted and not self.is_wanted(message.subject)):
                self.release(seq, message.subject)
            seq = self.store.next_match([">"], seq + 1)

    def save(self) -> None:
        """Hand removals to the operating system; a failure is reported, and undone here too."""
        if self.is_closed:
            return
        try:
            self.store.flush()
            self._after_flush()
        except StoreError as error:
            self._roll_back()
            self.host.report("store_failed", {"stream": self.name, "error": str(error)})

    # Configuration

    def document(self) -> bytes:
        """What is saved of the stream beside its messages."""
        return wire.encode(
            {"created_ns": self.created_ns, "config": wire.STREAM_CONFIG.write(self.config)}
        )

    def apply(self, config: StreamConfig) -> None:
        """Take a checked configuration and let it act on what is stored. Raises StoreError."""
        before = self.config
        self.config = config
        try:
            self.directory.save_config(self.document())
        except StoreError:
            self.config = before
            raise
        self._compile()
        self.window.window_ns = config.duplicate_window_ns
        self.ingest.configure()
        if before.retention is not config.retention:
            self.sweep(keeps_unwanted=True)
        limits = (config.max_msgs_per_subject, before.max_msgs_per_subject)
        grew = limits[0] != limits[1] and limits[0] > 0
        self.enforce(())
        if grew:
            self.enforce(self.store.subjects(">"))
        if config.allow_msg_ttl and not before.allow_msg_ttl:
            self.expiry.rebuild()
        else:
            self.expiry.on_stored()
        self.save()

    # Recovery

    def recover(self) -> None:
        """Rebuild from the messages what is not saved beside them: ids, ages, torn batches."""
        self._drop_torn_batch()
        self.last_msg_id = self._stored_msg_id()
        store = self.store
        seq = store.next_match([">"], store.seq_at(self.host.now.wall_ns - self.window.window_ns))
        while seq is not None and self.window.window_ns > 0:
            message = self.read(seq)
            msg_id = message and header_blocks.get(message.headers, MSG_ID)
            if message is not None and msg_id:
                self.window.add({msg_id: seq}, message.ts_ns)
            seq = store.next_match([">"], seq + 1)
        self.expiry.rebuild()

    def _stored_msg_id(self) -> str:
        """Give the id of the newest message: empty when it has none or there is no message."""
        if self.store.messages == 0:
            return ""
        message = self.read(self.store.last_seq)
        return (message and header_blocks.get(message.headers, MSG_ID)) or ""

    def _drop_torn_batch(self) -> None:
        """Remove the members of an atomic batch whose commit never reached the disk.

        Writes come back as a prefix, and a batch is flushed in one go, so a torn one can only be
        at the very end.
        """
        torn: list[int] = []
        seq = self.store.last_seq
        batch_id = None
        while seq >= self.store.first_seq:
            message = self.read(seq)
            found = message and header_blocks.get(message.headers, BATCH_ID)
            if message is None or not found or (batch_id is not None and found != batch_id):
                break
            if header_blocks.get(message.headers, BATCH_COMMIT):
                break
            batch_id = found
            torn.append(seq)
            seq -= 1
        for seq in torn:
            self.store.remove(seq)
        if torn:
            self.store.flush()
            self.host.report("batch_torn", {"stream": self.name, "messages": len(torn)})

    # What it says of itself

    def state(self) -> dict[str, Any]:
        """Give the ``state`` object of responses, without subjects and deleted details."""
        store = self.store
        state: dict[str, Any] = {
            "messages": store.messages,
            "bytes": store.size_bytes,
            "first_seq": store.first_seq if store.last_seq or self._began_at else 0,
            "first_ts": wire.format_time(store.first_ts_ns or None),
            "last_seq": store.last_seq,
            "last_ts": wire.format_time(store.last_ts_ns or None),
            "consumer_count": len(self.consumers),
        }
        if store.num_subjects:
            state["num_subjects"] = store.num_subjects
        if store.messages and store.num_deleted:
            state["num_deleted"] = store.num_deleted
        if store.recovery.lost_bytes:
            state["lost"] = {"msgs": [], "bytes": store.recovery.lost_bytes}
        return state

    def info(self, *, shows_server: bool = True) -> dict[str, Any]:
        """Give a StreamInfo; lists leave the server's own metadata out."""
        config = wire.STREAM_CONFIG.write(self.config)
        if shows_server:
            config["metadata"] = stream_config.shown_metadata(config["metadata"])
        info: dict[str, Any] = {
            "config": config,
            "created": wire.format_time(self.created_ns),
            "state": self.state(),
        }
        if self.sources:
            info["sources"] = [source.info() for source in self.sources]
        info["ts"] = wire.format_time(self.host.now.wall_ns)
        return info

    def close(self) -> None:
        """Leave everything on disk and stop."""
        self.is_closed = True
        self.host.forget(self)
        self.host.forget(self.expiry)
        self.directory.close()

    def destroy(self) -> None:
        """Delete the stream and its files."""
        self.is_closed = True
        self.host.forget(self)
        self.host.forget(self.expiry)
        try:
            self.directory.destroy()
        finally:
            # What is left of a stream is a cycle, which may stay; its messages must not.
            self.store, self.window = MemoryStore(), DuplicateWindow(0)
