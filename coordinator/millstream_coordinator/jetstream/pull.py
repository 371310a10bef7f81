"""Standing pulls: one long-lived pull request per consumer, and what comes of it.

A request asks for many messages and a long time, with idle heartbeats, and is renewed before either
runs out; two overlap for a while, which costs nothing. nats-py's ``fetch`` would wait out a timeout
whenever fewer messages than asked for may be under way.

Idle heartbeats carry the consumer sequence of the last delivery (``Nats-Last-Consumer``), so a
delivery that was lost at the end of a burst is noticed without another one. Silence means that what
should send them is not there any more, or never got the request: it is asked again.

**What a delivery costs.** nats-py puts each message into a queue and wakes a task that awaits a
callback: two microseconds per message that nothing here needs. So a pull's subscription gets a
queue that hands over at once (`_Straight`); where a client's subscription has no such queue, its
callback is used.

**Back-pressure.** How many messages may be under way the consumer's ``max_ack_pending`` says; how
many bytes, the pull's **window**: a share of the member's ``max_pending_bytes``. A request asks for
no more than what is left of it (``max_bytes``); the server ends a request that the next message
would burst (409 Message Size Exceeds MaxBytes, seen on 2.15.1), and the next one is sent when half
of the window is acked again. A message that is larger than the whole window comes alone.

`StandingPull` is one of them, whatever it is for (the watch has one too); `Pulls` are those of the
partitions of this member, whose messages go to the machine. A pull is registered in the moment its
command is executed and taken off in the moment of ClosePull; what only takes time, subscribing,
looks afterwards whether it is still wanted.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..errors import GroupError
from ..model import NO_HEADERS, Message
from ..ports import Broken, Delivered, OpenPull, PullEnded, PullIdle
from .api import pass_cancellation
from .wire import NS, Wire, unsubscribe

logger = logging.getLogger(__name__)

PULL_BATCH = 10_000
PULL_EXPIRES_S = 60.0
PULL_HEARTBEAT_S = 1.0
PULL_HEARTBEAT_MAX_S = 5.0
PULL_HEARTBEATS_PER_S = 100
"""An idle member with many partitions hears no more than about so many of them, by letting each
come less often, down to every `PULL_HEARTBEAT_MAX_S`."""
SILENT_HEARTBEATS = 3
"""So many heartbeats missed: what should send them is not there any more."""
FRESH_S = 0.2
"""So long after its first request nobody there means: not yet. A cluster says that a consumer is
made up to 26 ms before the node that leads it listens (seen on 2.15.1), more when it is busy."""
FRESH_PAUSE_S = 0.01
"""How long after such an answer it is asked again."""

WINDOW_MIN_BYTES = 64 * 1024
"""A pull's share of the member's bytes is never smaller."""
_OVERHEAD_BYTES = 256
"""What the server counts beside a body: subject, reply, headers; roughly."""


def _request(heartbeat_s: float, batch: int = PULL_BATCH, max_bytes: int = 0) -> bytes:
    request = {
        "batch": batch,
        "expires": int(PULL_EXPIRES_S * NS),
        "idle_heartbeat": int(heartbeat_s * NS),
    }
    if max_bytes:
        request["max_bytes"] = max_bytes
    return msgspec.json.encode(request)


class _Straight(asyncio.Queue[Msg]):
    """A subscription's queue that keeps nothing: what is put in is taken at once."""

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def put_nowait(self, item: Msg) -> None:
        """Hand over; nothing may come out of it, this is the client's read loop."""
        try:
            self._take(item)
        except Exception:
            logger.exception("a message could not be taken", extra={"event": "delivery_failed"})


