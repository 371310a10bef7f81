"""What leaves a stream by its age: ``max_age``, Nats-TTL, and the markers left behind.

Two clocks run: the stream's ``max_age`` counted from the store time of the oldest message, and
a heap of the messages that carry a time to live. ``Nats-TTL: never`` exempts a message from the
first. When the last message of a subject leaves this way and the stream has
``subject_delete_marker_ttl``, an empty message takes its place, so that readers of the subject
see the deletion; nats-server 2.15.1 leaves no marker for deletes and purges, whatever their
cause.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.errors import StoreError
from ..store.port import StoredMessage
from .ttl import NEVER, InvalidTtl, duration_text, parse_ttl

if TYPE_CHECKING:
    from .stream import Stream

TTL = "Nats-TTL"
MARKER_REASON = "Nats-Marker-Reason"
ROLLUP = "Nats-Rollup"


class Expiry:
    """The deadlines of one stream's messages."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._deadlines: list[tuple[int, int]] = []
        self._exempt: set[int] = set()

    def add(self, seq: int, ttl_ns: int, ts_ns: int) -> None:
        """A message with a time to live was stored."""
        if ttl_ns == NEVER:
            self._exempt.add(seq)
        else:
            heapq.heappush(self._deadlines, (ts_ns + ttl_ns, seq))

    def on_stored(self) -> None:
        """Set the timer anew: messages came or went."""
        next_ns = self._next()
        stream = self._stream
        at_s = None if next_ns is None else stream.host.mono_of(next_ns)
        stream.host.timers.set(self, at_s)

    def rebuild(self) -> None:
        """Read every message's time to live again (after a restart or a failed write)."""
        self._deadlines = []
        self._exempt = set()
        stream = self._stream
        store = stream.store
        if stream.config.allow_msg_ttl:
            seq = store.next_match([">"], 1)
            while seq is not None:
                message = stream.read(seq)
                text = message and header_blocks.get(message.headers, TTL)
                if message is not None and text:
                    self._add_stored(message, text)
                seq = store.next_match([">"], seq + 1)
        self.on_stored()

    def _add_stored(self, message: StoredMessage, text: str) -> None:
        try:
            self.add(message.seq, parse_ttl(text), message.ts_ns)
        except InvalidTtl:
            return  # stored before the stream allowed TTLs, when the header meant nothing

    def _oldest(self) -> int | None:
        """Give the oldest message ``max_age`` may take."""
        store = self._stream.store
        seq = store.next_match([">"], 1)
        while seq is not None and seq in self._exempt:
            seq = store.next_match([">"], seq + 1)
        return seq

    def _next(self) -> int | None:
        """Give the nearest wall-clock time at which something leaves."""
        stream = self._stream
        nearest = self._deadlines[0][0] if self._deadlines else None
        if stream.config.max_age_ns > 0 and stream.store.messages:
            if not self._exempt:
                ts_ns: int | None = stream.store.first_ts_ns
            else:
                seq = self._oldest()
                oldest = None if seq is None else stream.read(seq)
                ts_ns = None if oldest is None else oldest.ts_ns
            if ts_ns is not None:
                at_ns = ts_ns + stream.config.max_age_ns
                nearest = at_ns if nearest is None else min(nearest, at_ns)
        return nearest

    def on_timer(self) -> None:
        """Remove what is due."""
        stream = self._stream
        if stream.is_closed:
            return
        now_ns = stream.host.now.wall_ns
        gone: list[str] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            seq = heapq.heappop(self._deadlines)[1]
            self._remove(seq, gone)
        if stream.config.max_age_ns > 0:
            young_seq = stream.store.seq_at(now_ns - stream.config.max_age_ns + 1)
            oldest = self._oldest()
            while oldest is not None and oldest < young_seq:
                self._remove(oldest, gone)
                oldest = self._oldest()
        self._exempt = {seq for seq in self._exempt if seq >= stream.store.first_seq}
        self._mark(gone)
        self.on_stored()

    def _remove(self, seq: int, gone: list[str]) -> None:
        """Remove one message; note its subject in ``gone`` if a marker may take its place."""
        stream = self._stream
        marks = stream.config.subject_delete_marker_ttl_ns > 0 and not stream.config.sealed
        message = stream.read(seq) if marks else None
        stream.remove(seq)
        if message is not None and header_blocks.get(message.headers, MARKER_REASON) is None:
            gone.append(message.subject)

    def _mark(self, gone: list[str]) -> None:
        """Leave markers for subjects that have no message left."""
        stream = self._stream
        ttl_ns = stream.config.subject_delete_marker_ttl_ns
        marked = False
        for subject in gone:
            if stream.store.subject_state(subject) is not None:
                continue
            marked = True
            block = header_blocks.add(
                None, [(MARKER_REASON, "MaxAge"), (TTL, duration_text(ttl_ns)), (ROLLUP, "sub")]
            )
            ts_ns = stream.now_ns()
            seq = stream.append([Message(subject, None, block, b"")], ts_ns)
            self.add(seq, ttl_ns, ts_ns)
            stream.last_msg_id = ""
        if marked:
            try:
                stream.announce()
            except StoreError as error:
                facts = {"stream": stream.name, "error": str(error)}
                stream.host.report("store_failed", facts)
