"""JetStream's API over a nats-py connection: requests, buckets, and errors as values.

nats-py's own JetStream layer lacks fields (priority groups), validates keys of its own and hides
which error came; a group needs the wire's error codes. So this speaks the JSON API directly; its
shapes are the server's. Durations there are nanoseconds.

**Where JetStream is.** ``$JS.API`` unless it is another domain's (``$JS.<domain>.API``) or comes
through an account's import under a prefix of its own. Buckets are then written under that prefix
too, as all clients do (``$JS.<domain>.API.$KV.<bucket>.<key>``: a server with a domain maps it).
Acks go where the message's reply subject says, which the server writes.
"""

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from ..errors import GroupError, PermissionMissing, ServerUnreachable
from ..ports import Failure
from .link import Link, LinkBroken, NotPermitted

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
MESSAGE_NOT_FOUND = 10037
WRONG_LAST_SEQUENCE = (10071, 10164)
FILTER_OVERLAP = (10099, 10100)
STREAM_NAME_IN_USE = 10058
UNAVAILABLE = 503
"""What a cluster says while it has no leader for something: asked again, it may say otherwise."""
PASSING = (10005, 10118)
"""Said while a node is down: no suitable peers for placement, replicas that cannot be placed."""
API_PREFIX = "$JS.API"
MADE_S = 2.0
"""So long after a bucket was made nobody there means: not yet."""
_EARLY_PAUSE_S = 0.01
READ_AT_ONCE = 64
"""Requests under way at one time where many keys are read."""

