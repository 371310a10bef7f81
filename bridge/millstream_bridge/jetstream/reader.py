"""Reading a stream fast: a pull consumer without acks, thousands of messages a request.

The consumer is nameless to users, lives in memory and dies by itself when its reader does. What
comes is handed on at once, while it is in the processor's caches. A request is over when its
messages have come or a status says so; the next is sent then, before the last are used. In a
cluster, the node that is asked may not have heard of a new consumer yet and say 503. Each has a
reply subject of its own, because a status may follow the last message (409 Batch Completed, when
bytes are left over) and must not be taken for the next request's. What is still to come is told by
the server with every message, so an end is never guessed. The order is the stream's.

**On a cluster** the consumer is at one replica of the stream, and that one may lag: a node that was
away sees nothing of what it has not caught up with, and says that nothing is to come. So where the
end was not reached the leader is asked whether there is more. If so, another consumer goes on; the
cluster puts it on a node of its choice.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import NamedTuple

import msgspec

from ..errors import ConfigurationError, ConnectionLost
from . import consumer
from .api import ApiError, stored_message
from .connection import ACK_PREFIX, Connection, Delivery, Message

NO_RESPONDERS = 503
BATCH_MESSAGES = 5_000
BATCH_BYTES = 16 << 20
_EXPIRES_S = 5.0
_LOOK_S = 0.25
_BEHIND_S = 60.0
"""So long replicas that are asked may all be behind."""
_LIFETIME_NS = 30_000_000_000


async def read_stream(
    connection: Connection, stream: str, subject: str, *, first_seq: int = 1, last_seq: int
) -> AsyncIterator[list[tuple[int, Message]]]:
    """Messages of ``subject`` from ``first_seq`` to ``last_seq`` as lists of (sequence, message).

    ConfigurationError: no such stream, or a permission is missing. ConnectionLost: the server went
    away or fell silent.
    """
    reading = read_deliveries(connection, stream, subject, first_seq=first_seq, last_seq=last_seq)
    async with aclosing(reading) as batches:
        async for batch in batches:
            yield [
                (sequence(ack), Message(name.decode("utf-8", "replace"), "", block, payload))
                for ack, name, block, payload in batch
            ]


async def read_deliveries(
    connection: Connection, stream: str, subject: str, *, first_seq: int = 1, last_seq: int
) -> AsyncGenerator[list[Delivery]]:
    """The same, as it came."""
    loop = asyncio.get_running_loop()
    next_seq, since = first_seq, loop.time()
    while next_seq <= last_seq:
        made = await _make_consumer(connection, stream, subject, next_seq)
        feed = _Feed(connection.new_inbox(), made.pending, connection.check)
        async with aclosing(_read_consumer(connection, stream, made, feed, last_seq)) as batches:
            async for batch in batches:
                yield batch
        if feed.seq >= next_seq:
            next_seq, since = feed.seq + 1, loop.time()
        missed = None
        if made.is_on_cluster and next_seq <= last_seq:
            missed = await first_from(connection, stream, subject, next_seq)
        if missed is None or missed > last_seq:
            return
        if loop.time() > since + _BEHIND_S:
            raise ConnectionLost(f"stream {stream}: no replica that was asked has {missed} yet")
        await asyncio.sleep(_LOOK_S)


async def first_from(connection: Connection, stream: str, subject: str, seq: int) -> int | None:
    """The first of a subject at a sequence or later, as the stream's leader knows.

    ConfigurationError, ConnectionLost.
    """
    try:
        found = await stored_message(connection, stream, seq=seq, next_of=subject)
    except ApiError as error:
        raise ConfigurationError(f"stream {stream}: {error}") from error
    return None if found is None else found.seq


async def _read_consumer(
    connection: Connection, stream: str, made: "_Made", feed: "_Feed", last_seq: int
) -> AsyncGenerator[list[Delivery]]:
    """What a consumer has to deliver up to a sequence; it is deleted then."""
    api = connection.api_prefix
    name, _, is_wanted, _ = made
    sid = connection.subscribe(f"{feed.inbox}.*", feed.take, feed.take_run)
    request = msgspec.json.encode(
        {
            "batch": BATCH_MESSAGES,
            "max_bytes": max(BATCH_BYTES, 2 * connection.max_payload),
            "expires": int(_EXPIRES_S * 1e9),
        }
    )

    def ask() -> None:
        to = f"{api}.CONSUMER.MSG.NEXT.{stream}.{name} {feed.next_reply()}"
        connection.write(b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(request), request))

    try:
        is_done = feed.is_done(last_seq)
        if not is_done:
            ask()
        while not is_done:
            batch = await feed.some()
            if feed.is_over and not feed.came:
                await asyncio.sleep(_LOOK_S)
            is_done = feed.is_done(last_seq)
            if feed.is_over and not is_done:
                ask()  # the next ones come while these are used
            if is_wanted is not None:
                batch = [it for it in batch if is_wanted(it[1])]
            if batch:
                yield batch
    finally:
        if connection.is_open:
            connection.unsubscribe(sid)
            with suppress(ConnectionLost):  # it dies by itself
                await consumer.delete(connection, stream, name)


class _Made(NamedTuple):
    """A consumer: what it has to deliver, and what tells the wanted messages (None: all are)."""

    name: str
    pending: int
    is_wanted: Callable[[bytes], object] | None
    is_on_cluster: bool


async def _make_consumer(
    connection: Connection, stream: str, subject: str, first_seq: int
) -> _Made:
    made = await _create(connection, stream, subject, first_seq)
    if made.pending <= consumer.FEW:
        return made
    unfiltered = await _create(connection, stream, consumer.ALL, first_seq)
    if not consumer.is_most(made.pending, unfiltered.pending):
        await consumer.delete(connection, stream, unfiltered.name)
        return made
    await consumer.delete(connection, stream, made.name)
    return unfiltered._replace(is_wanted=consumer.matcher(subject))


async def _create(connection: Connection, stream: str, subject: str, first_seq: int) -> _Made:
    name = f"millstream-{secrets.token_hex(6)}"
    pending, is_on_cluster = await consumer.create(
        connection,
        stream,
        name,
        subject,
        first_seq,
        inactive_threshold=_LIFETIME_NS,
        mem_storage=True,
        num_replicas=1,
    )
    return _Made(name, pending, None, is_on_cluster)


class _Feed:
    """Collects what the connection's read loop hands over, of one request at a time."""

    def __init__(self, inbox: str, pending: int, check: Callable[[], None] = lambda: None) -> None:
        """``check`` raises where no answer can come any more."""
        self.inbox = inbox
        self._check = check
        self._request = 0
        self._reply = ""
        self._batch: list[Delivery] = []
        self._status: int | None = None
        self._alone_since: float | None = None
        self._news = asyncio.Event()
        self.came = 0
        self.is_over = False
        self.seq = 0
        self._pending = pending

    def next_reply(self) -> str:
        """The reply subject of a new request; answers to the ones before no longer count."""
        self._request += 1
        self._reply = f"{self.inbox}.{self._request}"
        self.came = 0
        self.is_over = False
        return self._reply

    def take(self, message: Message) -> None:
        """A delivered message, or a status that ends the request it answers."""
        subject, ack, block, payload = message
        if ack.startswith(_ACK):
            # Subject and reply of a delivered message are the stream's: it cannot be of an earlier
            # request, for those were over only when their messages had come.
            self.take_run([(ack.encode(), subject.encode(), block, payload)])
        elif subject == self._reply:
            self._status = message.status
            self.is_over = True
            self._news.set()

    def take_run(self, run: list[Delivery]) -> None:
        """Delivered messages in a row."""
        self._batch += run
        self.came += len(run)
        self.seq, _, _, self._pending = consumer.place_of(run[-1][0])
        self.is_over = self._pending == 0 or self.came >= BATCH_MESSAGES
        self._news.set()

    async def some(self) -> list[Delivery]:
        """What came since the last time; nothing: nobody took the request, or it had no more.

        ConnectionLost: it brought nothing, though something is still to come, or the connection is
        gone. ConfigurationError: the server forbids it, which it says beside the request.
        """
        now = asyncio.get_running_loop().time()
        give_up_at = now + 2 * _EXPIRES_S
        while not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
                    break
            self._check()
            if asyncio.get_running_loop().time() > give_up_at:
                raise ConnectionLost("the stream's reader got no answer")
        self._news.clear()
        if self.came:
            self._alone_since = None
        elif self._status == NO_RESPONDERS and now < (self._alone_since or now) + _EXPIRES_S:
            self._alone_since = self._alone_since or now
        else:
            raise ConnectionLost(
                f"the stream's reader got status {self._status}, {self._pending} messages to come"
            )
        batch, self._batch = self._batch, []
        return batch

    def is_done(self, last_seq: int) -> bool:
        """Whether everything up to a sequence was delivered."""
        return self._pending == 0 or self.seq >= last_seq


def sequence(ack: bytes) -> int:
    """The stream's sequence of a delivery, from its ack subject."""
    return consumer.place_of(ack).seq


_ACK = ACK_PREFIX.decode()
