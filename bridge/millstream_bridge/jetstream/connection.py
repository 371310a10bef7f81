"""One plain connection to a NATS server: whole blocks of frames out, acknowledgements counted in.

A backfill publishes with no object per message. The caller writes joined frames whose reply is this
connection's acknowledgement subject; what comes back is found by one regular expression that spans
a whole run of good acknowledgements, counted, and reported as (count, last sequence). Everything
else (answers to requests, refusals, messages of a subscription, PING) is parsed one by one.

Every session has an acknowledgement subject of its own under one inbox, so that late answers to a
session that is over cannot be taken for the next one's, and several can go on side by side.
"""

import asyncio
import json
import re
import secrets
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from ..errors import BridgeError, ConfigurationError, ConnectionLost, Unreachable
from ..records.headers import HeaderError, parse_block
from .target import Address, NatsTarget

WRITE_BUFFER_BYTES = 1 << 20
PROTOCOL_LINE_BYTES_MAX = 1 << 20
STALL_S = 10.0
FLUSH_S = 0.3
EARLY_S = 2.0
"""So long nobody there may mean: not yet."""
_EARLY_PAUSE_S = (0.01, 0.2)
_NOBODY = b"NATS/1.0 503"


class Message(NamedTuple):
    """A delivered message; ``block`` is the raw header block, empty if it has none."""

    subject: str
    reply: str
    block: bytes
    payload: bytes

    @property
    def status(self) -> int | None:
        """The status code of a header-only answer of the server, such as 503."""
        return parse_block(self.block)[0] if self.block else None


Delivery = tuple[bytes, bytes, bytes, bytes]
"""What a consumer delivers, as it came: ack subject, subject, header block, payload.

Not a `Message`, which would cost a third of reading a whole stream; `reader` reads the sequence.
"""

Feed = Callable[[list[Delivery]], None]
"""Takes what a consumer delivers."""

ACK_PREFIX = b"$JS.ACK."
_WITH_HEADERS, _WITHOUT_HEADERS = 6, 5


class AckSink(NamedTuple):
    """Who hears of a session's answers."""

    on_acks: Callable[[int, int], None]
    on_other: Callable[[Message], None]


