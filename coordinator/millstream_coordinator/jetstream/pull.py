"""Standing pulls: one long-lived pull request per consumer, and what comes of it.

A request asks for many messages and a long time, with idle heartbeats, and is renewed before either
runs out; two overlap for a while, which costs nothing. nats-py's ``fetch`` would wait out a timeout
whenever fewer messages than asked for may be under way.

Idle heartbeats carry the consumer sequence of the last delivery (``Nats-Last-Consumer``), so a
delivery that was lost at the end of a burst is noticed without another one. Silence means that what
should send them is not there any more, or never got the request: it is asked again.

`StandingPull` is one of them, whatever it is for (the watch has one too); `Pulls` are those of the
partitions of this member, whose messages go to the machine. A pull is registered in the moment its
command is executed and taken off in the moment of ClosePull; what only takes time, subscribing,
looks afterwards whether it is still wanted.
"""

from collections.abc import Callable

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..errors import GroupError
from ..model import Message
from ..ports import Broken, Delivered, OpenPull, PullEnded, PullIdle
from .api import parse_ack, pass_cancellation
from .wire import NS, Wire, unsubscribe

PULL_BATCH = 10_000
PULL_EXPIRES_S = 60.0
PULL_HEARTBEAT_S = 1.0
SILENT_HEARTBEATS = 3
"""So many heartbeats missed: what should send them is not there any more."""

_REQUEST = msgspec.json.encode(
    {
        "batch": PULL_BATCH,
        "expires": int(PULL_EXPIRES_S * NS),
        "idle_heartbeat": int(PULL_HEARTBEAT_S * NS),
    }
)


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
    ) -> None:
        self._wire = wire
        self._subject = wire.api.subject(f"CONSUMER.MSG.NEXT.{stream}.{consumer}")
        self._on_message = on_message
        self._on_idle = on_idle
        self._on_end = on_end
        self._inbox = wire.client.new_inbox()
        self._subscription: Subscription | None = None
        self._is_closed = False
        self._left = 0
        self._renew_at = 0.0
        self._heard_at = 0.0

    async def open(self) -> None:
        """Subscribe and send the first request, unless it is closed meanwhile."""
        subscription = None
        try:
            subscription = await self._wire.client.subscribe(
                self._inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
            )
            pass_cancellation()
        except nats.errors.Error as error:
            if not self._is_closed:
                self._on_end(str(error))
            return
        finally:
            if self._is_closed and subscription is not None:
                await unsubscribe(subscription)
        if not self._is_closed:
            self._subscription = subscription
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
        silent_s = now - self._heard_at
        if now >= self._renew_at or silent_s > SILENT_HEARTBEATS * PULL_HEARTBEAT_S:
            self._renew()

    def _renew(self) -> None:
        if self._subscription is None:
            return
        now = self._wire.now
        self._left = PULL_BATCH
        self._renew_at = now + PULL_EXPIRES_S * 0.8
        self._heard_at = now
        self._wire.publish(self._subject, _REQUEST, self._inbox)

    async def _receive(self, received: Msg) -> None:
        if self._is_closed:
            return
        self._heard_at = self._wire.now
        if not received.reply.startswith("$JS.ACK."):
            self._on_status(received.headers or {})
            return
        self._left -= 1
        if self._left < PULL_BATCH // 2:
            self._renew()
        self._on_message(received)

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers.get("Status", "")
        text = headers.get("Description", "")
        if status == "100":
            last = headers.get("Nats-Last-Consumer", "")
            if last.isdecimal():
                self._on_idle(int(last))
        elif status == "503" or "Consumer Deleted" in text or status == "400":
            self._on_end(f"{status} {text}".strip())
        elif "Leadership Change" in text or "MaxWaiting" in text:
            self._wire.later(PULL_HEARTBEAT_S, self._renew)


class Pulls:
    """The standing pulls of a member's partitions."""

    def __init__(self, wire: Wire, stream_of: Callable[[int], str]) -> None:
        """``stream_of`` names the stream a partition's consumer lives on."""
        self._wire = wire
        self._stream_of = stream_of
        self._pulls: dict[int, _PartitionPull] = {}

    @property
    def numbers(self) -> list[int]:
        """Which pulls are open."""
        return list(self._pulls)

    def open(self, command: OpenPull) -> None:
        """Begin to pull; what comes is told to the machine."""
        pull = _PartitionPull(self._wire, self._stream_of(command.partition), command)
        self._pulls[command.pull] = pull
        self._wire.start(pull.standing.open(), "pull")

    def close(self, number: int) -> None:
        """Stop a pull, however far it came."""
        pull = self._pulls.pop(number, None)
        if pull is not None:
            pull.is_closed = True
            self._wire.start(pull.standing.close(), "close pull")

    async def close_all(self) -> None:
        """Stop all of them."""
        pulls = list(self._pulls.values())
        self._pulls.clear()
        for pull in pulls:
            pull.is_closed = True
            await pull.standing.close()

    def check(self, now: float) -> None:
        """Renew what is about to run out or has fallen silent."""
        for pull in self._pulls.values():
            pull.standing.check(now)


class _PartitionPull:
    """The pull of one partition under one epoch."""

    def __init__(self, wire: Wire, stream: str, command: OpenPull) -> None:
        self.is_closed = False
        self.standing = StandingPull(
            wire, stream, command.name, self._on_message, self._on_idle, self._on_end
        )
        self._wire = wire
        self._command = command
        self._buffer: list[Message] = []

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
        rule = self._wire.rule
        assert rule is not None
        delivery = parse_ack(received.reply)
        headers = received.headers or {}
        return Message(
            subject=received.subject,
            data=received.data,
            headers=headers,
            key=rule.key_of(received.subject, headers, received.data),
            partition=self._command.partition,
            seq=delivery.seq,
            epoch=self._command.epoch,
            num_delivered=delivery.num_delivered,
            timestamp_ns=delivery.timestamp_ns,
            reply=received.reply,
            consumer_seq=delivery.consumer_seq,
        )

    def _flush(self) -> None:
        messages, self._buffer = tuple(self._buffer), []
        if messages and not self.is_closed:
            self._wire.tell(Delivered(self._command.pull, messages))

    def _on_idle(self, consumer_seq: int) -> None:
        self._flush()
        if not self.is_closed:
            self._wire.tell(PullIdle(pull=self._command.pull, consumer_seq=consumer_seq))

    def _on_end(self, reason: str) -> None:
        self._flush()
        if not self.is_closed:
            self._wire.tell(PullEnded(pull=self._command.pull, reason=reason))
