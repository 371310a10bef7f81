"""The coordinator as a process of its own: it leads groups and handles nothing.

Any worker can lead its group, so nobody needs this. It is for groups whose workers are busy, or
come and go all the time: members without capacity, of which one at a time holds the lease. Several
such processes may lead the same groups; a leader that was replaced can change nothing, as every
write is compare-and-set, and workers keep their partitions while nobody leads.

`lead` runs one such member for each group on one connection, until it is told to stop or one of
them fails for good. What a group is (its stream, its partitions, their subjects) is read from its
bucket; a group that nobody started yet needs all three from the caller.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client

from ..errors import GroupError, GroupMissing, ServerUnreachable
from ..events import GroupEvent, Joined
from ..model import Message
from ..partitioning.key import KeyRule
from ..worker import Group
from .settings import CoordinatorSettings
from .view import read_view

T = TypeVar("T")

_CANCEL_AGAIN_S = 0.05

EventListener = Callable[[str, GroupEvent], None]
"""Takes the group's name and what happened in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGroup:
    """What a group that is not there yet is to be.

    ``key`` is the workers' key rule (`KeyRule.parse`): it says which token is the partition, and
    the workers' must name the same subjects. ``stream`` and ``key`` None: membership only.
    """

    partitions: int
    stream: str | None = None
    key: str | None = None


@asynccontextmanager
async def connected(settings: CoordinatorSettings) -> AsyncIterator[Client]:
    """A connection that stays: it comes back by itself however long the server is away.

    Only the first connect is bounded, by ``connect_timeout``. Raises ServerUnreachable.
    """
    servers = [url.strip() for url in settings.nats_url.split(",")]
    failures: list[str] = []

    async def on_error(error: Exception) -> None:
        failures.append(str(error) or type(error).__name__)

    timeout_s = settings.connect_timeout.total_seconds()
    # nats-py types these two as whole seconds and takes fractions.
    fractions: dict[str, Any] = {"connect_timeout": timeout_s, "reconnect_time_wait": 0.1}
    connection = Client()
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect(
                servers=servers,
                name="millstream coordinator",
                max_reconnect_attempts=-1,
                error_cb=on_error,
                **fractions,
            )
    except (TimeoutError, nats.errors.Error, OSError, ValueError) as error:
        await connection.close()
        reason = failures[0] if failures else str(error) or "no answer"
        raise ServerUnreachable(settings.nats_url, reason) from error
    try:
        yield connection
    finally:
        await connection.close()


async def lead(
    connection: Client,
    names: Sequence[str],
    settings: CoordinatorSettings,
    *,
    new: NewGroup | None = None,
    stopping: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
    on_event: EventListener = lambda _group, _event: None,
) -> None:
    """Lead the named groups until ``stopping`` is set; then leave them and return.

    ``new`` is for groups that are not there yet. ``on_ready`` is called once, when this process is
    a member of all of them. Raises the first GroupError of any (GroupMissing without ``new``).
    """
    groups: list[Group] = []
    not_joined = set(names)

    def listen(name: str, event: GroupEvent) -> None:
        on_event(name, event)
        if isinstance(event, Joined) and name in not_joined:
            not_joined.remove(name)
            if not not_joined:
                on_ready()

    for name in dict.fromkeys(names):
        wanted = await unless_stopped(stopping, _definition(connection, name, new))
        if wanted is None:
            return
        group = Group(
            connection,
            stream=wanted.stream,
            name=name,
            partitions=wanted.partitions,
            member=settings.member,
            capacity=0,
            heartbeat_interval=settings.heartbeat_interval,
            heartbeat_timeout=settings.heartbeat_timeout,
            static_grace=settings.static_grace,
            drain_timeout=settings.drain_timeout,
            on_event=partial(listen, name),
        )
        if wanted.rule is not None:
            # It has no capacity, so this is never called; the rule says what the group reads.
            group.handler(wanted.rule)(_handle_nothing)
        groups.append(group)
    with _one_error():
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(group.run(handle_signals=False), name=f"lead {group.name}")
                for group in groups
            ]
            await stopping.wait()
            await asyncio.gather(*(group.stop() for group in groups))
            await asyncio.wait(running)


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; None if ``stopping`` is set before: then it was cancelled.

    For what waits for a server, which may never answer. Raises what ``work`` raises.
    """
    with _one_error():
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(work, name="work")
            told = tasks.create_task(stopping.wait(), name="wait for the end")
            await asyncio.wait([working, told], return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            while not working.done():
                # More than once: wait_for of Python 3.11, which the client uses, drops a
                # cancellation that comes at the same moment as its result.
                working.cancel()
                await asyncio.wait([working], timeout=_CANCEL_AGAIN_S)
    return None if working.cancelled() else working.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Definition:
    """What a member has to say about its group: the same as all others."""

    partitions: int
    stream: str | None
    rule: KeyRule | None


async def _definition(connection: Client, name: str, new: NewGroup | None) -> _Definition:
    """What the group is by its own bucket, else what it is to be. Raises GroupMissing."""
    try:
        config = (await read_view(connection, name)).config
    except GroupMissing:
        if new is None:
            raise
        rule = KeyRule.parse(new.key) if new.key is not None else None
        return _Definition(partitions=new.partitions, stream=new.stream, rule=rule)
    # Only the subjects are known, not how the workers find keys in them; no key is asked for here.
    rule = KeyRule.for_function(_no_key, config.filter) if config.filter is not None else None
    return _Definition(partitions=config.partitions, stream=config.stream, rule=rule)


async def _handle_nothing(message: Message) -> None:
    raise AssertionError(f"a member without capacity got message {message.seq}")


def _no_key(_subject: str, _headers: Mapping[str, str], _payload: bytes) -> bytes | None:
    return None


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise the first GroupError of a task group's in place of the group, if it holds no others.

    No ``except*``: what is raised inside one comes out in another group before Python 3.11.4.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        ours, others = errors.split(GroupError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from errors


def _first(errors: BaseExceptionGroup[GroupError]) -> GroupError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