class Connection(asyncio.Protocol):
    """Made by `open`; ends with `close` or when the server goes away (`lost`)."""

    def __init__(self, target: str | NatsTarget, address: Address | None = None) -> None:
        self._target = NatsTarget.of(target)
        self._address = address or next(self._target.addresses())
        self.url = self._address.url
        self.api_prefix = self._target.jetstream_prefix
        self.info: dict[str, Any] = {}
        self.is_open = False
        self.lost_reason = ""
        self.denied = ""
        """The first permission the server found missing, in its words, and who lists them."""
        self._inbox = f"{self._target.inbox_prefix}.{secrets.token_hex(6)}"
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._greeted: asyncio.Future[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._requests: dict[str, asyncio.Future[Message]] = {}
        self._handlers: dict[str, Callable[[Message], None]] = {}
        self._feeds: dict[bytes, Feed] = {}
        self._next_id = 1
        self._ack_sinks: dict[bytes, AckSink] = {}
        self._ack_run = _ack_run(self._inbox)
        self._closed = asyncio.Event()
        self._name = ""

    @classmethod
    async def open(
        cls, target: str | NatsTarget, *, name: str, timeout_s: float = 5.0
    ) -> "Connection":
        """Connect and shake hands with the first address that answers, ``timeout_s`` for each.

        Unreachable says why none did; ConfigurationError: a bad URL or file.
        """
        target = NatsTarget.of(target)
        failures: list[Unreachable] = []
        for address in target.addresses():
            try:
                return await cls(target, address)._open(name, timeout_s)
            except Unreachable as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        reasons = "; ".join(f"{error.where}: {error.reason}" for error in failures)
        raise Unreachable("NATS", str(target), reasons) from failures[-1]

    async def _open(self, name: str, timeout_s: float) -> "Connection":
        loop = asyncio.get_running_loop()
        self._greeted, self._ready = loop.create_future(), loop.create_future()
        self._name = name
        _, host, port, _, _ = self._address
        tls = self._target.tls_context() if self._target.tls_first else None
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: self, host, port, ssl=tls)
                await self._greeted
                if tls is None and self._wants_tls:
                    await self._start_tls(loop, host)
                self._shake_hands()
                await self._ready
                if self.denied:  # it may not even listen for answers
                    self.check()
        except TimeoutError as error:
            self._abort()
            raise Unreachable("NATS", self.url, "no answer in time") from error
        except ssl.SSLError as error:
            self._abort()
            raise Unreachable("NATS", self.url, f"TLS: {error.reason or error}") from error
        except OSError as error:
            self._abort()
            raise Unreachable("NATS", self.url, str(error) or repr(error)) from error
        except (asyncio.CancelledError, BridgeError):
            self._abort()
            raise
        return self

    @property
    def _wants_tls(self) -> bool:
        is_demanded = self._target.has_tls or self._address.is_tls
        if is_demanded and not (self.info.get("tls_required") or self.info.get("tls_available")):
            raise ConfigurationError(f"NATS at {self.url} has no TLS, which this target demands")
        return is_demanded or bool(self.info.get("tls_required"))

    async def _start_tls(self, loop: asyncio.AbstractEventLoop, host: str) -> None:
        assert self._transport is not None
        context = self._target.tls_context()
        upgraded = await loop.start_tls(self._transport, self, context, server_hostname=host)
        if upgraded is None:
            raise ConnectionResetError("closed during the TLS handshake")
        self.connection_made(upgraded)

    def _shake_hands(self) -> None:
        """Say who we are and listen for answers; the PONG says that it was taken."""
        assert self._transport is not None
        options = {
            "verbose": False,
            "pedantic": False,
            "tls_required": self._target.has_tls or self._address.is_tls,
            "lang": "python",
            "version": "0.1.0",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "echo": False,
            "name": self._name,
            **self._target.login(self._address, str(self.info.get("nonce", ""))),
        }
        self.is_open = True
        connect = b"CONNECT " + json.dumps(options).encode() + b"\r\n"
        self._transport.write(connect + f"SUB {self._inbox}.* 1\r\nPING\r\n".encode())

    def check(self) -> None:
        """ConfigurationError: the server has forbidden something. ConnectionLost: it is gone."""
        if self.denied:
            raise ConfigurationError(f"NATS at {self.url}: {self.denied}")
        if not self.is_open:
            raise ConnectionLost(f"connection to {self.url} is gone: {self.lost_reason}")

    @property
    def max_payload(self) -> int:
        """The server's limit for headers and payload together, in bytes."""
        return int(self.info.get("max_payload", 1 << 20))

    def write(self, data: bytes) -> None:
        """Send whole operations; await `writable` before the next large block."""
        if self._transport is None or not self.is_open:
            raise ConnectionLost(f"connection to {self.url} is gone: {self.lost_reason}")
        self._transport.write(data)

    async def writable(self, *, timeout_s: float = STALL_S) -> None:
        """Return when the send buffer is below its limit; ConnectionLost if it does not get there.

        A server that hangs takes nothing, and its connection stays open.
        """
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._writable.wait()
            except TimeoutError as error:
                raise ConnectionLost(f"{self.url} took nothing for {timeout_s:g} s") from error
        if not self.is_open:
            raise ConnectionLost(f"connection to {self.url} is gone: {self.lost_reason}")

    def new_ack_subject(self, sink: AckSink) -> str:
        """A fresh reply subject for a session, until `drop_ack_subject`."""
        self._next_id += 1
        subject = f"{self._inbox}.a{self._next_id}"
        self._ack_sinks[subject.encode()] = sink
        return subject

    def drop_ack_subject(self, subject: str) -> None:
        """A session is over: what is still to come for it is dropped."""
        self._ack_sinks.pop(subject.encode(), None)

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 5.0
    ) -> Message:
        """Send a request, return the answer. ConnectionLost also stands for no answer in time."""
        reply = self._new_reply()
        self.write(
            b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
        )
        return await self.answer(reply, timeout_s=timeout_s)

    async def publish_and_wait(
        self, make: Callable[[str], bytes], *, timeout_s: float = 10.0
    ) -> Message:
        """Write what ``make`` returns for a fresh reply subject, return the one answer to it.

        Again while the server says that nobody is there, for nothing is stored then: a cluster says
        that a stream is made before each node has heard where its subjects go (seen on 2.15.1).
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + EARLY_S
        pause_s, longest_s = _EARLY_PAUSE_S
        while True:
            reply = self._new_reply()
            await self.writable()
            self.write(make(reply))
            answer = await self.answer(reply, timeout_s=timeout_s)
            if not answer.block.startswith(_NOBODY) or loop.time() > give_up_at:
                return answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    async def answer(self, reply: str, *, timeout_s: float) -> Message:
        """The message that comes to ``reply``; ConnectionLost if none does."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests[reply] = future
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise ConnectionLost(f"{self.url} gave no answer within {timeout_s:g} s") from error
        finally:
            self._requests.pop(reply, None)

    def subscribe(
        self, subject: str, handler: Callable[[Message], None], feed: Feed | None = None
    ) -> str:
        """Hand every message of ``subject`` to ``handler``, in the read loop. Returns the sid.

        Where there is a ``feed``, it gets what a consumer delivers, run by run; their replies are
        left out.
        """
        self._next_id += 1
        sid = str(self._next_id)
        self._handlers[sid] = handler
        if feed is not None:
            self._feeds[sid.encode()] = feed
        self.write(f"SUB {subject} {sid}\r\n".encode())
        return sid

    def unsubscribe(self, sid: str) -> None:
        """End a subscription."""
        self._handlers.pop(sid, None)
        self._feeds.pop(sid.encode(), None)
        self.write(f"UNSUB {sid}\r\n".encode())

    def new_inbox(self) -> str:
        """A subject for a subscription of one's own."""
        return f"{self._target.inbox_prefix}.{secrets.token_hex(8)}"

    async def close(self) -> None:
        """Flush for a moment what was written and close; returns when the socket is closed."""
        if self._transport is not None:
            self.lost_reason = self.lost_reason or "closed here"
            self._transport.close()
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self._closed.wait()
            except TimeoutError:
                self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _new_reply(self) -> str:
        self._next_id += 1
        return f"{self._inbox}.{self._next_id}"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the server speaks first."""
        # A cast: uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail everybody who waits."""
        self.is_open = False
        self.lost_reason = self.lost_reason or (str(exc) if exc else "closed by the server")
        self._writable.set()
        self._closed.set()
        lost = ConnectionLost(f"connection to {self.url} is gone: {self.lost_reason}")
        for step in (self._greeted, self._ready):
            if step is not None and not step.done():
                step.set_exception(ConnectionResetError(self.lost_reason))
                step.exception()  # one of the two may never be awaited
        for future in self._requests.values():
            if not future.done():
                future.set_exception(lost)
        for sink in self._ack_sinks.values():
            sink.on_other(Message("", "", b"", b""))

    def pause_writing(self) -> None:
        """The send buffer is over its limit."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The send buffer has drained."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Take what one read of the socket brought."""
        buffer = self._rest + data if self._rest else bytes(data)
        at = 0
        while True:
            while run := self._ack_run.match(buffer, at):
                self._on_ack_run(buffer, run)
                at = run.end()
            if self._feeds:
                at = self._deliveries(buffer, at)
            after = self._one_operation(buffer, at)
            if after < 0:
                break
            at = after
        self._rest = buffer[at:]

    def _on_ack_run(self, buffer: bytes, run: re.Match[bytes]) -> None:
        sink = self._ack_sinks.get(run[1])
        if sink is not None:
            start, end = run.span()
            last = buffer.rfind(b":", start, end)
            sink.on_acks(buffer.count(b"MSG ", start, end), int(buffer[last + 1 : end - 3]))

    def _deliveries(self, buffer: bytes, at: int) -> int:
        """Hand over a run of messages from a consumer at ``at``; where the next operation is."""
        run: list[Delivery] = []
        append, find, whole = run.append, buffer.find, len(buffer)
        sid = b""
        while (line_end := find(b"\r\n", at)) >= 0:
            fields = buffer[at:line_end].split(b" ")
            if len(fields) == _WITH_HEADERS:
                _, subject, to, ack, head, size = fields
            elif len(fields) == _WITHOUT_HEADERS:
                (_, subject, to, ack, size), head = fields, b"0"
            else:
                break
            if (to != sid and (sid or to not in self._feeds)) or not ack.startswith(ACK_PREFIX):
                break
            start = line_end + 2
            end = start + int(size)
            if end + 2 > whole:
                break
            middle = start + int(head)
            append((ack, subject, buffer[start:middle], buffer[middle:end]))
            sid, at = to, end + 2
        if run:
            self._feeds[sid](run)
        return at

    def _one_operation(self, buffer: bytes, at: int) -> int:
        """Handle the operation at ``at``; where the next begins, or -1 if this one is not whole."""
        line_end = buffer.find(b"\r\n", at)
        if line_end < 0:
            if len(buffer) - at > PROTOCOL_LINE_BYTES_MAX:
                self._fail("the peer does not speak the NATS protocol")
            return -1
        line = buffer[at:line_end]
        word, _, rest = line.partition(b" ")
        word = word.upper()
        if word in (b"MSG", b"HMSG"):
            return self._message(word, rest, buffer, line_end + 2)
        if word == b"PING":
            self.write(b"PONG\r\n")
        elif word == b"PONG":
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif word == b"INFO":
            self._on_info(rest)
        elif word == b"-ERR":
            self._on_error(rest.decode("utf-8", "replace").strip("' "))
        elif word != b"+OK":
            self._fail("the peer does not speak the NATS protocol")
        return line_end + 2

    def _on_info(self, text: bytes) -> None:
        try:
            self.info = json.loads(text)
        except ValueError:
            self._fail("the peer's INFO is no JSON")
            return
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)

    def _on_error(self, reason: str) -> None:
        if not reason.lower().startswith("permissions violation"):
            self.lost_reason = reason
            return
        # The connection stays, and what was asked for or sent is never answered.
        reason += " (`millstream bridge permissions` lists what is needed)"
        self.denied = self.denied or reason
        for future in self._requests.values():
            if not future.done():
                future.set_exception(ConfigurationError(f"NATS at {self.url}: {reason}"))
        for sink in self._ack_sinks.values():
            sink.on_other(Message("", "", b"", b""))

    def _message(self, word: bytes, arguments: bytes, buffer: bytes, at: int) -> int:
        fields = arguments.split()
        size = int(fields[-1])
        end = at + size
        if len(buffer) < end + 2:
            return -1
        header_size = int(fields[-2]) if word == b"HMSG" else 0
        fixed = 4 if word == b"HMSG" else 3
        message = Message(
            fields[0].decode("utf-8", "replace"),
            fields[2].decode("utf-8", "replace") if len(fields) > fixed else "",
            buffer[at : at + header_size],
            buffer[at + header_size : end],
        )
        self._dispatch(fields[1], message)
        return end + 2

    def _dispatch(self, sid: bytes, message: Message) -> None:
        if sid != b"1":
            handler = self._handlers.get(sid.decode())
            if handler is not None:
                handler(message)
        elif (sink := self._ack_sinks.get(message.subject.encode())) is not None:
            sink.on_other(message)
        elif (future := self._requests.get(message.subject)) is not None and not future.done():
            future.set_result(message)

    def _fail(self, reason: str) -> None:
        self.lost_reason = reason
        self._abort()


def _ack_run(inbox: str) -> re.Pattern[bytes]:
    """Good acknowledgements in a row, all to one subject, which is group 1."""
    rest = rb' 1 \d+\r\n\{"stream": ?"[^"]*", ?(?:"domain": ?"[^"]*", ?)?"seq": ?\d+\}\r\n'
    subject = re.escape(inbox.encode()) + rb"\.a\d+"
    return re.compile(rb"MSG (" + subject + rb")" + rest + rb"(?:MSG \1" + rest + rb")*+")


def parse_answer(message: Message) -> dict[str, Any]:
    """The JSON object of a JetStream answer. ConnectionLost: none there (503, empty, no JSON).

    A server that has lost its leader, or has no JetStream, answers with a bare status.
    """
    if message.payload:
        try:
            answer = json.loads(message.payload)
        except ValueError as error:
            raise ConnectionLost("an answer of JetStream is no JSON") from error
        if isinstance(answer, dict):
            return answer
    try:
        status = message.status
    except HeaderError:
        status = None
    raise ConnectionLost(f"JetStream gave no answer (status {status})")
