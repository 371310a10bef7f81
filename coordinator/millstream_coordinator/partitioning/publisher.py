"""A producer for partitioned topics: the subject a Kafka producer's record would have got.

`SubjectTemplate` is the pure part: ``flights.{partition}.{key}`` with the key written as one token
(``key.py``) and the partition computed by the function the topic's Kafka producers use
(``partition.py``). With the same partitioner and partition count, a
key published here lands in the partition, and under the subject, that the bridge gives its Kafka
records; so producers can move from Kafka one at a time.

**Levels.** ``orders.{partition}.{partition:16}.{key}`` writes the partition out of 16 as well, so
that a group can be resized (``key.py``). The finest number is computed, the others are it modulo
theirs; so they nest for messages without a key as well, and for a partition that was given.

**A stream per partition** (layout ``streams``) is written like any topic: the partition's token
leads a message into its stream. ``stream="ORDERS-{partition}"`` has the server refuse what another
stream would take.

**Trace context.** ``inject`` is called with each message's headers, and may add to them:
``opentelemetry.propagate.inject`` is such a function.

**Replay.** ``replay_for="billing"`` marks a message as one that only the group billing is to handle
(header ``Millstream-Replay``); other groups ack it and go on.

**Which partitioner.** ``kafka`` for Java clients, ``crc32`` for librdkafka and its bindings as they
come, ``nats`` where a stream's own ``{{partition(N, …)}}`` decides. ``nats`` hashes what the server
would: the token, escaped as it is.

**Messages without a key.** Their partition is no function of anything, in Kafka as here: they take
turns over the partitions, from a random one on, and no order is claimed for them. (Java's producer
fills a batch for one partition before it goes on to the next; librdkafka draws at random.) With
``crc32`` that goes for the empty key too, as in librdkafka. With ``nats`` the null key's token is
hashed like any other, as the server would do. ``partition=`` overrides all of it.

**Acknowledgement.** `Publisher.publish` returns when the stream has stored the message.
`Publisher.send` returns as soon as the window has room; the stream stores in the order of the
calls, and what went wrong is raised by a later ``send`` or by ``flush``. Nothing is retried here: a
message whose confirmation is lost may be stored, and a retry could overtake later messages of its
key. Who needs both gives each message a ``Nats-Msg-Id`` header and repeats from the first failed
one on.
"""

import asyncio
import itertools
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import PubAck

from ..arguments import check_number, duration_s
from ..errors import GroupError
from ..naming import REPLAY, check_name
from .key import NULL_TOKEN, KeyRule, KeyRuleError, key_headers, to_token
from .partition import PARTITIONS_MAX, Partitioner, nats as nats_partition, partition_for

HEADERS_BYTES_MAX = 65_535
"""A stream takes no larger header block (nats-server 2.15.1, error 10097)."""

EXPECTED_STREAM = "Nats-Expected-Stream"

Inject = Callable[[dict[str, str]], None]
"""Adds trace context to a message's headers."""

_FIELD = re.compile(r"\{(key|partition|partition:[1-9][0-9]{0,9})\}")
_HEADER_NAME = re.compile(r"[!-9;-~]+")


class TemplateError(GroupError, ValueError):
    """A subject template that cannot be used."""

    def __init__(self, template: str, reason: str) -> None:
        super().__init__(f"subject template {template!r}: {reason}")
        self.template, self.reason = template, reason


