"""Reading a stream fast: a pull consumer without acks, thousands of messages a request.

The consumer is nameless to users, lives in memory and dies by itself when its reader does. A
request is over when its messages have come or a status says so; the next is sent then. The order is
the stream's.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator

import msgspec

from .connection import Connection, Message, parse_answer
from .errors import ConfigurationError, ConnectionLost

BATCH_MESSAGES = 5_000
BATCH_BYTES = 16 << 20
_EXPIRES_S = 5.0
_LIFETIME_NS = 30_000_000_000


async def read_stream(
    connection: Connection, stream: str, subject: str, *, first_seq: int = 1, last_seq: int
) -> AsyncIterator[list[tuple[int, Message]]]:
    """Messages of ``subject`` from ``first_seq`` to ``last_seq`` as lists of (sequence, message).

    ConfigurationError: no such stream. ConnectionLost: the server went away or fell silent.
    """
    if first_seq > last_seq:
        return
    name = await _make_consumer(connection, stream, subject, first_seq)
    inbox = connection.new_inbox()
    feed = _Feed()
    sid = connection.subscribe(inbox, feed.take)
    request = msgspec.json.encode(
        {
            "batch": BATCH_MESSAGES,
            "max_bytes": max(BATCH_BYTES, 2 * connection.max_payload),
            "expires": int(_EXPIRES_S * 1e9),
        }
    )
    ask = f"PUB $JS.API.CONSUMER.MSG.NEXT.{stream}.{name} {inbox} {len(request)}\r\n".encode()
    try:
        while not feed.is_done(last_seq):
            connection.write(ask + request + b"\r\n")
            yield await feed.one_request()
    finally:
        if connection.is_open:
            connection.unsubscribe(sid)
            await connection.request(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")


async def _make_consumer(connection: Connection, stream: str, subject: str, first_seq: int) -> str:
    name = f"millstream-{secrets.token_hex(6)}"
    config = {
        "name": name,
        "filter_subject": subject,
        "ack_policy": "none",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": first_seq,
        "replay_policy": "instant",
        "inactive_threshold": _LIFETIME_NS,
        "mem_storage": True,
        "num_replicas": 1,
    }
    body = {"stream_name": stream, "config": config, "action": "create"}
    answer = parse_answer(
        await connection.request(
            f"$JS.API.CONSUMER.CREATE.{stream}.{name}.{subject}", msgspec.json.encode(body)
        )
    )
    if error := answer.get("error"):
        raise ConfigurationError(f"stream {stream}: {error.get('description')}")
    return name


class _Feed:
    """Collects what the connection's read loop hands over, one request at a time."""

    def __init__(self) -> None:
        self._messages: list[tuple[int, Message]] = []
        self._over = asyncio.Event()
        self._seq = 0
        self._pending = -1

    def take(self, message: Message) -> None:
        """A delivered message, or a status that ends the request."""
        if not message.reply.startswith("$JS.ACK."):
            self._over.set()
            return
        fields = message.reply.rsplit(".", 5)
        self._seq, self._pending = _numbers(message.reply, fields)
        self._messages.append((self._seq, message))
        if self._pending == 0 or len(self._messages) >= BATCH_MESSAGES:
            self._over.set()

    async def one_request(self) -> list[tuple[int, Message]]:
        """What one request brought."""
        try:
            async with asyncio.timeout(2 * _EXPIRES_S):
                await self._over.wait()
        except TimeoutError as error:
            raise ConnectionLost("the stream's reader got no answer") from error
        self._over.clear()
        if not self._messages:
            self._pending = 0  # the request ran out: nothing is left
        messages, self._messages = self._messages, []
        return messages

    def is_done(self, last_seq: int) -> bool:
        """Whether everything up to a sequence was delivered."""
        return self._pending == 0 or self._seq >= last_seq


def _numbers(reply: str, fields: list[str]) -> tuple[int, int]:
    """Stream sequence and what is still to come, of an ack subject with 9 or 11 and more tokens."""
    if reply.count(".") == 8:
        return int(fields[2]), int(fields[5])
    tokens = reply.split(".")
    return int(tokens[7]), int(tokens[10])
