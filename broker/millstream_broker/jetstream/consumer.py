"""One consumer: which message is next, who gets it, and what comes back.

Next is what waits for redelivery, then the next message at or after ``next_seq`` that the
filters take. ``max_ack_pending`` holds back new messages only. A ``last_per_subject`` consumer
first walks the snapshot of last sequences it took when it was made (``skip``), then goes on
behind it.

``num_pending`` is kept as a counter: stored messages that match raise it, deliveries and
removals ahead of ``next_seq`` lower it; what removes many makes it count anew.

Every change of ``AckState`` is noted as an event and written to the journal at the end of the
round, before a double ack is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ..protocol import headers as header_blocks
from ..routing.port import Message
from ..store.errors import StoreError
from ..store.port import StoredMessage
from ..subjects import subject as subjects
from . import advisory, consumer_state, stream_config, wire
from .ack_intake import AckIntake
from .acks import AckState
from .consumer_state import DELIVERED, EXHAUSTED, SETTLED, Event
from .host import Host
from .model import AckPolicy, ConsumerConfig, ReplayPolicy, Retention
from .pull import PullLine
from .push import PushWindow
from .stream import Stream

MESSAGES_PER_ROUND: Final = 1000
BYTES_PER_ROUND: Final = 4 * 1024 * 1024
EVENTS_PER_DOCUMENT: Final = 8192
_MATCHES_KEPT: Final = 10_000
_ANY_BYTES: Final = 1 << 62


class Consumer:
    """A view of a stream that remembers what was delivered and acked."""

    def __init__(
        self,
        stream: Stream,
        name: str,
        config: ConsumerConfig,
        created_ns: int,
        *,
        start_seq: int,
        skip: Iterable[int] = (),
        next_seq: int | None = None,
        state: AckState | None = None,
        on_inactive: Callable[[Consumer], None],
    ) -> None:
        self.stream = stream
        self.host: Host = stream.host
        self.name = name
        self.config = config
        self.created_ns = created_ns
        self.start_seq = start_seq
        self.next_seq = start_seq if next_seq is None else next_seq
        self.skip: deque[int] = deque(skip)
        self.state = state or AckState(config.ack_policy, self.skip[0] if self.skip else start_seq)
        self.line = PullLine(self)
        self.window = PushWindow(self)
        self.flow_prefix = f"$JS.FC.{stream.name}.{name}"
        self.num_pending = 0
        self.is_closed = False
        self.is_saved = not config.mem_storage
        """Whether it outlives the server."""
        self._on_inactive = on_inactive
        self._ack_head = f"$JS.ACK.{stream.name}.{name}"
        self._events: list[Event] = []
        self._events_since_document = 0
        self._owed: list[str] = []
        self._last_active_ns: int | None = None
        self._last_ack_ns: int | None = None
        self._used_s = self.host.now.mono_s
        self._replay: tuple[float, int] | None = None
        self._patterns: tuple[str, ...] = (">",)
        self._is_filtered = False
        self._matches: dict[str, bool] = {}
        self._unsubscribe: list[Callable[[], None]] = []
        self._filter()
        self.count_pending()

    def _filter(self) -> None:
        self._patterns = self.config.filters or (">",)
        self._is_filtered = ">" not in self._patterns
        self._matches = {}

    def start(self) -> None:
        """Subscribe to requests, acks and flow control answers."""
        subscribe, where = self.host.subscribe, f"{self.stream.name}.{self.name}"
        self._unsubscribe = [subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{where}", self._on_requests)]
        if self.config.ack_policy is not AckPolicy.NONE:
            self._unsubscribe.append(
                subscribe(f"{self._ack_head}.>", AckIntake(self, self._ack_head).receive)
            )
        if self.config.flow_control:
            self._unsubscribe.append(subscribe(f"{self.flow_prefix}.*", self._on_flow))
        self.host.wake(self)

    # What the stream tells

    def wants(self, subject: str) -> bool:
        """Whether the filters take a subject."""
        if not self._is_filtered:
            return True
        found = self._matches.get(subject)
        if found is None:
            found = any(subjects.matches(pattern, subject) for pattern in self._patterns)
            if len(self._matches) >= _MATCHES_KEPT:
                self._matches.clear()
            self._matches[subject] = found
        return found

    def needs(self, seq: int, subject: str) -> bool:
        """Whether a message of an interest stream is still owed to somebody here."""
        if not self.wants(subject):
            return False
        if seq >= self.next_seq or seq in self.skip:
            return True
        return seq in self.state.pending or self.state.deliveries.get(seq, 0) > 0

    def on_stored(self, stored: Sequence[tuple[int, str]]) -> None:
        """Count what is new, and deliver it if somebody waits."""
        next_seq = self.next_seq
        if self._is_filtered:
            self.num_pending += sum(
                1 for seq, subject in stored if seq >= next_seq and self.wants(subject)
            )
        elif stored[0][0] >= next_seq:
            self.num_pending += len(stored)
        else:
            self.num_pending += sum(1 for seq, _ in stored if seq >= next_seq)
        if self.num_pending and (self.line or self.config.is_push):
            self.host.wake(self)

    def on_removed(self, seq: int, subject: str) -> None:
        """Count a message out, or settle it when it was delivered."""
        if self.skip and seq in self.skip:
            self.skip.remove(seq)
            self.num_pending -= 1
        elif seq >= self.next_seq:
            if self.wants(subject):
                self.num_pending -= 1
        elif seq in self.state.pending or seq in self.state.deliveries:
            self._settle(seq)

    def on_reset(self) -> None:
        """Many messages went: settle those that were pending, count the rest."""
        store = self.stream.store
        for seq in [*self.state.pending, *self.state.deliveries]:
            if store.next_match([">"], seq) != seq:
                self._settle(seq)
        if self.skip:
            self.skip = deque(seq for seq in self.skip if store.next_match([">"], seq) == seq)
        self.count_pending()

    def count_pending(self) -> None:
        """Count anew what is still to be delivered for the first time."""
        waiting = self.stream.store.count_matches(self._patterns, self.next_seq)
        for seq, subject in self.stream.unannounced:
            waiting -= seq >= self.next_seq and self.wants(subject)
        self.num_pending = waiting + len(self.skip)

    def _settle(self, seq: int) -> None:
        self.state.settle(seq)
        self._note((SETTLED, seq))
        self.host.wake(self)

    # Delivery

    @property
    def num_available(self) -> int:
        """How many messages could be delivered: new ones and those to be delivered again."""
        return self.num_pending + self.state.queue_length

    @property
    def is_paused(self) -> bool:
        """Whether ``pause_until`` lies ahead."""
        until_ns = self.config.pause_until_ns
        return until_ns is not None and until_ns > self.host.now.wall_ns

    def deliver(self) -> bool:
        """Hand on messages as long as somebody takes them; True when a round's share is used up."""
        if self.is_closed:
            return False
        has_more = False
        if not self.is_paused:
            if self.config.is_push:
                has_more = self._push()
            elif self.line:
                has_more = self._pull()
        self.schedule()
        return has_more

    def _pull(self) -> bool:
        left, left_bytes = MESSAGES_PER_ROUND, BYTES_PER_ROUND
        while left > 0 and left_bytes > 0:
            if not self.line:
                return False
            count, size = self._pull_run(left, left_bytes) or self._pull_one()
            if not count:
                return False
            left -= count
            left_bytes -= size
        return True

    def _pull_one(self) -> tuple[int, int]:
        """Hand on one message, if there is one and somebody takes it; how many, and its bytes."""
        found = self._next()
        if found is None:
            if not self._is_stalled():
                self.line.on_exhausted()
            return 0, 0
        message, count = found
        ack, headers, payload = self._dress(message, count)
        size = _size(message.subject, ack, headers, payload)
        taker = self.line.take(size)
        if taker is None:
            return 0, 0
        self._record(message, count)
        self.host.bus.publish(
            taker.reply, payload, reply=ack, headers=headers, deliver_as=message.subject
        )
        self.line.on_delivered(taker, size)
        return 1, size

    def _pull_run(self, most: int, most_bytes: int) -> tuple[int, int] | None:
        """Hand new messages to the only request there is; how many and their bytes.

        None where what is next, or who gets it, is to be decided message by message.
        """
        config, state = self.config, self.state
        has_acks = config.ack_policy is not AckPolicy.NONE
        room = min(most, self.num_pending)
        if has_acks and config.max_ack_pending > 0:
            room = min(room, config.max_ack_pending - len(state.pending))
        if (
            room <= 0
            or self.skip
            or state.queue_length
            or config.headers_only
            or config.replay_policy is ReplayPolicy.ORIGINAL
            or not (has_acks or self.stream.config.retention is Retention.LIMITS)
            or (taker := self.line.only()) is None
        ):
            return None
        allowed = taker.remaining_bytes if taker.has_byte_limit else _ANY_BYTES
        room = min(room, max(taker.remaining, 1))
        found = self.stream.read_run(self._patterns, self.next_seq, room, min(most_bytes, allowed))
        run: list[Message] = []
        new, head = tuple.__new__, f"{self._ack_head}.1"
        consumer_seq, pending, size = state.delivered_consumer, self.num_pending, 0
        for seq, ts_ns, subject, headers, payload in found:
            consumer_seq += 1
            pending -= 1
            ack = f"{head}.{seq}.{consumer_seq}.{ts_ns}.{pending}"
            grown = size + _size(subject, ack, headers, payload)
            if grown > allowed:
                break
            size = grown
            run.append(new(Message, (subject, ack, headers, payload)))
        if not run:
            return None
        self._record_run([message.seq for message in found[: len(run)]])
        self.host.bus.deliver_all(taker.reply, run)
        self.line.on_delivered(taker, size, len(run))
        return len(run), size

    def _push(self) -> bool:
        if not self.window.look():
            return False
        self._used_s = self.host.now.mono_s
        left_bytes = BYTES_PER_ROUND
        for _ in range(MESSAGES_PER_ROUND):
            if left_bytes <= 0:
                return True
            found = self._next() if self.window.is_open() else None
            if found is None:
                return False
            message, count = found
            ack, headers, payload = self._dress(message, count)
            self._record(message, count)
            self.host.bus.publish(
                self.config.deliver_subject,
                payload,
                reply=ack,
                headers=headers,
                deliver_as=message.subject,
            )
            size = _size(message.subject, ack, headers, payload)
            self.window.on_delivered(size)
            left_bytes -= size
        return True

    def _is_stalled(self) -> bool:
        limit = self.config.max_ack_pending
        return self.config.ack_policy is not AckPolicy.NONE and 0 < limit <= len(self.state.pending)

    def _next(self) -> tuple[StoredMessage, int] | None:
        """Find the next message and the number of this delivery of it; nothing is recorded yet."""
        while (queued := self.state.next_queued()) is not None:
            count = self.state.delivery_count(queued) + 1
            if 0 < self.config.max_deliver < count:
                self._exhaust(queued)
                continue
            message = self.stream.read(queued)
            if message is not None:
                return message, count
            self._settle(queued)
        if self._is_stalled():
            return None
        while self.skip:
            message = self.stream.read(self.skip[0])
            if message is not None:
                return message, 1
            self.skip.popleft()
            self.num_pending -= 1
        store = self.stream.store
        while self.num_pending > 0:
            seq = store.next_match(self._patterns, self.next_seq)
            if seq is None:
                self.num_pending = 0
                break
            message = self.stream.read(seq)
            if message is not None:
                return (message, 1) if self._is_time_for(message) else None
            self.next_seq = seq + 1
            self.num_pending -= 1
        self.next_seq = max(self.next_seq, store.last_seq + 1)
        return None

    def _is_time_for(self, message: StoredMessage) -> bool:
        """With ``replay_policy: original`` messages keep the distance they were stored with."""
        if self._replay is None:
            return True
        started_s, ts_ns = self._replay
        return started_s + (message.ts_ns - ts_ns) / 1e9 <= self.host.now.mono_s

    def _dress(self, message: StoredMessage, count: int) -> tuple[str, bytes | None, bytes]:
        """Make the ack subject, headers and payload a delivery goes out with."""
        pending = self.num_pending - 1 if count == 1 else self.num_pending
        ack = (
            f"{self._ack_head}.{count}.{message.seq}.{self.state.delivered_consumer + 1}"
            f".{message.ts_ns}.{pending}"
        )
        if not self.config.headers_only:
            return ack, message.headers, message.payload
        size = ("Nats-Msg-Size", str(len(message.payload)))
        return ack, header_blocks.add(message.headers, [size]), b""

    def _record(self, message: StoredMessage, count: int) -> None:
        """Note a delivery that is about to go out."""
        seq, now = message.seq, self.host.now
        self.state.deliver(seq, count, now.wall_ns, now.mono_s + self.wait_s(count))
        self._last_active_ns = now.wall_ns
        self._note((DELIVERED, seq, count, now.wall_ns))
        if count > 1:
            return
        self.num_pending -= 1
        if self.skip and self.skip[0] == seq:
            self.skip.popleft()
        else:
            self.next_seq = seq + 1
        if self.config.replay_policy is ReplayPolicy.ORIGINAL:
            self._replay = (now.mono_s, message.ts_ns)
        if self.config.ack_policy is AckPolicy.NONE:
            self._release((seq,))

    def _record_run(self, seqs: Sequence[int]) -> None:
        """Note the first deliveries of new messages; `_pull_run` has asked what `_record` does."""
        now = self.host.now
        self.state.deliver_new(seqs, now.wall_ns, now.mono_s + self.wait_s(1))
        self._last_active_ns = now.wall_ns
        if self.is_saved:
            self._events += [(DELIVERED, seq, 1, now.wall_ns) for seq in seqs]
            self.host.save(self)
        self.num_pending -= len(seqs)
        self.next_seq = seqs[-1] + 1

    def wait_s(self, count: int) -> float:
        """How long the ``count``-th delivery may stay without ack."""
        backoff = self.config.backoff_ns
        if backoff:
            return backoff[min(count - 1, len(backoff) - 1)] / 1e9
        return self.config.ack_wait_ns / 1e9

    def _exhaust(self, seq: int) -> None:
        """A message had all its deliveries: it stays in the stream, and nobody is owed it."""
        count = self.state.delivery_count(seq)
        self.state.exhaust(seq)
        self._note((EXHAUSTED, seq))
        self.advise(
            "MAX_DELIVERIES",
            "max_deliver",
            {"stream_seq": seq, "deliveries": count},
        )

    def advise(self, event: str, kind: str, facts: dict[str, Any]) -> None:
        """Publish an advisory about one message if somebody listens."""
        where = f"CONSUMER.{event}.{self.stream.name}.{self.name}"
        named = {"stream": self.stream.name, "consumer": self.name, **facts}
        advisory.publish(self.host, where, kind, named)

    def heartbeat(self, pairs: Iterable[tuple[str, str]] = ()) -> bytes:
        """Make an idle heartbeat."""
        return header_blocks.status(
            100,
            "Idle Heartbeat",
            [
                ("Nats-Last-Consumer", str(self.state.delivered_consumer)),
                ("Nats-Last-Stream", str(self.next_seq - 1)),
                *pairs,
            ],
        )

    # What clients send

    def _on_requests(self, messages: Sequence[Message]) -> None:
        if self.is_closed:
            return
        self.on_used()
        for message in messages:
            if message.reply is None:
                continue
            if self.config.is_push:
                block = header_blocks.status(409, "Consumer is push based")
                self.host.bus.publish(message.reply, headers=block)
                continue
            self.line.receive(message.reply, message.headers, message.payload)
            if self.num_available and not self.is_paused:
                self._deliver_now()
        self.host.wake(self)

    def _deliver_now(self) -> None:
        """Serve a request before the next one of the same read is looked at."""
        if self._pull():
            self.host.wake(self)

    def _on_flow(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.window.on_answer(message.subject)
        self.host.wake(self)

    def on_used(self) -> None:
        """A client used the consumer: it is not inactive."""
        self._used_s = self.host.now.mono_s

    def on_acked(self, event: Event, settled: Iterable[int]) -> None:
        """Nothing is owed for these messages any more."""
        self._last_ack_ns = self.host.now.wall_ns
        self._note(event)
        self._release(settled)

    def owe(self, reply: str) -> None:
        """Answer a double ack at the end of the round, when it is written down."""
        self._owed.append(reply)
        self.host.save(self)

    def _release(self, seqs: Iterable[int]) -> None:
        """Tell the stream that nothing is owed for these any more."""
        retention = self.stream.config.retention
        if retention is Retention.LIMITS:
            return
        for seq in seqs:
            subject = ""
            if retention is Retention.INTEREST:
                message = self.stream.read(seq)
                if message is None:
                    continue
                subject = message.subject
            self.stream.release(seq, subject)

    # Time

    def schedule(self) -> None:
        """Set the timer to whatever comes first."""
        times = [
            self.state.next_deadline() if self.config.ack_policy is not AckPolicy.NONE else None,
        ]
        if self.is_paused:
            assert self.config.pause_until_ns is not None
            times.append(self.host.mono_of(self.config.pause_until_ns))
        if self.config.is_push:
            has_messages = self.num_available > 0
            times.append(self.window.next_deadline(has_messages=has_messages))
        else:
            times.append(self.line.next_deadline())
        if self._replay is not None and self.num_pending and not self._is_stalled():
            times.append(self._replay_at())
        if self.config.inactive_threshold_ns:
            times.append(self._used_s + self.config.inactive_threshold_ns / 1e9)
        self.host.timers.set(self, min((at for at in times if at is not None), default=None))

    def _replay_at(self) -> float | None:
        """Give the time the next message of an original-speed replay is due."""
        seq = self.stream.store.next_match(self._patterns, self.next_seq)
        message = None if seq is None else self.stream.read(seq)
        if message is None or self._replay is None:
            return None
        at_s = self._replay[0] + (message.ts_ns - self._replay[1]) / 1e9
        return at_s if at_s > self.host.now.mono_s else None

    def on_timer(self) -> None:
        """Redeliver what is late, end what has expired, and go when nobody comes any more."""
        if self.is_closed:
            return
        now_s = self.host.now.mono_s
        self.state.expire(now_s)
        if self.config.is_push:
            if self.window.look():
                self._used_s = now_s
            self.window.beat()
        else:
            self.line.expire()
            if self.line:
                self._used_s = now_s
        threshold_s = self.config.inactive_threshold_ns / 1e9
        if threshold_s and now_s - self._used_s >= threshold_s:
            self._on_inactive(self)
            return
        self.host.wake(self)

    # Configuration and life

    def update(self, config: ConsumerConfig) -> None:
        """Take a checked configuration. Raises StoreError."""
        before = self.config
        self.config = config
        try:
            self.save_document()
        except StoreError:
            self.config = before
            raise
        if before.filters != config.filters:
            self._filter()
            self.count_pending()
            self.stream.sweep()
        if (before.ack_wait_ns, before.backoff_ns) != (config.ack_wait_ns, config.backoff_ns):
            self.restart_waits()
        self._used_s = self.host.now.mono_s
        self.host.wake(self)

    def restart_waits(self) -> None:
        """Count every pending message's wait from its last delivery."""
        self.state.restart_waits(
            {
                seq: self.host.mono_of(entry.sent_ns) + self.wait_s(self.state.delivery_count(seq))
                for seq, entry in self.state.pending.items()
            }
        )

    def recover(self, entries: Iterable[bytes]) -> None:
        """Replay the journal on what the document held, then agree with the stream's content.

        What was acked and is still in a work-queue or interest stream (the ack was written, the
        removal not) goes now.
        """
        store = self.stream.store
        for entry in entries:
            events = consumer_state.decode_events(entry)
            consumer_state.replay(self.state, events)
            for kind, seq, *facts in events:
                if kind == DELIVERED and facts[0] == 1:
                    if seq in self.skip:
                        self.skip.remove(seq)
                    else:
                        self.next_seq = seq + 1
            self._events_since_document += len(events)
        self.state.delivered_stream = min(self.state.delivered_stream, max(store.last_seq, 0))
        self.restart_waits()
        self.on_reset()

    def release_acked(self) -> None:
        """After a restart, let go what was acked and not removed before the crash."""
        if self.stream.config.retention is Retention.LIMITS:
            return
        store = self.stream.store
        seq = store.next_match(self._patterns, self.start_seq)
        while seq is not None and seq < self.next_seq:
            owed = seq in self.state.pending or seq in self.state.deliveries or seq in self.skip
            if not owed:
                self._release([seq])
            seq = store.next_match(self._patterns, seq + 1)

    def _note(self, event: Event) -> None:
        if self.is_saved:
            self._events.append(event)
            self.host.save(self)

    def save(self) -> None:
        """Write the round's events down, then answer the double acks that waited for it."""
        if self.is_closed:
            return
        directory = self.stream.directory
        try:
            if self._events:
                self._events_since_document += len(self._events)
                # A document costs what is pending: it comes after as many events at least.
                if self._events_since_document >= max(
                    EVENTS_PER_DOCUMENT, 4 * len(self.state.pending)
                ):
                    self.save_document()
                else:
                    entry = consumer_state.encode_events(self._events)
                    self._events = []
                    directory.journal_consumer(self.name, entry)
                    directory.flush_consumers()
        except StoreError as error:
            facts = {"stream": self.stream.name, "consumer": self.name, "error": str(error)}
            self.host.report("consumer_not_saved", facts)
            self._owed = []
            return
        owed, self._owed = self._owed, []
        for reply in owed:
            self.host.bus.publish(reply)

    def save_document(self) -> None:
        """Write the whole state and begin a new journal. Raises StoreError."""
        if not self.is_saved:
            return
        document = consumer_state.encode(
            self.config, self.created_ns, self.start_seq, self.next_seq, self.state, self.skip
        )
        self.stream.directory.save_consumer(self.name, document)
        self._events = []
        self._events_since_document = 0

    def close(self, code: int, text: str, *, shows_pending: bool = False) -> None:
        """Stop: waiting requests end with the status, nothing is taken any more."""
        self.line.end(code, text, shows_pending=shows_pending)
        self.is_closed = True
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        self.stream.readers.pop(self, None)
        self.host.forget(self)

    def info(self, *, shows_server: bool = True) -> dict[str, Any]:
        """Give a ConsumerInfo; lists leave the server's own metadata out."""
        state, host = self.state, self.host
        if not self.config.is_push:
            self.line.expire()
        config = wire.CONSUMER_CONFIG.write(self.config)
        if shows_server:
            config["metadata"] = stream_config.shown_metadata(config["metadata"])
        info: dict[str, Any] = {
            "stream_name": self.stream.name,
            "name": self.name,
            "created": wire.format_time(self.created_ns),
            "config": config,
            "delivered": _pair(
                state.delivered_consumer, state.delivered_stream, self._last_active_ns
            ),
            "ack_floor": _pair(state.floor_consumer, state.floor_stream, self._last_ack_ns),
            "num_ack_pending": len(state.pending),
            "num_redelivered": len(state.deliveries),
            "num_waiting": len(self.line),
            "num_pending": self.num_pending,
        }
        if self.config.is_push and self.window.look():
            info["push_bound"] = True
        if self.is_paused:
            assert self.config.pause_until_ns is not None
            info["paused"] = True
            info["pause_remaining"] = self.config.pause_until_ns - host.now.wall_ns
        info["ts"] = wire.format_time(host.now.wall_ns)
        return info


def _pair(consumer_seq: int, stream_seq: int, active_ns: int | None) -> dict[str, Any]:
    pair: dict[str, Any] = {"consumer_seq": consumer_seq, "stream_seq": stream_seq}
    if active_ns is not None:
        pair["last_active"] = wire.format_time(active_ns)
    return pair


def _size(subject: str, ack: str, headers: bytes | None, payload: bytes) -> int:
    """Count a delivery as ``max_bytes`` and flow control count it."""
    size = len(ack) + len(payload) + (len(headers) if headers else 0)
    return size + (len(subject) if subject.isascii() else len(subject.encode("utf-8", "replace")))
