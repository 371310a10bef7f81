"""``millstream pub``, ``sub``, ``req`` and ``reply``: talk to any NATS server by hand.

They take the options of the nats command line people use most and print what it prints (seen on
version 0.5.0): what the tool itself says goes to standard error with the time of day, what arrived
goes to standard output. ::

    13:49:56 Published 27 bytes to "linux.debian.packages.xz"

    [#1] Received on "linux.debian.packages.xz"
    the body

Differences, on purpose: exit code 2 for wrong usage, 3 when no server can be reached, 1 when a
request got no reply (the nats command leaves with 0 there), 130 when interrupted; and headers are
shown in the order they came, repeated names included.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import uniform
from typing import Annotated, Any, NoReturn

import msgspec
import nats.errors
import typer
from nats.aio.client import Client
from nats.aio.msg import Msg

from .gotext import TemplateError, duration, expand, parse_duration, quoted

DEFAULT_SERVER = "nats://127.0.0.1:4222"
REPLY_QUEUE = "NATS-RPLY-22"
PROGRESS_ABOVE_COUNT = 20
NO_RESPONDERS = "503"

app = typer.Typer(
    add_completion=False, no_args_is_help=False, help="Publish, subscribe, request and reply."
)

Server = Annotated[
    str,
    typer.Option("--server", "-s", metavar="URL", envvar="NATS_URL", help="The server."),
]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", metavar="K:V", help="Add a header; may be repeated."),
]
Timeout = Annotated[
    str, typer.Option(metavar="DURATION", help="How long to wait for the server or a reply.")
]
Subject = Annotated[str, typer.Argument(help="The subject.")]
Body = Annotated[str | None, typer.Argument(help="The body; standard input when left out.")]
Templates = Annotated[bool, typer.Option(help="Fill in {{Count}}, {{Time}}, {{Random 10 100}} …")]


class HeaderLines(dict[str, str]):
    """Headers in order with repeated names, in the shape nats-py passes around (a dict)."""

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        super().__init__(lines)
        self.lines = list(lines)

    def items(self) -> Any:
        """The lines as they are on the wire: what nats-py writes when it publishes."""
        return self.lines


class LineClient(Client):
    """A nats-py client that keeps repeated header names, which a dict of texts cannot.

    ``problems`` are the errors the server told outside of any answer (a subject it refuses).
    """

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Exception] = []

    async def note_problem(self, error: Exception) -> None:
        """Keep an error for ``settle``."""
        self.problems.append(error)

    async def settle(self, timeout_s: float) -> None:
        """Wait until the server has seen everything sent; raise what it had to say against it."""
        await self.flush(max(1, round(timeout_s)))
        if self.problems:
            raise nats.errors.Error(str(self.problems[-1]))

    async def _process_headers(self, headers: Any) -> Any:
        parsed = await super()._process_headers(headers)
        if not parsed or not headers:
            return parsed
        block = bytes(headers).split(b"\r\n")[1:]
        pairs = [line.partition(b":") for line in block if b":" in line]
        lines = [(name.decode(errors="replace"), _text(value)) for name, _, value in pairs]
        status = [(name, parsed[name]) for name in ("Status", "Description") if name in parsed]
        known = {name for name, _ in lines}
        return HeaderLines(lines + [pair for pair in status if pair[0] not in known])


def _text(value: bytes) -> str:
    return value.strip().decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What ``pub`` and ``req`` send: texts that may still be templates."""

    subject: str
    body: str
    reply: str
    headers: list[str]
    templates: bool

    def filled(self, count: int) -> tuple[str, bytes, HeaderLines | None]:
        """Subject, payload and headers of message number ``count``."""
        if not self.templates:
            return self.subject, self.body.encode(), _headers(self.headers, count)
        body = _expanded("body", self.body, count)
        subject = _expanded("subject", self.subject, count)
        return subject, body.encode(), _headers(self.headers, count)


