"""A stream read from a sequence on and without an end, thousands of messages a request.

A durable consumer without acks, made anew at every start: where to begin is what Kafka says, not
what the consumer remembers. It is durable so that ``nats consumer info`` shows how far behind the
way back is, and so that it is known, should Kafka have forgotten, that there was one before.

One request is under way at a time; while its messages are being written to Kafka the next one's
arrive. A request ends by count or with a status. The consumer numbers what it delivers, so a
message missing on the way is seen, and the session begins again.
"""

import asyncio
from collections import deque

import msgspec

from ..errors import ConfigurationError, ConnectionLost
from ..jetstream.connection import Connection, Message, parse_answer
from .returning import Delivered

BATCH_MESSAGES = 5_000
BATCH_BYTES = 8 << 20
_EXPIRES_S = 5.0
_SILENCE_S = 2 * _EXPIRES_S
_CONSUMER_NOT_FOUND = 10014
_ACK_TOKENS = 9
_NO_RESPONDERS = 503


class Tail:
    """Messages of one stream; made by `open`, ends with `close` or the connection."""

    def __init__(self, connection: Connection, stream: str, name: str, pending: int) -> None:
        self.stream = stream
        self.lag = pending
        """Messages the consumer has not delivered yet."""
        self._connection = connection
        self._to = f"{connection.api_prefix}.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._inbox = connection.new_inbox()
        self._sid = connection.subscribe(f"{self._inbox}.*", self._take)
        self._waiting: deque[Delivered] = deque()
        self._arrived = asyncio.Event()
        self._request = 0
        self._open = 0
        """Messages the request under way may still bring; 0: there is none."""
        self._asked_at = 0.0
        self._delivered = 0
        self._trouble = ""

    @classmethod
    async def open(
        cls, connection: Connection, stream: str, subject: str, first_seq: int, *, name: str
    ) -> "Tail":
        """Read ``subject`` from ``first_seq`` on, by a consumer of this name, made anew.

        ConfigurationError, ConnectionLost.
        """
        await delete_consumer(connection, stream, name)
        config = {
            "name": name,
            "durable_name": name,
            "filter_subject": subject,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, first_seq),
            "replay_policy": "instant",
        }
        body = {"stream_name": stream, "config": config, "action": "create"}
        answer = parse_answer(
            await connection.request(
                f"{connection.api_prefix}.CONSUMER.CREATE.{stream}.{name}.{subject}",
                msgspec.json.encode(body),
            )
        )
        if error := answer.get("error"):
            raise ConfigurationError(f"stream {stream}: {error.get('description')}")
        return cls(connection, stream, name, int(answer["num_pending"]))

    @property
    def is_idle(self) -> bool:
        """Whether all that the stream has was handed out."""
        return not self._waiting and self.lag == 0

    async def next(self, wait_s: float) -> list[Delivered]:
        """What has arrived, or the first to arrive within ``wait_s``.

        ConnectionLost. ConfigurationError: the user may not read.
        """
        self._check()
        if not self._waiting:
            self._arrived.clear()
            self._ask()
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                self._watch_silence()
            self._check()
        taken = list(self._waiting)
        self._waiting.clear()
        self._ask()
        return taken

    def close(self) -> None:
        """Ask for no more; the consumer stays, as a mark."""
        if self._connection.is_open:
            self._connection.unsubscribe(self._sid)

    def _ask(self) -> None:
        if self._open:
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
        if message.reply.startswith("$JS.ACK."):
            self._take_delivered(message)
        elif message.subject == f"{self._inbox}.{self._request}":
            # Mostly a request's end: its time is up (408), or its bytes (409).
            self._open = 0
            if message.status == _NO_RESPONDERS or b"Consumer Deleted" in message.block:
                self._trouble = self._trouble or _first_line(message.block)
        else:
            return
        self._arrived.set()

    def _take_delivered(self, message: Message) -> None:
        seq, delivered, time_ns, lag = _numbers(message.reply)
        if delivered != self._delivered + 1:
            self._trouble = self._trouble or f"its message {self._delivered + 1} did not arrive"
        if self._trouble:
            return  # what comes after a hole must not pass for what comes next
        self._delivered, self.lag = delivered, lag
        self._open = max(0, self._open - 1)
        self._waiting.append(
            Delivered(seq, time_ns, message.subject, message.block, message.payload)
        )

    def _watch_silence(self) -> None:
        late_s = asyncio.get_running_loop().time() - self._asked_at
        if self._open and late_s > _SILENCE_S:
            self._trouble = f"no answer for {late_s:.0f} s"

    def _check(self) -> None:
        if self._connection.denied:
            raise ConfigurationError(f"NATS at {self._connection.url}: {self._connection.denied}")
        if not self._connection.is_open:
            raise ConnectionLost(f"connection lost: {self._connection.lost_reason}")
        if self._trouble and not self._waiting:
            raise ConnectionLost(f"reading stream {self.stream}: {self._trouble}")


async def delete_consumer(connection: Connection, stream: str, name: str) -> bool:
    """Delete a consumer; whether there was one. ConfigurationError, ConnectionLost."""
    return await _ask_consumer(connection, "DELETE", stream, name)


async def has_consumer(connection: Connection, stream: str, name: str) -> bool:
    """Whether there is a consumer of this name. ConfigurationError, ConnectionLost."""
    return await _ask_consumer(connection, "INFO", stream, name)


async def _ask_consumer(connection: Connection, verb: str, stream: str, name: str) -> bool:
    answer = parse_answer(
        await connection.request(f"{connection.api_prefix}.CONSUMER.{verb}.{stream}.{name}")
    )
    error = answer.get("error")
    if not error:
        return True
    if int(error.get("err_code", 0)) == _CONSUMER_NOT_FOUND:
        return False
    raise ConfigurationError(f"stream {stream}: {error.get('description')}")


def _numbers(reply: str) -> tuple[int, int, int, int]:
    """Stream sequence, consumer sequence, time in ns and what is to come, of either form.

    ``$JS.ACK.stream.consumer.delivered.seq.consumer_seq.time.pending``, and the longer one with
    domain and account before the stream and a random token at the end.
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) == _ACK_TOKENS else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at + 3])


def _first_line(block: bytes) -> str:
    return block.split(b"\r\n", 1)[0].removeprefix(b"NATS/1.0").strip().decode("latin-1")
