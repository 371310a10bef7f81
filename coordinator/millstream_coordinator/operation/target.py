"""A group's bucket in an operator's hands: compare-and-set writes, and requests around them.

Every change an operator makes is one of these writes (or several, one key each): read the value,
check it, compute the new one, write it only if nobody wrote in between, else begin again. So two
operators, a leader and an owner at the same key never undo one another, and a dry run is the same
without the write.

What the server or the bucket says becomes one of `GroupError`'s kinds here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .. import naming
from ..errors import (
    Contended,
    GroupMissing,
    NotPossible,
    PermissionMissing,
    ServerUnreachable,
    StreamMissing,
)
from ..jetstream.api import (
    API_PREFIX,
    CONSUMER_NOT_FOUND,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    Api,
    Forbidden,
    RequestFailed,
    flushed,
    forbids,
)
from ..jetstream.permissions import Grant, Needs, check
from ..model import ConfigRecord, ControlRecord, ParkedRecord, PartitionRecord, decode, encode
from ..partitioning.layout import place
from ..ports import Failure
from .view import GroupView, read_view

Writable = ConfigRecord | ControlRecord | ParkedRecord | PartitionRecord
R = TypeVar("R", ConfigRecord, ControlRecord, ParkedRecord, PartitionRecord)
T = TypeVar("T")

TIMEOUT_S = 2.0
KNOWN_VERSION = 1
"""Records of a later version are not written: fields this program does not know would be lost."""
ATTEMPTS = 20
"""So often a write is begun again when others were faster; then `Contended`."""
CONCURRENT_REQUESTS = 32


class Target:
    """A group on a server, in the hands of an operator: what every operation takes first."""

    def __init__(self, connection: Client, group: str, *, prefix: str = API_PREFIX) -> None:
        """``prefix``: of JetStream's API, where a domain or an import changes it.

        Raises BadName.
        """
        self.connection = connection
        self.group = naming.check_name("group", group)
        self.bucket = naming.bucket(group)
        self.prefix = prefix
        self.api = Api(connection, TIMEOUT_S, prefix)

    async def view(self) -> GroupView:
        """Every record of the group. Raises GroupMissing, BadRecord, ServerUnreachable."""
        return await read_view(self.connection, self.group, prefix=self.prefix)

    async def config(self) -> ConfigRecord:
        """What the group is. Raises GroupMissing, BadRecord, ServerUnreachable."""
        with self.errors():
            entry = await self.api.read(self.bucket, naming.CONFIG_KEY)
        if entry.value is None:
            raise GroupMissing(self.group)
        return decode(ConfigRecord, entry.value)

    async def update(
        self,
        key: str,
        absent: R | None,
        change: Callable[[R], R],
        *,
        kind: type[R],
        dry_run: bool,
    ) -> tuple[R, R]:
        """Write ``change(value)``; returns the value before and after. Equal: nothing is written.

        ``absent`` stands for a key that is not there; None: then NotPossible is raised. ``change``
        may be called more than once, and refuse by raising. Raises Contended, GroupMissing,
        BadRecord, NotPossible, ServerUnreachable.
        """
        for _ in range(ATTEMPTS):
            with self.errors():
                entry = await self.api.read(self.bucket, key)
            before = absent if entry.value is None else decode(kind, entry.value)
            if before is None:
                raise NotPossible(self.group, f"its bucket has no {key!r}")
            self._check_version(key, before)
            after = change(before)
            if after == before or dry_run:
                return before, after
            try:
                await self.api.write(self.bucket, key, encode(after), entry.revision, {})
            except RequestFailed as error:
                if error.code in WRONG_LAST_SEQUENCE:
                    continue
                with self.errors():
                    raise
            return before, after
        raise Contended(self.group, key, ATTEMPTS)

    def _check_version(self, key: str, record: Writable) -> None:
        version = getattr(record, "version", KNOWN_VERSION)
        if version > KNOWN_VERSION:
            reason = f"{key!r} is of version {version}, this program knows {KNOWN_VERSION}"
            raise NotPossible(self.group, f"{reason}: use a newer one")

    async def consumer_names(self, stream: str) -> list[str]:
        """Names of a stream's consumers. Raises StreamMissing."""
        with self.errors(stream):
            return await self.api.consumer_names(stream)

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer; one that is not there counts as deleted."""
        with self.errors(stream):
            try:
                await self.api.call(f"CONSUMER.DELETE.{stream}.{name}")
            except RequestFailed as error:
                if error.code != CONSUMER_NOT_FOUND:
                    raise

    async def stream_info(self, stream: str) -> dict[str, Any] | None:
        """STREAM.INFO as the server answers it; None: no such stream."""
        with self.errors():
            try:
                return await self.api.call(f"STREAM.INFO.{stream}")
            except RequestFailed as error:
                if error.code == STREAM_NOT_FOUND:
                    return None
                raise

    async def delete_stream(self, stream: str) -> None:
        """Delete a stream; one that is not there counts as deleted."""
        with self.errors():
            try:
                await self.api.call(f"STREAM.DELETE.{stream}")
            except RequestFailed as error:
                if error.code != STREAM_NOT_FOUND:
                    raise

    async def is_alive(self, member: str) -> bool:
        """Whether a process answers under the member's name; silence counts as alive."""
        with self.errors():
            try:
                await self.api.request(naming.probe(self.group, member))
            except Forbidden:
                raise
            except RequestFailed as error:
                return error.reason is not Failure.NO_RESPONDERS
        return True

    async def check_may(self, *, calls: Iterable[str] = (), keys: Iterable[str] = ()) -> None:
        """Try what is about to be done, harmlessly: no operation stops half way for want of it.

        ``calls``: functions of JetStream's API; ``keys``: of the bucket, to be written. Raises
        PermissionMissing, ServerUnreachable.
        """
        grants = [Grant.of_call(self.api.subject(it)) for it in calls]
        grants += [Grant.of_store(self.api.key_subject(self.bucket, it)) for it in keys]
        await check(self.connection, Needs(group=self.group, publish=tuple(grants)), TIMEOUT_S)

    async def listen(self, subject: str, hear: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe; returns when the server has taken it. Raises PermissionMissing."""
        with self.errors():
            subscription = await self.connection.subscribe(subject, cb=hear)
            await flushed(self.connection, TIMEOUT_S)
            if forbids(self.connection.last_error, subject, "subscription"):
                await subscription.unsubscribe()
                raise PermissionMissing(self.group, [f"subscribe to {subject!r}"])
            return subscription

    @contextmanager
    def errors(self, stream: str | None = None) -> Iterator[None]:
        """Raise what went wrong as what it means: no group (or no ``stream``), or no server."""
        try:
            yield
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                raise (StreamMissing(stream) if stream else GroupMissing(self.group)) from error
            raise self.api.failure(error, self.group) from error
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ServerUnreachable(self.api.url, reason) from error


async def group_names(connection: Client, *, prefix: str = API_PREFIX) -> list[str]:
    """What may be groups of the server, by their buckets' names, in order.

    Raises ServerUnreachable, and PermissionMissing when the list may not be read.
    """
    head = f"KV_{naming.bucket('')}"
    api = Api(connection, TIMEOUT_S, prefix)
    try:
        streams = await api.stream_names()
    except RequestFailed as error:
        raise api.failure(error) from error
    return sorted(it.removeprefix(head) for it in streams if it.startswith(head))


def streams(config: ConfigRecord) -> list[str]:
    """Every stream a group reads, once each, in the order of its partitions."""
    places = (place(config, it) for it in range(config.active))
    return list(dict.fromkeys(it.stream for it in places if it is not None))


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; at most CONCURRENT_REQUESTS at one time. The first error ends it."""
    limit = asyncio.Semaphore(CONCURRENT_REQUESTS)

    async def one(it: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await it

    return await asyncio.gather(*(one(it) for it in work))