@app.command()
def pub(
    subject: Subject,
    body: Body = None,
    server: Server = DEFAULT_SERVER,
    header: Header = None,
    reply: Annotated[str, typer.Option(metavar="SUBJECT", help="A reply subject to send.")] = "",
    count: Annotated[int, typer.Option(help="How many messages.")] = 1,
    sleep: Annotated[str, typer.Option(metavar="DURATION", help="Pause between them.")] = "0s",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
    jetstream: Annotated[
        bool, typer.Option("--jetstream", "-J", help="Wait until a stream has stored it.")
    ] = False,
    templates: Templates = True,
    timeout: Timeout = "5s",
) -> int:
    """Publish messages."""
    outgoing = _outgoing(subject, body, reply, header, templates, announce=not quiet)
    pause_s, timeout_s = _seconds("--sleep", sleep), _seconds("--timeout", timeout)
    show_progress = count > PROGRESS_ABOVE_COUNT and not quiet

    async def work(client: LineClient) -> int:
        started = time.monotonic()
        for number in range(1, max(count, 1) + 1):
            if number > 1 and pause_s:
                await asyncio.sleep(pause_s)
            subject, payload, headers = outgoing.filled(number)
            say = _note if not quiet and not show_progress else _silence
            if jetstream:
                stored = await _stored(client, subject, payload, headers, timeout_s)
                say(f"Published {len(payload)} bytes to {quoted(subject)}")
                say(stored)
                continue
            await client.publish(subject, payload, reply=outgoing.reply, headers=headers)
            if not show_progress or number == count:
                await client.settle(timeout_s)
            say(f"Published {len(payload)} bytes to {quoted(subject)}")
        if show_progress:
            elapsed_s = time.monotonic() - started
            _print(
                f" done! [{count} in {duration(round(elapsed_s, 3))}; {count / elapsed_s:,.0f}/s]"
            )
        return 0

    return _run("pub", server, timeout_s, work)


@app.command()
def sub(
    subjects: Annotated[list[str], typer.Argument(help="Subjects; wildcards allowed.")],
    server: Server = DEFAULT_SERVER,
    queue: Annotated[str, typer.Option(help="Join this queue group.")] = "",
    count: Annotated[int, typer.Option(help="Stop after this many messages.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", "-r", help="Bodies only.")] = False,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="No bodies.")] = False,
    subjects_only: Annotated[bool, typer.Option("--subjects-only", help="Subjects only.")] = False,
    wait: Annotated[
        str, typer.Option(metavar="DURATION", help="Stop when nothing came for so long.")
    ] = "0s",
    timeout: Timeout = "5s",
) -> int:
    """Show messages as they come."""
    wait_s, timeout_s = _seconds("--wait", wait), _seconds("--timeout", timeout)

    async def work(client: LineClient) -> int:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        if not raw:
            _note(f"Subscribing on {', '.join(subjects)} ")
        for subject in subjects:
            await client.subscribe(subject, queue=queue, cb=arrived.put)
        await client.settle(timeout_s)
        number = 0
        while True:
            try:
                async with asyncio.timeout(wait_s or None):
                    message = await arrived.get()
            except TimeoutError:
                return 0
            number += 1
            if raw:
                _print_body(message.data, spaced=False)
            else:
                _print_message(number, message, headers_only, subjects_only)
            if number == count:
                return 0

    return _run("sub", server, timeout_s, work)


@app.command()
def req(
    subject: Subject,
    body: Body = None,
    server: Server = DEFAULT_SERVER,
    header: Header = None,
    raw: Annotated[bool, typer.Option("--raw", "-r", help="Reply bodies only.")] = False,
    count: Annotated[int, typer.Option(help="How many requests.")] = 1,
    replies: Annotated[
        int, typer.Option(help="How many replies to wait for; 0: until the time is up.")
    ] = 1,
    reply_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="Longest pause between several replies.")
    ] = "300ms",
    templates: Templates = True,
    timeout: Timeout = "5s",
) -> int:
    """Send a request and show the replies."""
    outgoing = _outgoing(subject, body, "", header, templates, announce=True)
    timeout_s = _seconds("--timeout", timeout)
    pause_s = _seconds("--reply-timeout", reply_timeout)

    async def work(client: LineClient) -> int:
        code = 0
        for number in range(1, max(count, 1) + 1):
            exchange = _Exchange(client, replies, timeout_s, pause_s, raw)
            if not await exchange.run(outgoing, number):
                code = 1
            if exchange.no_responders:
                break
        return code

    return _run("req", server, timeout_s, work)


