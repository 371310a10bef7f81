"""A stream read from a sequence on and without an end, thousands of messages a request.

A durable consumer without acks, made anew at every start: where to begin is what Kafka says, not
what the consumer remembers. It is durable so that ``nats consumer info`` shows how far behind the
way back is, and so that it is known, should Kafka have forgotten, that there was one before.

One request is under way at a time; while its messages are being written to Kafka the next one's
arrive. A request ends by count or with a status. The consumer numbers what it delivers, so a
message missing on the way is seen, and the session begins again.

Whether most of the stream is wanted, and so all of it asked for (`jetstream.consumer`), is looked
at when the consumer is made, where there is much to catch up with. At the end of a stream a
wildcard costs no more than that.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from ..errors import ConnectionLost
from ..jetstream import consumer
from ..jetstream.connection import ACK_PREFIX, Connection, Delivery, Message
from .returning import Delivered

BATCH_MESSAGES = 5_000
BATCH_BYTES = 8 << 20
_EXPIRES_S = 5.0
_SILENCE_S = 2 * _EXPIRES_S
_ACK = ACK_PREFIX.decode()
_NO_RESPONDERS = 503


class Tail:
    """Messages of one stream; made by `open`, ends with `close` or the connection.

    ``news`` is set whenever something arrives, for who waits for several.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        name: str,
        pending: int,
        is_wanted: Callable[[bytes], object] | None = None,
        news: asyncio.Event | None = None,
    ) -> None:
        self.stream = stream
        self.lag = pending
        """Messages the consumer has not delivered yet."""
        self._connection = connection
        self._name = name
        self._is_wanted = is_wanted
        self._to = f"{connection.api_prefix}.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._inbox = connection.new_inbox()
        self._sid = connection.subscribe(f"{self._inbox}.*", self._take, self._take_run)
        self._waiting: list[Delivered] = []
        self._arrived = news or asyncio.Event()
        self._request = 0
        self._open = 0
        """Messages the request under way may still bring; 0: there is none."""
        self._asked_at = 0.0
        self._made_at = asyncio.get_running_loop().time()
        self._is_lag_sure = True
        self._delivered = 0
        self._trouble = ""

    @classmethod
    async def open(
        cls,
        connection: Connection,
        stream: str,
        subject: str,
        first_seq: int,
        *,
        name: str,
        news: asyncio.Event | None = None,
    ) -> "Tail":
        """Read ``subject`` from ``first_seq`` on, by a consumer of this name, made anew.

        ConfigurationError, ConnectionLost.
        """

        async def made(of: str) -> int:
            await consumer.delete(connection, stream, name)
            pending, _ = await consumer.create(
                connection, stream, name, of, first_seq, durable_name=name
            )
            return pending

        pending = await made(subject)
        if pending > consumer.FEW:
            of_all = await made(consumer.ALL)
            if consumer.is_most(pending, of_all):
                return cls(connection, stream, name, of_all, consumer.matcher(subject), news)
            pending = await made(subject)
        return cls(connection, stream, name, pending, news=news)

    @property
    def has_some(self) -> bool:
        """Whether something has arrived that `next` hands out at once."""
        return bool(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether all that the stream has was handed out."""
        return not self._waiting and self.lag == 0

    async def next(self, wait_s: float) -> list[Delivered]:
        """What has arrived, or the first to arrive within ``wait_s``.

        ConnectionLost. ConfigurationError: the user may not read.
        """
        self._check()
        if not self._is_lag_sure:  # no request is under way: nothing can be on its way
            self._is_lag_sure = True
            self.lag = await consumer.pending_of(self._connection, self.stream, self._name) or 0
        if not self._waiting:
            self._arrived.clear()
            self._ask()
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                self._watch_silence()
            self._check()
        taken, self._waiting = self._waiting, []
        self._ask()
        return taken

    def close(self) -> None:
        """Ask for no more; the consumer stays, as a mark."""
        if self._connection.is_open:
            self._connection.unsubscribe(self._sid)

    def _ask(self) -> None:
        if self._open or not self._is_lag_sure:
            return
        self._request += 1
        self._open = BATCH_MESSAGES
        self._asked_at = asyncio.get_running_loop().time()
        request = msgspec.json.encode(
            {
                "batch": BATCH_MESSAGES,
                "max_bytes": max(BATCH_BYTES, 2 * self._connection.max_payload),
                "expires": int(_EXPIRES_S * 1e9),
            }
        )
        to = f"{self._to} {self._inbox}.{self._request}".encode()
        self._connection.write(b"PUB %b %d\r\n%b\r\n" % (to, len(request), request))

    def _take(self, message: Message) -> None:
        """In the read loop: a message, or a status that ends the request it answers."""
        subject, ack, block, payload = message
        if ack.startswith(_ACK):
            self._take_run([(ack.encode(), subject.encode(), block, payload)])
        elif subject == f"{self._inbox}.{self._request}":
            self._take_status(message)

    def _take_status(self, message: Message) -> None:
        """Mostly a request's end: its time is up (408), or its bytes (409)."""
        is_nothing_there = self._open == BATCH_MESSAGES
        self._open = 0
        if message.status == _NO_RESPONDERS:
            age_s = asyncio.get_running_loop().time() - self._made_at
            if not self._delivered and age_s < _EXPIRES_S:
                return  # in a cluster, the node that is asked may not have heard of it yet
            self._trouble = self._trouble or _first_line(message.block)
        elif b"Consumer Deleted" in message.block:
            self._trouble = self._trouble or _first_line(message.block)
        elif self.lag and is_nothing_there:
            self._is_lag_sure = False  # what it had still to deliver may have been removed
        self._arrived.set()

    def _take_run(self, run: Sequence[Delivery]) -> None:
        """Delivered messages in a row."""
        self._arrived.set()
        is_wanted = self._is_wanted
        for ack, subject, block, payload in run:
            seq, delivered, time_ns, lag = consumer.place_of(ack)
            if delivered != self._delivered + 1:
                self._trouble = self._trouble or f"its message {self._delivered + 1} did not arrive"
            if self._trouble:
                return  # what comes after a hole must not pass for what comes next
            self._delivered, self.lag = delivered, lag
            self._open = max(0, self._open - 1)
            if is_wanted is None or is_wanted(subject):
                name = subject.decode("utf-8", "replace")
                self._waiting.append(Delivered(seq, time_ns, name, block, payload))

    def _watch_silence(self) -> None:
        late_s = asyncio.get_running_loop().time() - self._asked_at
        if self._open and late_s > _SILENCE_S:
            self._trouble = f"no answer for {late_s:.0f} s"

    def _check(self) -> None:
        self._connection.check()
        if self._trouble and not self._waiting:
            raise ConnectionLost(f"reading stream {self.stream}: {self._trouble}")


def _first_line(block: bytes) -> str:
    return block.split(b"\r\n", 1)[0].removeprefix(b"NATS/1.0").strip().decode("latin-1")