class MessageUnfit(GroupError, ValueError):
    """A message that the server would not take; nothing was sent."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"message for {subject!r}: {reason}")
        self.subject, self.reason = subject, reason


class PublishFailed(GroupError):
    """A message that was refused, or whose confirmation did not come (then it may be stored).

    ``more`` counts the messages of the same window, after this one, that failed as well.
    """

    def __init__(self, subject: str, reason: str, more: int = 0) -> None:
        others = f" (and {more} more)" if more else ""
        super().__init__(f"message for {subject!r} was not confirmed: {reason}{others}")
        self.subject, self.reason, self.more = subject, reason, more


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a message is. ``is_duplicate``: its ``Nats-Msg-Id`` was there already."""

    subject: str
    partition: int
    stream: str
    seq: int
    is_duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectTemplate:
    """``flights.{partition}.{key}`` read; made by `parse`.

    ``levels`` are the numbers of partitions there is a token for, ``partitions`` first.
    """

    text: str
    partitions: int
    partitioner: Partitioner
    null_token: str = NULL_TOKEN
    levels: tuple[int, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        partitions: int,
        partitioner: Partitioner | str = Partitioner.KAFKA,
        null_token: str = NULL_TOKEN,
    ) -> Self:
        """Check everything that can be wrong before the first message. Raises TemplateError."""
        try:
            chosen = Partitioner(partitioner)
        except ValueError as error:
            known = ", ".join(Partitioner)
            raise TemplateError(
                text, f"no partitioner {partitioner!r} (there are {known})"
            ) from error
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise TemplateError(text, f"{partitions} partitions (1 to {PARTITIONS_MAX})")
        try:
            to_token(None, null_token=null_token)
        except ValueError as error:
            raise TemplateError(text, str(error)) from error
        tokens = text.split(".")
        for token in tokens:
            if not token or re.search(r"\s", token):
                raise TemplateError(text, "a token is empty or has a space in it")
            if token in ("*", ">"):
                raise TemplateError(text, f"the wildcard {token!r} cannot be published to")
            if re.search(r"[{}]", token) and not _FIELD.fullmatch(token):
                raise TemplateError(
                    text, f"{token!r} is neither '{{partition}}' nor '{{key}}' as a whole token"
                )
        for field in ("{partition}", "{key}"):
            if tokens.count(field) != 1:
                raise TemplateError(text, f"{field!r} must be there once")
        try:
            levels = KeyRule.parse(text).levels(partitions)
        except KeyRuleError as error:
            raise TemplateError(text, error.reason) from error
        if levels[-1] > PARTITIONS_MAX:
            raise TemplateError(text, f"{levels[-1]} partitions (1 to {PARTITIONS_MAX})")
        return cls(
            text=text,
            partitions=partitions,
            partitioner=chosen,
            null_token=null_token,
            levels=levels,
        )

    @property
    def finest(self) -> int:
        """The highest of the levels: a number below it says a key's partition at each of them."""
        return self.levels[-1]

    def place(self, key: bytes | None) -> int | None:
        """The key's partition at the finest level; None when it has none of its own."""
        if self.partitioner is Partitioner.NATS:
            token = to_token(key, null_token=self.null_token)
            return nats_partition(token.encode("ascii"), self.finest)
        return partition_for(self.partitioner, key, self.finest)

    def partition(self, key: bytes | None) -> int | None:
        """The key's partition at the first level; None when it has none of its own."""
        place = self.place(key)
        return None if place is None else place % self.partitions

    def subject(self, key: bytes | None, place: int) -> str:
        """The subject of a key's message; ``place`` is its partition at the finest level."""
        fields = {"{key}": to_token(key, null_token=self.null_token)}
        fields["{partition}"] = str(place % self.partitions)
        for level in self.levels[1:]:
            fields[f"{{partition:{level}}}"] = str(place % level)
        return ".".join([fields.get(part, part) for part in self.text.split(".")])