@app.command()
def reply(
    subject: Subject,
    body: Annotated[str, typer.Argument(help="The reply; the request's own body when none.")] = "",
    server: Server = DEFAULT_SERVER,
    header: Header = None,
    echo: Annotated[bool, typer.Option("--echo", help="Send back what was received.")] = False,
    command: Annotated[
        str, typer.Option(help="Run this and reply with what it prints; {{1}} is token 1.")
    ] = "",
    queue: Annotated[str, typer.Option("--queue", "-q", help="The queue group.")] = REPLY_QUEUE,
    sleep: Annotated[
        str, typer.Option(metavar="MAX", help="Wait at random up to so long before each reply.")
    ] = "0s",
    count: Annotated[int, typer.Option(help="Stop after this many requests.")] = 0,
    timeout: Timeout = "5s",
) -> int:
    """Answer requests."""
    pause_s, timeout_s = _seconds("--sleep", sleep), _seconds("--timeout", timeout)
    headers = header or []
    _check_headers(headers)
    if not body and not command:
        if not echo:
            _note("No body or command supplied, enabling echo mode")
        echo = True

    async def work(client: LineClient) -> int:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        await client.subscribe(subject, queue=queue, cb=arrived.put)
        await client.settle(timeout_s)
        _note(f"Listening on {quoted(subject)} in group {quoted(queue)}")
        number = 0
        while not count or number < count:
            request = await arrived.get()
            _print_request(number, request)
            if pause_s:
                await asyncio.sleep(uniform(0, pause_s))  # noqa: S311  a pause, no secret
            lines = _headers(headers, number)
            if echo:
                received = request.headers.items() if request.headers else []
                own = lines.lines if lines else []
                lines = HeaderLines([*own, *received, ("NATS-Reply-Counter", str(number))])
                answer = request.data
            elif command:
                answer = await _command_output(command, request, number)
            else:
                text = request.data.decode(errors="replace")
                answer = _expanded("body", body, number, text).encode()
            if request.reply:
                await client.publish(request.reply, answer, headers=lines)
            number += 1
        await client.settle(timeout_s)
        return 0

    return _run("reply", server, timeout_s, work)


class _Exchange:
    """One request and the replies to it."""

    def __init__(
        self, client: LineClient, replies: int, timeout_s: float, pause_s: float, raw: bool
    ) -> None:
        self._client = client
        self._replies = replies
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._raw = raw
        self._note = _silence if raw else _note
        self.no_responders = False

    async def run(self, outgoing: Outgoing, number: int) -> int:
        """Send it and print what comes; returns how many replies came."""
        subject, payload, headers = outgoing.filled(number)
        self._note(f"Sending request on {quoted(subject)}")
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        try:
            await self._client.publish(subject, payload, reply=inbox, headers=headers)
            return await self._collect(subscription.next_msg)
        finally:
            await subscription.unsubscribe()

    async def _collect(self, next_message: Callable[[float], Awaitable[Msg]]) -> int:
        started = time.monotonic()
        patience_s, total_rtt_s, got = self._timeout_s, 0.0, 0
        while True:
            try:
                message = await next_message(max(patience_s, 0.001))
            except nats.errors.TimeoutError:
                if not got:
                    _note(f"No reply within {duration(self._timeout_s)}")
                return got
            headers = message.headers or {}
            if headers.get("Status") == NO_RESPONDERS and not message.data:
                _note("No responders are available")
                self.no_responders = True
                return got
            rtt_s = time.monotonic() - started
            self._show(message, rtt_s)
            got += 1
            total_rtt_s += rtt_s
            if self._replies and (got == self._replies or not message.data):
                return got
            # Several replies: what is usual so far, and a little; without a number, all the time.
            usual_s = total_rtt_s / got + self._pause_s
            patience_s = usual_s if self._replies else self._timeout_s - rtt_s

    def _show(self, message: Msg, rtt_s: float) -> None:
        self._note(f"Received with rtt {duration(rtt_s)}")
        if message.headers and not self._raw:
            for name, value in message.headers.items():
                _note(f"{name}: {value}")
            _note("")
        _print_body(message.data, spaced=True)


def _run(
    name: str, server: str, timeout_s: float, work: Callable[[LineClient], Awaitable[int]]
) -> int:
    async def connected() -> int:
        async with _connection(name, server, timeout_s) as client:
            return await work(client)

    try:
        return asyncio.run(connected())
    except (nats.errors.Error, TimeoutError) as error:
        _fail(name, 1, f"{_reason(error)} ({_shown(server)})")