NO_EFFECT = {"Nats-Expected-Stream": "-", "Nats-Expected-Last-Sequence": str(2**62)}
"""Headers with which no stream stores a message."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class RequestFailed(GroupError):
    """A request was not carried out. ``code`` is JetStream's error code, 0 if it gave none."""

    def __init__(self, reason: Failure, detail: str, code: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.code = reason, detail, code


class Forbidden(RequestFailed):
    """Nobody answered, since the user may not do what is ``missing``: ``publish to 'a.b'``."""

    def __init__(self, missing: str) -> None:
        super().__init__(Failure.REFUSED, f"no permission to {missing}")
        self.missing = missing


def forbids(error: Exception | None, subject: str, operation: str = "publish") -> bool:
    """Whether ``error`` is a server's word that an operation on ``subject`` is not permitted.

    ``operation`` is ``publish`` or ``subscription``. nats-py gives the text in lower case.
    """
    wanted = f'permissions violation for {operation} to "{subject.lower()}"'
    return wanted in str(error).lower()


async def flushed(connection: Client, timeout_s: float) -> None:
    """Wait until the server has answered to everything that was sent.

    Twice: nats-py writes the PING of a flush at once, before what is still in its own buffer.
    """
    for _ in range(2):
        await connection.flush(timeout=max(1, round(timeout_s)))


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a bucket; ``value`` None: deleted, or never there (then ``revision`` is 0)."""

    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as its stream holds it."""

    subject: str
    seq: int
    headers: dict[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the reply subject of a consumer's message says."""

    num_delivered: int
    seq: int
    consumer_seq: int
    timestamp_ns: int
    num_pending: int


def parse_ack(reply: str) -> Delivery:
    """Read ``$JS.ACK.…``; ValueError or IndexError for what is none.

    The old form has 9 tokens; the new one 11 or 12, with domain and account before the stream and
    perhaps a token nobody needs at the end.
    """
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    return Delivery(*(int(token) for token in tokens[first : first + 5]))


def api_prefix(domain: str | None = None, prefix: str | None = None) -> str:
    """Return what API subjects begin with; ValueError when both are given or one is no token."""
    if domain is not None and prefix is not None:
        raise ValueError("either domain or api_prefix, not both: a domain is a prefix")
    if domain is not None:
        if not domain or set(domain) & set(" .*>\t\r\n"):
            raise ValueError(f"domain {domain!r} is not one subject token")
        return f"$JS.{domain}.API"
    if prefix is None:
        return API_PREFIX
    prefix = prefix.removesuffix(".")
    if not all(prefix.split(".")) or set(prefix) & set(" *>\t\r\n"):
        raise ValueError(f"API prefix {prefix!r} is not a subject without wildcards")
    return prefix


def key_subject(prefix: str, bucket: str, key: str) -> str:
    """Where a bucket's key is written; the bucket stores it as ``$KV.<bucket>.<key>``."""
    stored = f"$KV.{bucket}.{key}"
    return stored if prefix == API_PREFIX else f"{prefix}.{stored}"


def pass_cancellation() -> None:
    """Raise the cancellation of this task that nats-py swallowed, if it did.

    Its ``_flush_pending`` (under publish, subscribe and request) catches CancelledError while it
    waits for room, and returns as if nothing had been.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Api:
    """JetStream as one connection sees it."""

    def __init__(
        self,
        connection: Client,
        timeout_s: float,
        prefix: str = API_PREFIX,
        *,
        is_patient: bool = False,
    ) -> None:
        """``prefix``: see `api_prefix`.

        ``is_patient``: what is not permitted takes as long as what gets no answer, for who would
        ask again at once.
        """
        self.connection = connection
        self.link = Link(connection)
        self.prefix = prefix
        self._timeout_s = timeout_s
        self._is_patient = is_patient
        self._one_question = asyncio.Lock()

    @property
    def url(self) -> str:
        """Host and port of the server, to name it in errors; of all it may be while it is away."""
        url = self.connection.connected_url
        urls = [url] if url else self.connection.servers
        return ",".join(f"{it.hostname}:{it.port}" for it in urls) or "?"

    def subject(self, name: str) -> str:
        """Where the API's function ``name`` is asked."""
        return f"{self.prefix}.{name}"

    def key_subject(self, bucket: str, key: str) -> str:
        """Where a bucket's key is written."""
        return key_subject(self.prefix, bucket, key)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send one request; raises RequestFailed for anything but an answer.

        It ends with the connection it went out on, and that nobody responds is no answer over
        another: what the request found may be gone.
        """
        link = self.link
        if not link.is_up:
            raise RequestFailed(Failure.DISCONNECTED, subject)
        reconnects = link.reconnects
        try:
            async with link.held(None if self._is_patient else partial(self._refuses, subject)):
                reply = await self.connection.request(
                    subject, payload, timeout=timeout_s or self._timeout_s, headers=headers
                )
                pass_cancellation()
        except LinkBroken as error:
            raise RequestFailed(Failure.DISCONNECTED, subject) from error
        except nats.errors.NoRespondersError as error:
            if link.is_broken_since(reconnects):
                raise RequestFailed(Failure.DISCONNECTED, subject) from error
            raise RequestFailed(Failure.NO_RESPONDERS, subject) from error
        except (nats.errors.TimeoutError, NotPermitted) as error:
            missing = await self._missing(subject)
            if missing is not None:
                raise Forbidden(missing) from error
            raise RequestFailed(Failure.TIMEOUT, subject) from error
        except (nats.errors.MaxPayloadError, nats.errors.BadHeaderError) as error:
            raise RequestFailed(Failure.REFUSED, f"{subject}: {error}") from error
        except (nats.errors.Error, OSError) as error:
            raise RequestFailed(Failure.DISCONNECTED, f"{subject}: {error}") from error
        return reply.data

    def failure(self, error: RequestFailed, group: str | None = None) -> GroupError:
        """What a request that failed means to who asked: PermissionMissing or ServerUnreachable."""
        if isinstance(error, Forbidden):
            return PermissionMissing(group, [error.missing])
        reason = str(error)
        if error.reason is Failure.NO_RESPONDERS and error.detail.startswith(f"{self.prefix}."):
            reason = f"no JetStream answers at {self.prefix!r} (is it enabled there?)"
        return ServerUnreachable(self.url, reason)

    def _refuses(self, subject: str, error: Exception) -> bool:
        """Whether the server has said that a request to ``subject``, or an answer, cannot be."""
        inbox = self.connection.new_inbox().rpartition(".")[0].lower()
        no_inbox = f'permissions violation for subscription to "{inbox}.'
        return forbids(error, subject) or no_inbox in str(error).lower()

    async def _missing(self, subject: str) -> str | None:
        """Which permission is missing, if that is why a request to ``subject`` got no answer.

        The server says so on the connection, which keeps only the last it said. So something
        harmless is sent there once more, alone, and then an inbox is subscribed to.
        """
        connection = self.connection
        async with self._one_question:
            complaint = str(connection.last_error).lower()
            if "permissions violation" not in complaint or not connection.is_connected:
                return None
            try:
                await connection.publish(subject, b"?", headers=NO_EFFECT)
                await flushed(connection, self._timeout_s)
                if forbids(connection.last_error, subject):
                    return f"publish to {subject!r}"
                inbox = connection.new_inbox()
                await (await connection.subscribe(inbox)).unsubscribe()
                await flushed(connection, self._timeout_s)
            except (nats.errors.Error, OSError):
                return None
            pass_cancellation()
            if forbids(connection.last_error, inbox, "subscription"):
                return f"subscribe to '{inbox.rpartition('.')[0]}.>'"
        return None

    async def call(
        self, name: str, body: object = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Ask the API's function ``name``; RequestFailed has the code of an error answer."""
        payload = b"" if body is None else _encode(body)
        return _result(await self.request(self.subject(name), payload, None, timeout_s), name)

    async def read(self, bucket: str, key: str) -> Entry:
        """Read a key's newest value from the stream's leader."""
        found = await self.last(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        if found is None:
            return Entry(None, 0)
        return Entry(None if marks_deletion(found.headers) else found.data, found.seq)

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Read a subject's last message; None if there is none."""
        return await self.stored(stream, {"last_by_subj": subject})

    async def stored(self, stream: str, wanted: Mapping[str, object]) -> Stored | None:
        """Read a message from the stream's leader; None if there is none as ``wanted``.

        Which is ``seq``, ``last_by_subj``, or ``next_by_subj`` from ``seq`` on.
        """
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", wanted)
        except RequestFailed as error:
            if error.code == MESSAGE_NOT_FOUND:
                return None
            raise
        message = answer["message"]
        return Stored(
            message["subject"],
            int(message["seq"]),
            parse_headers(base64.b64decode(message.get("hdrs", ""))),
            base64.b64decode(message.get("data", "")),
        )

    async def read_all(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Read the keys that begin with ``prefix`` and have a value, some at a time, by name.

        Key by key: together they are no snapshot.
        """
        stored = f"$KV.{bucket}."
        names: list[str] = []
        while True:
            body = {"subjects_filter": f"{stored}{prefix}>", "offset": len(names)}
            answer = await self.call(f"STREAM.INFO.KV_{bucket}", body)
            page = answer["state"].get("subjects") or {}
            names += [subject.removeprefix(stored) for subject in page]
            if not page or len(names) >= answer.get("total", 0):
                break
        names.sort()
        values: dict[str, bytes] = {}
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            entries = await asyncio.gather(*(self.read(bucket, name) for name in some))
            for name, entry in zip(some, entries, strict=True):
                if entry.value is not None:
                    values[name] = entry.value
        return values

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes,
        revision: int,
        headers: dict[str, str],
        *,
        made_s: float = 0.0,
    ) -> int:
        """Compare-and-set; returns the new revision. RequestFailed's code tells a conflict.

        ``made_s``: the bucket is new, and so long nobody there means not yet. A cluster says that a
        stream is made before every node has heard where its subjects go (seen on 2.15.1).
        """
        subject = self.key_subject(bucket, key)
        give_up_at = time.monotonic() + made_s
        while True:
            try:
                return await self.publish(subject, value, headers, expected=revision)
            except RequestFailed as error:
                is_early = error.reason is Failure.NO_RESPONDERS and time.monotonic() < give_up_at
                if not is_early:
                    raise
                await asyncio.sleep(_EARLY_PAUSE_S)

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str], *, expected: int | None = None
    ) -> int:
        """Publish into a stream, if ``expected`` is the last sequence on the subject (0: none).

        Returns the sequence it got. RequestFailed's code tells a conflict.
        """
        sent = dict(headers)
        if expected is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        return int(_result(await self.request(subject, data, sent), subject)["seq"])

    async def delete(self, bucket: str, key: str, revision: int) -> int:
        """Compare-and-delete; returns the revision of the marker."""
        return await self.write(bucket, key, b"", revision, {"KV-Operation": "DEL"})

    async def stream_names(self, subject: str | None = None) -> list[str]:
        """List streams, all or those that listen on a subject which overlaps ``subject``."""
        body: dict[str, Any] = {} if subject is None else {"subject": subject}
        return await self._pages("STREAM.NAMES", "streams", body)

    async def consumer_names(self, stream: str) -> list[str]:
        """List the consumers of a stream."""
        return await self._pages(f"CONSUMER.NAMES.{stream}", "consumers", {})

    async def _pages(self, name: str, field: str, body: dict[str, Any]) -> list[str]:
        names: list[str] = []
        while True:
            answer = await self.call(name, {**body, "offset": len(names)})
            page = answer.get(field) or []
            names += page
            if not page or len(names) >= answer.get("total", 0):
                return names


def marks_deletion(headers: Mapping[str, str] | None) -> bool:
    """Whether a bucket's message says that the key is not there any more."""
    return headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)


def parse_headers(block: bytes) -> dict[str, str]:
    """Read a header block as STREAM.MSG.GET returns it; the first of repeated names counts."""
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, found, value = line.partition(b":")
        if found:
            headers.setdefault(name.decode("latin-1"), value.strip().decode("utf-8", "replace"))
    return headers


def _result(payload: bytes, subject: str) -> dict[str, Any]:
    try:
        answer = _decode(payload)
    except msgspec.DecodeError as error:
        raise RequestFailed(Failure.REFUSED, f"{subject}: answer is no JSON") from error
    if not isinstance(answer, dict):
        raise RequestFailed(Failure.REFUSED, f"{subject}: answer is no object")
    fault = answer.get("error")
    if fault:
        code = int(fault.get("err_code", 0))
        passes = fault.get("code") == UNAVAILABLE or code in PASSING
        reason = Failure.TIMEOUT if passes else Failure.REFUSED
        raise RequestFailed(reason, str(fault.get("description", "refused")), code)
    return answer
