"""Sourcing: a stream that takes messages from other streams of the same server.

A source is a reader of its origin: it walks the origin's messages that its filters take, stores
them in its own stream under new sequences, and names where each came from in
``Nats-Stream-Source``. That header is also how it finds its place again after a restart: the
newest one in the stream says where to go on. The last field identifies the origin's
incarnation, so that a stream deleted and made again under its name is read from its beginning.
A message may be gone by then, with its header (a work queue whose messages were all acked), so the
places are also saved beside the messages, after each round of taking over; the higher one counts.

A work-queue or interest origin gives a message up when it is stored here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from ..protocol import headers as header_blocks
from ..store.errors import StoreError
from ..subjects import subject as subjects
from ..subjects.transform import Transform
from . import wire
from .codes import ApiError
from .model import Retention, StreamConfig, StreamSource
from .publish import STREAM_SOURCE
from .stream import Stream

MESSAGES_PER_ROUND: Final = 1000
RETRY_S: Final = 10.0
_NOT_CARRIED: Final = (
    STREAM_SOURCE,
    "Nats-Expected-Stream",
    "Nats-Expected-Last-Sequence",
    "Nats-Expected-Last-Subject-Sequence",
    "Nats-Expected-Last-Subject-Sequence-Subject",
    "Nats-Expected-Last-Msg-Id",
    "Nats-Batch-Id",
    "Nats-Batch-Sequence",
    "Nats-Batch-Commit",
)
_SEPARATOR: Final = "\f"


class Source:
    """One origin of one stream."""

    def __init__(self, stream: Stream, config: StreamSource) -> None:
        self._stream = stream
        self.config = config
        self.origin: Stream | None = None
        self.next_seq = 1
        self._last_found: tuple[int, str] | None = None
        self._last_active_ns: int | None = None
        self._error: ApiError | None = None
        self._rules: list[tuple[str, Transform | None]] = []
        if config.filter_subject:
            self._rules = [(config.filter_subject, None)]
        for rule in config.subject_transforms:
            made = None
            if rule.dest:
                made = Transform(rule.src, rule.dest, random=stream.host.random)
            self._rules.append((rule.src or ">", made))
        self._rules = self._rules or [(">", None)]
        self._patterns = [pattern for pattern, _ in self._rules]
        dests = [rule.dest for rule in config.subject_transforms]
        self.key = (config.name, _SEPARATOR.join(self._patterns), _SEPARATOR.join(dests) or ">")

    # A reader of the origin

    def on_stored(self, stored: Sequence[tuple[int, str]]) -> None:
        """Fetch what is new."""
        self._stream.host.wake(self)

    def on_removed(self, seq: int, subject: str) -> None:
        """What is gone from the origin stays here."""

    def on_reset(self) -> None:
        """What is gone from the origin stays here."""

    def wants(self, subject: str) -> bool:
        """Whether the filters take a subject."""
        return any(subjects.matches(pattern, subject) for pattern in self._patterns)

    def needs(self, seq: int, subject: str) -> bool:
        """Whether a message was not taken over yet."""
        return seq >= self.next_seq and self.wants(subject)

    # Life

    def attach(self, origin: Stream) -> None:
        """Begin to read, where the stream's own headers say, or where the configuration says."""
        self.origin = origin
        origin.readers[self] = None
        found = self._last_found
        if found is not None and found[1] in ("", identity(origin)):
            self.next_seq = found[0] + 1
        elif self.config.opt_start_time_ns is not None:
            self.next_seq = origin.store.seq_at(self.config.opt_start_time_ns)
        else:
            self.next_seq = max(self.config.opt_start_seq, 1)
        self._stream.host.wake(self)

    def detach(self) -> None:
        """Stop reading; the place is kept."""
        if self.origin is not None:
            self._last_found = self.place
            self.origin.readers.pop(self, None)
        self.origin = None
        self._stream.host.forget(self)

    @property
    def place(self) -> tuple[int, str] | None:
        """The origin's last sequence that was taken over or passed, and which origin it was."""
        if self.origin is not None and self.next_seq > 1:
            return self.next_seq - 1, identity(self.origin)
        return self._last_found

    def found(self, seq: int, origin_identity: str) -> None:
        """Take over the place the stream's headers name, or what was saved, if it is further."""
        before = self._last_found
        if before is None or before[1] != origin_identity or before[0] < seq:
            self._last_found = (seq, origin_identity)

    # Work

    def on_timer(self) -> None:
        """Try again what was refused."""
        self._stream.host.wake(self)

    def deliver(self) -> bool:
        """Take over what is there; True when more is left."""
        origin, target = self.origin, self._stream
        if origin is None or origin.is_closed or target.is_closed:
            return False
        begin = self.next_seq
        taken: list[tuple[int, str]] = []
        self._error = None
        while len(taken) < MESSAGES_PER_ROUND:
            seq = origin.store.next_match(self._patterns, self.next_seq)
            if seq is None:
                break
            try:
                subject = self._take(origin, seq)
            except (ApiError, StoreError) as error:
                self._stall(error)
                break
            self.next_seq = seq + 1
            if subject is not None:
                taken.append((seq, subject))
        if not taken:
            return False
        try:
            target.announce()
        except StoreError as error:
            self.next_seq = begin
            self._stall(error)
            return False
        self._last_active_ns = target.host.now.wall_ns
        try:
            save(target)
        except StoreError as error:
            self._stall(error)
        if origin.config.retention is not Retention.LIMITS:
            for seq, subject in taken:
                origin.release(seq, subject)
        return len(taken) == MESSAGES_PER_ROUND

    def _stall(self, error: ApiError | StoreError) -> None:
        """The stream takes nothing now: say so, and try again later."""
        host = self._stream.host
        self._error = error if isinstance(error, ApiError) else ApiError(10077, err=str(error))
        facts = {"stream": self._stream.name, "source": self.config.name, "error": str(error)}
        host.report("source_stalled", facts)
        host.timers.set(self, host.now.mono_s + RETRY_S)

    def _take(self, origin: Stream, seq: int) -> str | None:
        """Store one message of the origin here; its subject there, None when it is not there."""
        message = origin.read(seq)
        if message is None:
            return None
        subject = message.subject
        for pattern, transform in self._rules:
            if subjects.matches(pattern, subject):
                if transform is not None:
                    subject = transform.apply(subject) or subject
                break
        _, patterns, dests = self.key
        value = f"{origin.name} {seq} {patterns} {dests} {message.subject} {identity(origin)}"
        block = header_blocks.remove(message.headers, _NOT_CARRIED)
        block = header_blocks.add(block, [(STREAM_SOURCE, value)])
        self._stream.ingest.accept(subject, block, message.payload)
        return message.subject

    def info(self) -> dict[str, Any]:
        """Give the source's object in STREAM.INFO.

        Before its first message a source is not behind: nats-server learns the lag from what comes.
        """
        lag = 0
        if self.origin is not None and self._last_active_ns is not None:
            lag = self.origin.store.count_matches(self._patterns, self.next_seq)
        active = -1
        if self._last_active_ns is not None:
            active = self._stream.host.now.wall_ns - self._last_active_ns
        info: dict[str, Any] = {"name": self.config.name, "lag": lag, "active": active}
        if (place := self.place) is not None:
            info["seq"] = place[0]
        if self.config.filter_subject:
            info["filter_subject"] = self.config.filter_subject
        if self.config.subject_transforms:
            rules = self.config.subject_transforms
            info["subject_transforms"] = [wire.SUBJECT_TRANSFORM.write(rule) for rule in rules]
        if self._error is not None:
            info["error"] = self._error.document()
        return info