@contextlib.asynccontextmanager
async def _connection(name: str, server: str, timeout_s: float) -> AsyncIterator[LineClient]:
    """A connection that is there at once or not at all, and comes back once it was there."""
    # What goes wrong is raised or shown by us, in one line; nats-py would log it with a traceback.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    client = LineClient()
    try:
        async with asyncio.timeout(timeout_s + 1):
            await client.connect(
                server,
                name=f"millstream {name}",
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=max(1, round(timeout_s)),
                error_cb=client.note_problem,
            )
    except (OSError, TimeoutError, nats.errors.Error, ValueError) as error:
        cause = client.problems[-1] if client.problems else error
        _fail(name, 3, f"no NATS server at {_shown(server)}: {_reason(cause)}")
    # Only now: with these from the start, a server that is not there would be waited for.
    client.options.update(allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=1)
    client.problems.clear()
    try:
        yield client
    finally:
        await client.close()


def _shown(server: str) -> str:
    """The URL without a user, password or token in it."""
    scheme, separator, rest = server.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or "no answer within the timeout"


async def _stored(
    client: LineClient, subject: str, payload: bytes, headers: HeaderLines | None, timeout_s: float
) -> str:
    answer = await client.request(subject, payload, timeout=timeout_s, headers=headers)
    ack = msgspec.json.decode(answer.data)
    if "error" in ack:
        raise nats.errors.Error(f"nats: {ack['error']['description']}")
    text = f"Stored in Stream: {ack['stream']} Sequence: {ack['seq']:,}"
    if ack.get("domain"):
        text += f" Domain: {quoted(ack['domain'])}"
    return text + (" Duplicate: true" if ack.get("duplicate") else "")


async def _command_output(command: str, request: Msg, number: int) -> bytes:
    text = request.data.decode(errors="replace")
    for place, token in enumerate(request.subject.split(".")):
        command = command.replace(f"{{{{{place}}}}}", token)
    command = _expanded("command", command, number, text)
    environment = {
        **os.environ,
        "NATS_REQUEST_SUBJECT": request.subject,
        "NATS_REQUEST_BODY": text,
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        output, _ = await process.communicate()
    except (OSError, ValueError) as error:
        _note(f"Command {quoted(command)} failed to run: {error}")
        return b""
    if process.returncode:
        _note(f"Command {quoted(command)} failed to run: exit status {process.returncode}")
    return output


def _outgoing(
    subject: str,
    body: str | None,
    reply: str,
    headers: list[str] | None,
    templates: bool,
    *,
    announce: bool,
) -> Outgoing:
    _check_headers(headers or [])
    if body is None and not sys.stdin.isatty():
        if announce:
            _note("Reading payload from STDIN")
        body = sys.stdin.read()
    return Outgoing(subject, body or "", reply, headers or [], templates)


def _check_headers(headers: list[str]) -> None:
    for text in headers:
        if ":" not in text:
            raise typer.BadParameter(f"invalid header {quoted(text)}: it has the form NAME:VALUE")


def _headers(headers: list[str], count: int) -> HeaderLines | None:
    pairs = [text.partition(":") for text in headers]
    lines = [(name.strip(), _expanded("header", value.strip(), count)) for name, _, value in pairs]
    return HeaderLines(lines) if lines else None


def _expanded(what: str, template: str, count: int, request: str | None = None) -> str:
    try:
        return expand(template, count=count, request=request)
    except TemplateError as error:
        _note(f"Could not parse {what} template: {error}")
        return template


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _print_message(number: int, message: Msg, headers_only: bool, subjects_only: bool) -> None:
    line = f"[#{number}] Received on {quoted(message.subject)}"
    if message.reply:
        line += f" with reply {quoted(message.reply)}"
    _print(line)
    if subjects_only:
        return
    if message.headers:
        for name, value in message.headers.items():
            _print(f"{name}: {value}")
        _print("")
    if not headers_only:
        _print_body(message.data, spaced=True)


def _print_request(number: int, message: Msg) -> None:
    _note(f"[#{number}] Received on subject {quoted(message.subject)}:")
    for name, value in message.headers.items() if message.headers else []:
        _note(f"{name}: {value}")
    _write(b"\n" + message.data + b"\n")


def _print_body(data: bytes, *, spaced: bool) -> None:
    if not data:
        _write(b"nil body\n" + (b"\n\n" if spaced else b""))
        return
    ended = data.endswith(b"\n")
    _write(data + (b"" if ended else b"\n") + ((b"\n" if ended else b"\n\n") if spaced else b""))


def _print(line: str) -> None:
    _write(line.encode(errors="replace") + b"\n")


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _silence(text: str) -> None:
    del text


def _fail(name: str, code: int, text: str) -> NoReturn:
    sys.stderr.write(f"millstream {name}: {' '.join(str(text).split())}\n")
    raise typer.Exit(code)
