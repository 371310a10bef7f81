"""A client for the suite: JetStream's JSON in plain dictionaries, messages with their header bytes.

Client libraries hide what a conformance test is about (unknown fields, the order of headers, status
lines), so the suite speaks the protocol itself, on top of the raw client. It is sequential: whoever
waits for a message reads the socket, and what belongs to another inbox is kept there.
"""

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.helpers.raw import QUIET, RawClient

Json = dict[str, Any]
Headers = Mapping[str, str] | Sequence[tuple[str, str]]

_inboxes = itertools.count(1)

STORE_FAILED = 10049

SECOND = 1_000_000_000
MS = 1_000_000


class ApiError(NamedTuple):
    """The error part of an API response or a publish acknowledgement."""

    err_code: int
    code: int
    description: str


@dataclass(frozen=True, slots=True)
class Message:
    """One MSG or HMSG. ``header_block`` is the whole block from ``NATS/1.0`` to the empty line."""

    subject: str
    sid: int
    reply: str | None
    header_block: bytes | None
    payload: bytes

    @property
    def status(self) -> tuple[int, str] | None:
        """Code and text of a status message such as ``(404, "No Messages")``; else None."""
        if self.header_block is None:
            return None
        words = self.header_block.split(b"\r\n", 1)[0].decode().split(" ", 2)
        return (int(words[1]), words[2] if len(words) > 2 else "") if len(words) > 1 else None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The header fields in the order sent."""
        lines = (self.header_block or b"").decode().split("\r\n")[1:]
        pairs = (line.split(":", 1) for line in lines if line)
        return [(name, value.strip()) for name, value in pairs]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def ack_tokens(self) -> list[str]:
        """The parts of a consumer's ack reply after ``$JS.ACK``."""
        assert self.reply is not None
        return self.reply.split(".")[2:]

    @property
    def stream_seq(self) -> int:
        return int(self.ack_tokens[3])

    @property
    def consumer_seq(self) -> int:
        return int(self.ack_tokens[4])

    @property
    def num_delivered(self) -> int:
        return int(self.ack_tokens[2])

    @property
    def num_pending(self) -> int:
        return int(self.ack_tokens[6])