class Publisher:
    """Publishes keyed messages to a partitioned topic through a connected nats-py client.

    ``window`` is how many messages `send` may have unconfirmed; ``timeout`` how long a confirmation
    may take. ``stream`` is the stream that must take a message, with ``{partition}`` in it where
    there is one per partition; None: whichever listens. ``inject`` adds trace context to headers.
    The connection stays the caller's. As a context manager it flushes at the end.
    """

    def __init__(
        self,
        connection: Client,
        subject: str,
        *,
        partitions: int,
        partitioner: Partitioner | str = Partitioner.KAFKA,
        null_token: str = NULL_TOKEN,
        stream: str | None = None,
        inject: Inject | None = None,
        window: int = 256,
        timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        """Raises TemplateError for a subject, partitioner or count that does not fit.

        ValueError for a ``window`` that is no number from 1, a ``timeout`` that is no timedelta.
        """
        self.template = SubjectTemplate.parse(
            subject, partitions=partitions, partitioner=partitioner, null_token=null_token
        )
        check_number("window", window, 1)
        self._connection = connection
        self._stream = stream
        self._inject = inject
        self._timeout_s = duration_s("timeout", timeout)
        # Confirmed messages leave the client's own count a little later than ours.
        self._jetstream = connection.jetstream(publish_async_max_pending=2 * window)
        self._window = window
        self._unconfirmed: deque[tuple[str, asyncio.Future[PubAck]]] = deque()
        self._failed: deque[tuple[str, str]] = deque()
        self._sending = asyncio.Lock()
        self._turns: Iterator[int] = itertools.count(secrets.randbelow(self.template.finest))

    async def publish(
        self,
        key: bytes | str | None,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        partition: int | None = None,
        replay_for: str | None = None,
    ) -> Stored:
        """Publish, and return when the stream has stored the message.

        A ``str`` key is its UTF-8; ``partition`` is one of the first level, instead of the key's.
        Raises MessageUnfit (nothing sent), PublishFailed, and BadName for ``replay_for``.
        """
        chosen, subject, all_headers = self._prepare(key, payload, headers, partition, replay_for)
        try:
            ack = await self._jetstream.publish(
                subject, payload, timeout=self._timeout_s, headers=all_headers
            )
        except _FAILURES as error:
            raise PublishFailed(subject, _reason(error)) from error
        return Stored(
            subject=subject,
            partition=chosen,
            stream=ack.stream,
            seq=ack.seq,
            is_duplicate=bool(ack.duplicate),
        )

    async def send(
        self,
        key: bytes | str | None,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        partition: int | None = None,
        replay_for: str | None = None,
    ) -> int:
        """Publish, and return the partition once the window has room; `flush` waits for the rest.

        Raises MessageUnfit (nothing sent), and PublishFailed for an earlier message of the window
        (this one is not sent either).
        """
        chosen, subject, all_headers = self._prepare(key, payload, headers, partition, replay_for)
        async with self._sending:
            while len(self._unconfirmed) >= self._window or self._is_oldest_done():
                await self._settle_oldest()
            self._raise_failed()
            try:
                future = await self._jetstream.publish_async(subject, payload, headers=all_headers)
            except _FAILURES as error:
                raise PublishFailed(subject, _reason(error)) from error
            self._unconfirmed.append((subject, future))
        return chosen

    async def flush(self) -> None:
        """Wait until everything sent is stored. Raises PublishFailed if something is not."""
        async with self._sending:
            while self._unconfirmed:
                await self._settle_oldest()
            self._raise_failed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.flush()

    def _prepare(
        self,
        key: bytes | str | None,
        payload: bytes,
        headers: Mapping[str, str] | None,
        partition: int | None,
        replay_for: str | None,
    ) -> tuple[int, str, dict[str, str] | None]:
        """Partition, subject and headers of a message that the server can take."""
        data = key.encode() if isinstance(key, str) else key
        template = self.template
        place = template.place(data)
        if place is None:
            place = next(self._turns) % template.finest
        if partition is not None:
            if not 0 <= partition < template.partitions:
                subject = template.text.replace("{partition}", str(partition))
                raise MessageUnfit(subject, f"there is no partition {partition}")
            place += partition - place % template.partitions
        partition = place % template.partitions
        subject = template.subject(data, place)
        block = {**(headers or {}), **key_headers(data)}
        if self._inject is not None:
            self._inject(block)
        if replay_for is not None:
            block[REPLAY] = check_name("group", replay_for)
        if self._stream is not None:
            block[EXPECTED_STREAM] = self._stream.replace("{partition}", str(partition))
        for name, value in block.items():
            if not _HEADER_NAME.fullmatch(name) or value != value.strip() or "\n" in value:
                raise MessageUnfit(subject, f"header {name!r} would not arrive as it is")
        headers_bytes = _headers_bytes(block)
        if headers_bytes > HEADERS_BYTES_MAX:
            raise MessageUnfit(
                subject, f"{headers_bytes} bytes of headers (at most {HEADERS_BYTES_MAX})"
            )
        size = headers_bytes + len(payload)
        if size > self._connection.max_payload:
            limit = self._connection.max_payload
            raise MessageUnfit(subject, f"{size} bytes, the server's max_payload is {limit}")
        return partition, subject, block or None

    def _is_oldest_done(self) -> bool:
        return bool(self._unconfirmed) and self._unconfirmed[0][1].done()

    async def _settle_oldest(self) -> None:
        """Take the oldest unconfirmed message off the window, stored or not."""
        subject, future = self._unconfirmed[0]
        # Not a plain await: being cancelled here must not cancel the confirmation.
        await asyncio.wait([future], timeout=self._timeout_s)
        self._unconfirmed.popleft()
        if not future.done():
            future.cancel()
            self._failed.append((subject, "no confirmation in time"))
        elif error := future.exception():
            self._failed.append((subject, _reason(error)))

    def _raise_failed(self) -> None:
        if self._failed:
            subject, reason = self._failed[0]
            more = len(self._failed) - 1
            self._failed.clear()
            raise PublishFailed(subject, reason, more)


_FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError)


def _headers_bytes(headers: Mapping[str, str]) -> int:
    """Size of the header block as nats-py writes it."""
    if not headers:
        return 0
    lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    return len("NATS/1.0\r\n") + lines + 2


def _reason(error: BaseException) -> str:
    if isinstance(error, nats.js.errors.NoStreamResponseError):
        return "no stream takes this subject"
    return str(error) or type(error).__name__