class StandingPull:
    """A standing pull on one consumer.

    ``on_message`` gets each message; ``on_idle`` the consumer sequence of the last delivery when
    nothing is under way; ``on_end`` why nothing more will come. All are called on the loop.
    """

    def __init__(
        self,
        wire: Wire,
        stream: str,
        consumer: str,
        on_message: Callable[[Msg], None],
        on_idle: Callable[[int], None],
        on_end: Callable[[str], None],
        window: "Window | None" = None,
    ) -> None:
        """``window`` None: bytes are not bounded."""
        self._window = window
        self._wire = wire
        self._subject = wire.api.subject(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")
        self._on_message = on_message
        self._on_idle = on_idle
        self._on_end = on_end
        self._inbox = wire.client.new_inbox()
        self._subscription: Subscription | None = None
        self._is_closed = False
        self._left = 0
        self._left_before = 0
        """At the last check: messages are a sign of life too; no heartbeats come beside them."""
        self._is_waiting_for_room = False
        self._is_too_large = False
        self._heartbeat_s = PULL_HEARTBEAT_S
        self._renew_at = 0.0
        self._heard_at = 0.0
        self._fresh_until = 0.0

    async def open(self) -> None:
        """Subscribe and send the first request, unless it is closed meanwhile."""
        subscription = None
        try:
            subscription = await self._wire.client.subscribe(
                self._inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
            )
            pass_cancellation()
            if isinstance(getattr(subscription, "_pending_queue", None), asyncio.Queue):
                subscription._pending_queue = _Straight(self._take)
        except nats.errors.Error as error:
            if not self._is_closed:
                self._on_end(str(error))
            return
        finally:
            if self._is_closed and subscription is not None:
                await unsubscribe(subscription)
        if not self._is_closed:
            self._subscription = subscription
            self._fresh_until = self._wire.now + FRESH_S
            self._renew()

    async def close(self) -> None:
        """Stop: nothing is told from now on."""
        self._is_closed = True
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await unsubscribe(subscription)

    def check(self, now: float) -> None:
        """Renew the request if it is about to run out, or seems to have been lost."""
        if self._subscription is None:
            return
        if self._left != self._left_before:
            self._left_before = self._left
            self._heard_at = now
        silent_s = now - self._heard_at
        if now >= self._renew_at or silent_s > SILENT_HEARTBEATS * self._heartbeat_s:
            self._renew()

    def go_on(self) -> None:
        """There is room in the window again."""
        if self._is_waiting_for_room:
            self._renew()

    def _renew(self) -> None:
        if self._subscription is None:
            return
        now = self._wire.now
        self._renew_at = now + PULL_EXPIRES_S * 0.8
        self._heard_at = now
        self._left = PULL_BATCH
        self._heartbeat_s = PULL_HEARTBEAT_S
        if self._window is None:
            request = _request(PULL_HEARTBEAT_S)
        else:
            self._heartbeat_s = self._window.heartbeat_s
            self._is_waiting_for_room = self._window.is_full
            if self._is_waiting_for_room:
                return
            if self._is_too_large:
                # One alone, whatever its size: nothing else is under way.
                self._is_too_large = False
                self._left = 1
                request = _request(self._heartbeat_s, 1)
            else:
                request = _request(self._heartbeat_s, max_bytes=self._window.room)
        self._wire.publish(self._subject, request, self._inbox)

    async def _receive(self, received: Msg) -> None:
        self._take(received)

    def _take(self, received: Msg) -> None:
        if self._is_closed:
            return
        if not received.reply.startswith("$JS.ACK."):
            self._heard_at = self._wire.now
            self._on_status(received.headers or {})
            return
        self._left -= 1
        self._on_message(received)
        if self._left < PULL_BATCH // 2:
            self._renew()

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers.get("Status", "")
        text = headers.get("Description", "")
        if status == "100":
            last = headers.get("Nats-Last-Consumer", "")
            if last.isdecimal():
                self._on_idle(int(last))
        elif status == "503" and self._wire.now < self._fresh_until:
            self._wire.later(FRESH_PAUSE_S, self._renew)
        elif status == "503" or "Consumer Deleted" in text or status == "400":
            self._on_end(f"{status} {text}".strip())
        elif "MaxBytes" in text:
            if self._window is not None:
                self._is_too_large = not self._window.pending_bytes
                self._is_waiting_for_room = not self._is_too_large
                if self._is_too_large:
                    self._renew()
        elif "Leadership Change" in text or "MaxWaiting" in text:
            self._wire.later(PULL_HEARTBEAT_S, self._renew)


class Window:
    """What one pull may have delivered and not acked, in bytes: a share of its member's."""

    def __init__(self, limit_bytes: int, num_pulls: Callable[[], int]) -> None:
        """``num_pulls`` share ``limit_bytes``; asked each time, for pulls come and go."""
        self.pending_bytes = 0
        self._limit_bytes = limit_bytes
        self._num_pulls = num_pulls
        self._sizes: dict[int, int] = {}

    @property
    def heartbeat_s(self) -> float:
        """How often this pull is to hear that nothing is there."""
        wanted = self._num_pulls() / PULL_HEARTBEATS_PER_S
        return min(PULL_HEARTBEAT_MAX_S, max(PULL_HEARTBEAT_S, wanted))

    def _max_bytes(self) -> int:
        return max(WINDOW_MIN_BYTES, self._limit_bytes // max(1, self._num_pulls()))

    @property
    def room(self) -> int:
        """Bytes that may still come, at least 1."""
        return max(1, self._max_bytes() - self.pending_bytes)

    @property
    def is_full(self) -> bool:
        """Whether less than half is free."""
        return self.pending_bytes * 2 > self._max_bytes()

    def add(self, messages: Iterable[Message]) -> None:
        """Note deliveries; a repeated one counts once."""
        sizes = self._sizes
        for message in messages:
            if message.seq not in sizes:
                size = sizes[message.seq] = len(message.data) + _OVERHEAD_BYTES
                self.pending_bytes += size

    def remove(self, message: Message) -> None:
        """Note an ack."""
        self.pending_bytes -= self._sizes.pop(message.seq, 0)


class Pulls:
    """The standing pulls of a member's partitions."""

    def __init__(self, wire: Wire, stream_of: Callable[[int], str]) -> None:
        """``stream_of`` names the stream a partition's consumer lives on."""
        self._wire = wire
        self._stream_of = stream_of
        self._pulls: dict[int, _PartitionPull] = {}
        self._by_partition: dict[int, _PartitionPull] = {}

    @property
    def numbers(self) -> list[int]:
        """Which pulls are open."""
        return list(self._pulls)

    def open(self, command: OpenPull) -> None:
        """Begin to pull; what comes is told to the machine."""
        stream = self._stream_of(command.partition)
        pull = _PartitionPull(self._wire, stream, command, self._pulls.__len__)
        self._pulls[command.pull] = pull
        self._by_partition[command.partition] = pull
        self._wire.start(pull.standing.open(), "pull")

    def acked(self, messages: Iterable[Message]) -> None:
        """Make room for what comes next."""
        touched: dict[int, _PartitionPull] = {}
        for message in messages:
            pull = self._by_partition.get(message.partition)
            if pull is not None:
                pull.window.remove(message)
                touched[message.partition] = pull
        for pull in touched.values():
            pull.standing.go_on()

    def close(self, number: int) -> None:
        """Stop a pull, however far it came."""
        pull = self._pulls.pop(number, None)
        if pull is not None:
            if self._by_partition.get(pull.command.partition) is pull:
                del self._by_partition[pull.command.partition]
            pull.is_closed = True
            self._wire.start(pull.standing.close(), "close pull")

    async def close_all(self) -> None:
        """Stop all of them."""
        pulls = list(self._pulls.values())
        self._pulls.clear()
        self._by_partition.clear()
        for pull in pulls:
            pull.is_closed = True
            await pull.standing.close()

    def check(self, now: float) -> None:
        """Renew what is about to run out or has fallen silent."""
        for pull in self._pulls.values():
            pull.standing.check(now)


class _PartitionPull:
    """The pull of one partition under one epoch."""

    def __init__(
        self, wire: Wire, stream: str, command: OpenPull, num_pulls: Callable[[], int]
    ) -> None:
        assert wire.rule is not None
        self.is_closed = False
        self.command = command
        self.window = Window(wire.settings.limits.max_pending_bytes, num_pulls)
        self.standing = StandingPull(
            wire,
            stream,
            command.name,
            self._on_message,
            self._on_idle,
            self._on_end,
            self.window,
        )
        self._wire = wire
        self._buffer: list[Message] = []
        self._last_pending = "0"
        rule = wire.rule
        self._key_of = rule.reader()
        partitions = wire.settings.config.partitions
        self._mark = command.partition % partitions
        finest = max(rule.finer, default=0)
        self._finest_of = None if not finest else partial(rule.partition_of, level=finest)

    def _on_message(self, received: Msg) -> None:
        try:
            message = self._message(received)
        except (GroupError, ValueError, IndexError) as error:
            fault = error if isinstance(error, GroupError) else GroupError(f"unreadable: {error}")
            self._wire.tell(Broken(fault))
            return
        if not self._buffer:
            self._wire.soon(self._flush)
        self._buffer.append(message)

    def _message(self, received: Msg) -> Message:
        # As `parse_ack`, without making anything of it, and by place: this runs for every message.
        reply = received.reply
        tokens = reply.split(".")
        first = 4 if len(tokens) == 9 else 6
        headers = received.headers or NO_HEADERS
        subject, data, command = received.subject, received.data, self.command
        finest = None if self._finest_of is None else self._finest_of(subject)
        self._last_pending = tokens[first + 4]
        return Message(
            subject,
            data,
            headers,
            self._key_of(subject, headers, data),
            command.partition,
            int(tokens[first + 1]),
            command.epoch,
            int(tokens[first]),
            int(tokens[first + 3]),
            reply,
            int(tokens[first + 2]),
            1,
            self._mark,
            command.partition if finest is None else finest,
        )

    def _flush(self) -> None:
        messages, self._buffer = tuple(self._buffer), []
        self.window.add(messages)
        if messages and not self.is_closed:
            self._wire.tell(Delivered(self.command.pull, messages, int(self._last_pending)))

    def _on_idle(self, consumer_seq: int) -> None:
        self._flush()
        if not self.is_closed:
            self._wire.tell(PullIdle(pull=self.command.pull, consumer_seq=consumer_seq))

    def _on_end(self, reason: str) -> None:
        self._flush()
        if not self.is_closed:
            self._wire.tell(PullEnded(pull=self.command.pull, reason=reason))