@dataclass(eq=False)
class Inbox:
    """One subscription of the client; ``subject`` is what it subscribed to."""

    client: "Client"
    subject: str
    sid: int
    waiting: deque[Message] = field(default_factory=deque)

    async def next(self, timeout_s: float = 30.0) -> Message:
        """The next message. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self.waiting:
                await self.client.pump()
        return self.waiting.popleft()

    async def take(self, count: int, timeout_s: float = 30.0) -> list[Message]:
        """The next ``count`` messages."""
        return [await self.next(timeout_s) for _ in range(count)]

    async def until_status(self, timeout_s: float = 30.0) -> tuple[list[Message], Message]:
        """Messages up to the first status other than a heartbeat, and that status."""
        got: list[Message] = []
        while True:
            message = await self.next(timeout_s)
            if message.status is None:
                got.append(message)
            elif message.status[0] != 100:
                return got, message

    async def quiet(self, seconds: float = 0.15) -> bool:
        """Whether nothing comes for so long."""
        if self.waiting:
            return False
        try:
            message = await self.next(seconds)
        except TimeoutError:
            return True
        self.waiting.appendleft(message)
        return False

    async def unsubscribe(self, max_messages: int | None = None) -> None:
        extra = b"" if max_messages is None else b" %d" % max_messages
        await self.client.raw.send(b"UNSUB %d%s\r\n" % (self.sid, extra))


class Client:
    """One connection. API errors are values (``error``) or failures of the test (``ok``)."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self._sids = itertools.count(1)
        self._inboxes: dict[int, Inbox] = {}
        self.made_streams: list[str] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int, **connect: object) -> AsyncIterator["Client"]:
        async with RawClient.open(port, {**QUIET, **connect}) as raw:
            yield cls(raw)

    async def pump(self) -> None:
        """Read one operation and put a message where it belongs. Raises on -ERR and at the end."""
        operation = await self.raw.operation(timeout_s=60)
        if not operation:
            raise EOFError("the server closed the connection")
        if operation.startswith(b"-ERR"):
            raise RuntimeError(operation.decode())
        message = _message(operation)
        if message is not None and message.sid in self._inboxes:
            self._inboxes[message.sid].waiting.append(message)

    async def subscribe(self, subject: str | None = None, queue: str | None = None) -> Inbox:
        """Subscribe to ``subject``, or to a new inbox."""
        inbox = Inbox(self, subject or f"_INBOX.c{next(_inboxes)}", next(self._sids))
        self._inboxes[inbox.sid] = inbox
        words = [inbox.subject, *([queue] if queue else []), str(inbox.sid)]
        await self.raw.send(f"SUB {' '.join(words)}\r\n".encode())
        return inbox

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        reply: str | None = None,
    ) -> None:
        await self.raw.send(encode(subject, payload, headers, reply))

    async def settle(self) -> None:
        """PING and wait for the PONG: the server has processed everything sent before."""
        await self.raw.send(b"PING\r\n")
        while True:
            operation = await self.raw.operation()
            if operation == b"PONG\r\n":
                return
            message = _message(operation)
            if message is None:
                raise RuntimeError(f"instead of PONG: {operation!r}")
            if message.sid in self._inboxes:
                self._inboxes[message.sid].waiting.append(message)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        timeout_s: float = 30.0,
    ) -> Message:
        """One request, one reply (which may be a status)."""
        inbox = await self.subscribe()
        await self.publish(subject, payload, headers, inbox.subject)
        try:
            return await inbox.next(timeout_s)
        finally:
            await inbox.unsubscribe()

    async def api(self, subject: str, body: object = None, headers: Headers | None = None) -> Json:
        """The JSON answer of ``$JS.API.<subject>``."""
        payload = b"" if body is None else body if isinstance(body, bytes) else _json(body)
        answer = await self.request(f"$JS.API.{subject}", payload, headers)
        assert answer.status is None, f"{subject}: {answer.status}"
        decoded: Json = json.loads(answer.payload)
        return decoded

    async def ok(self, subject: str, body: object = None, headers: Headers | None = None) -> Json:
        answer = await self.api(subject, body, headers)
        assert "error" not in answer, f"{subject}: {answer['error']}"
        return answer

    async def error(
        self, subject: str, body: object = None, headers: Headers | None = None
    ) -> ApiError:
        answer = await self.api(subject, body, headers)
        assert "error" in answer, f"{subject} should have failed: {answer}"
        return as_error(answer)

    async def stream(self, name: str, **config: object) -> Json:
        """Create a stream on ``<name>.>``; it is deleted at the end of the test."""
        body = {"name": name, "subjects": [f"{name}.>"], **config}
        body = {key: value for key, value in body.items() if value is not None}
        answer = await self.api(f"STREAM.CREATE.{name}", body)
        if answer.get("error", {}).get("err_code") == STORE_FAILED:
            # nats-server 2.15.1 says so once in some thousand times on a busy machine.
            answer = await self.api(f"STREAM.CREATE.{name}", body)
        assert "error" not in answer, f"{name}: {answer['error']}"
        self.made_streams.append(name)
        return answer

    async def state(self, stream: str, **body: object) -> Json:
        """The state part of STREAM.INFO."""
        state: Json = (await self.ok(f"STREAM.INFO.{stream}", body or None))["state"]
        return state

    async def consumer(self, stream: str, name: str, **config: object) -> Json:
        """Create a durable consumer with explicit acks unless ``config`` says otherwise."""
        return await self.ok(
            f"CONSUMER.CREATE.{stream}.{name}", consumer_body(stream, name, config)
        )

    async def consumer_error(self, stream: str, name: str, **config: object) -> ApiError:
        body = consumer_body(stream, name, config)
        return await self.error(f"CONSUMER.CREATE.{stream}.{name}", body)

    async def consumer_info(self, stream: str, name: str) -> Json:
        return await self.ok(f"CONSUMER.INFO.{stream}.{name}")

    async def store(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None
    ) -> Json:
        """Publish to a stream; its acknowledgement, an error included."""
        answer = await self.request(subject, payload, headers)
        assert answer.status is None, f"{subject}: {answer.status}"
        decoded: Json = json.loads(answer.payload)
        return decoded

    async def stored(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None
    ) -> int:
        """Publish to a stream that takes it; the sequence."""
        answer = await self.store(subject, payload, headers)
        assert "error" not in answer, answer
        return int(answer["seq"])

    async def refused(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None
    ) -> ApiError:
        """Publish to a stream that refuses it; the error."""
        answer = await self.store(subject, payload, headers)
        assert "error" in answer, answer
        return as_error(answer)

    async def fill(self, stream: str, count: int, subject: str = "a") -> None:
        """Store ``count`` messages ``1``, ``2`` … on ``<stream>.<subject>``."""
        for number in range(1, count + 1):
            await self.stored(f"{stream}.{subject}", b"%d" % number)

    async def pull(self, stream: str, consumer: str, body: object = None) -> Inbox:
        """Send one pull request; its answers come to the inbox."""
        inbox = await self.subscribe()
        payload = b"" if body is None else body if isinstance(body, bytes) else _json(body)
        await self.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", payload, reply=inbox.subject
        )
        return inbox

    async def fetch(self, stream: str, consumer: str, count: int) -> list[Message]:
        """Pull exactly ``count`` messages."""
        body = {"batch": count, "expires": 5 * SECOND}
        inbox = await self.pull(stream, consumer, body)
        got = await inbox.take(count)
        assert all(message.status is None for message in got), got
        await inbox.unsubscribe()
        return got

    async def ack(self, message: Message, payload: bytes = b"+ACK") -> Message:
        """Acknowledge as a request: when it returns, the server has processed it."""
        assert message.reply is not None
        return await self.request(message.reply, payload)

    async def subjects_of(self, stream: str) -> list[str]:
        """Stored subjects in sequence order."""
        state = await self.state(stream)
        found = []
        for seq in range(state["first_seq"], state["last_seq"] + 1):
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
            if "message" in answer:
                found.append(answer["message"]["subject"])
        return found

    async def payloads_of(self, stream: str) -> list[bytes]:
        """Stored payloads in sequence order, read with a throw-away consumer."""
        count = (await self.state(stream))["messages"]
        name = f"reader{next(_inboxes)}"
        config = {"ack_policy": "none", "durable_name": None, "inactive_threshold": 5 * SECOND}
        await self.consumer(stream, name, **config)
        return [message.payload for message in await self.fetch(stream, name, count)]