def identity(stream: Stream) -> str:
    """Tell one incarnation of a stream from another of the same name: 8 letters or digits."""
    digest = hashlib.sha256(f"{stream.name} {stream.created_ns}".encode())
    return digest.hexdigest()[:8]


def save(stream: Stream) -> None:
    """Keep every source's place beside the stream's messages. Raises StoreError."""
    places = [(source.key, *place) for source in stream.sources if (place := source.place)]
    stream.directory.save_sources(wire.encode(places))


def recover(stream: Stream) -> None:
    """Find every source's place: what was saved, and the headers of the newest messages."""
    by_key = {source.key: source for source in stream.sources}
    saved = stream.directory.load_sources() if by_key else b""
    for key, seq, origin_identity in msgspec.json.decode(saved or b"[]"):
        if tuple(key) in by_key:
            by_key[tuple(key)].found(seq, origin_identity)
    missing = {source.key: source for source in stream.sources}
    seq = stream.store.last_seq
    while missing and seq >= stream.store.first_seq and stream.store.messages:
        message = stream.read(seq)
        value = message and header_blocks.get(message.headers, STREAM_SOURCE)
        seq -= 1
        if not value:
            continue
        fields = value.split(" ")
        if len(fields) >= 5 and fields[1].isdigit():
            source = missing.pop((fields[0], fields[2], fields[3]), None)
            if source is not None:
                source.found(int(fields[1]), fields[5] if len(fields) > 5 else "")


def find_cycle(config: StreamConfig, configs: Iterable[StreamConfig]) -> bool:
    """Whether the stream would, over its sources, source from itself."""
    origins = {other.name: [source.name for source in other.sources] for other in configs}
    origins[config.name] = [source.name for source in config.sources]
    open_names, seen = list(origins[config.name]), set()
    while open_names:
        name = open_names.pop()
        if name == config.name:
            return True
        if name not in seen:
            seen.add(name)
            open_names.extend(origins.get(name, ()))
    return False