async def eventually(probe: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Ask until the answer is yes: for effects no reply announces. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await probe():
                return
            await asyncio.sleep(0.01)


def as_error(answer: Json) -> ApiError:
    error = answer["error"]
    return ApiError(error.get("err_code", 0), error["code"], error.get("description", ""))


def consumer_body(stream: str, name: str, config: Mapping[str, object]) -> Json:
    merged = {"durable_name": name, "ack_policy": "explicit", **config}
    return {
        "stream_name": stream,
        "config": {key: value for key, value in merged.items() if value is not None},
    }


def encode(
    subject: str, payload: bytes, headers: Headers | None = None, reply: str | None = None
) -> bytes:
    """A PUB, or with ``headers`` an HPUB."""
    to = f"{subject} {reply}" if reply else subject
    if headers is None:
        return f"PUB {to} {len(payload)}\r\n".encode() + payload + b"\r\n"
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    block = ("NATS/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in pairs)).encode()
    block += b"\r\n"
    size = len(block) + len(payload)
    return f"HPUB {to} {len(block)} {size}\r\n".encode() + block + payload + b"\r\n"


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


def _message(operation: bytes) -> Message | None:
    line, _, rest = operation.partition(b"\r\n")
    words = line.decode().split()
    if not words or words[0] not in ("MSG", "HMSG"):
        return None
    with_headers = words[0] == "HMSG"
    sizes = 2 if with_headers else 1
    head = int(words[-2]) if with_headers else 0
    reply = words[3] if len(words) == 4 + sizes else None
    body = rest[: int(words[-1])]
    return Message(
        words[1], int(words[2]), reply, body[:head] if with_headers else None, body[head:]
    )
