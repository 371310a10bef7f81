"""The coordinator as a process of its own: it leads groups and handles nothing.

Any worker can lead its group, so nobody needs this. It is for groups whose workers are busy, or
come and go all the time: members without capacity, of which one at a time holds the lease. Several
such processes may lead the same groups; a leader that was replaced can change nothing, as every
write is compare-and-set, and workers keep their partitions while nobody leads.

A `Service` runs one such member for each group on one connection, until it is told to stop. What a
group is (its stream, its partitions, their subjects) is read from its bucket; a group that nobody
started yet needs that from the caller.

* **Named groups**: a group that cannot be led, or whose member ends by itself, ends the service
  with its error: a supervisor starts it again, and nobody believes that it leads what it does not.
* **All groups** (``all_groups``): the server is asked every SCAN_S for groups; new ones are led,
  and one that cannot be led is a trouble that `health` and the metrics tell, tried again after
  RETRY_S, while the others go on.

A group that is being deleted is left for RELEASE_S (``millstream.group.<group>.release``): a member
of it would otherwise make its bucket anew.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from .. import naming
from ..errors import ConfigMismatch, GroupError, GroupMissing, MemberReplaced, ServerUnreachable
from ..events import GroupEvent, Joined, Left
from ..group import Group
from ..machine.agreement import differences
from ..model import ConfigRecord, Message
from ..partitioning.key import KeyRule
from .connect import one_error
from .process import unless_stopped
from .settings import CoordinatorSettings
from .target import Target, group_names

logger = logging.getLogger(__name__)

SCAN_S = 2.0
RETRY_S = 5.0
RELEASE_S = 30.0

EventListener = Callable[[str, GroupEvent], object]
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


class Service:
    """One process that leads groups."""

    def __init__(
        self, connection: Client, settings: CoordinatorSettings, *, new: NewGroup | None = None
    ) -> None:
        """Lead ``settings.groups`` or all; ``new`` is for those of them that are not there yet."""
        self.connection = connection
        self.settings = settings
        self.listeners: list[EventListener] = []
        self.led: dict[str, Group] = {}
        """Groups this process is a member of, or is joining."""
        self.troubles: dict[str, str] = {}
        """Groups it should lead and cannot, and why."""
        self._new = new
        self._joined: set[str] = set()
        self._awaited: set[str] = set()
        self._released: dict[str, float] = {}
        self._on_ready: Callable[[], None] = lambda: None
        self._is_ready = False

    @property
    def names(self) -> set[str]:
        """The groups this process is a member of now."""
        return set(self._joined)

    def target(self, group: str) -> Target:
        """A group in an operator's hands. Raises BadName."""
        return Target(self.connection, group, prefix=self.settings.api_prefix)

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether all is well, and the document of ``/healthz``."""
        groups: dict[str, dict[str, object]] = {
            name: {"joined": name in self._joined, "leads": group.is_leader, "trouble": None}
            for name, group in self.led.items()
        }
        groups |= {
            name: {"joined": False, "leads": False, "trouble": trouble}
            for name, trouble in self.troubles.items()
        }
        is_connected = self.connection.is_connected
        is_well = is_connected and all(it["joined"] for it in groups.values())
        return is_well, {
            "schema": "millstream.coordinator.healthz/1",
            "status": "ok" if is_well else "trouble",
            "connected": is_connected,
            "groups": dict(sorted(groups.items())),
        }

    async def run(
        self, stopping: asyncio.Event, *, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        """Lead until ``stopping`` is set; then leave the groups and return.

        ``on_ready`` is called once, when this process is a member of all groups it could join.
        Raises the first GroupError of any named group (GroupMissing without ``new``).
        """
        self._on_ready = on_ready
        subject = naming.release("*")
        releases = await self.connection.subscribe(subject, cb=self._on_release)
        try:
            with one_error():
                async with asyncio.TaskGroup() as tasks:
                    if self.settings.all_groups:
                        await self._lead_all(stopping, tasks)
                    else:
                        await self._lead_named(stopping, tasks)
        finally:
            if not self.connection.is_closed:
                await releases.unsubscribe()

    # ---- named groups ----

    async def _lead_named(self, stopping: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        for name in dict.fromkeys(self.settings.groups):
            group = await unless_stopped(stopping, self._member(name))
            if group is None:
                return
            self.led[name] = group
        self._awaited = set(self.led)
        members = [
            tasks.create_task(self._run(name, stopping), name=f"lead {name}") for name in self.led
        ]
        await self._until_stopped(stopping, members)

    async def _run(self, name: str, stopping: asyncio.Event) -> None:
        """Run a group's member to its end, which must be one that was asked for."""
        try:
            await self.led[name].run(handle_signals=False)
        finally:
            del self.led[name]
            self._joined.discard(name)
        if not stopping.is_set() and name not in self._released:
            raise GroupError(f"group {name!r}: its coordinator ended without being told to")

    async def _until_stopped(
        self, stopping: asyncio.Event, members: list[asyncio.Task[None]]
    ) -> None:
        await stopping.wait()
        await asyncio.gather(*(group.stop() for group in list(self.led.values())))
        if members:
            await asyncio.wait(members)

    # ---- all groups ----

    async def _lead_all(self, stopping: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        members: dict[str, asyncio.Task[None]] = {}
        is_first = True
        while not stopping.is_set():
            try:
                names = await unless_stopped(
                    stopping, group_names(self.connection, prefix=self.settings.api_prefix)
                )
            except ServerUnreachable as error:
                if is_first:
                    raise
                self.log("scan_failed", error=str(error))
                names = []
            now = asyncio.get_running_loop().time()
            self._released = {name: at for name, at in self._released.items() if at > now}
            members = {name: task for name, task in members.items() if not task.done()}
            for name in names or ():
                if name not in members and name not in self._released:
                    self._awaited.add(name)
                    work = self._keep_leading(name, stopping)
                    members[name] = tasks.create_task(work, name=f"lead {name}")
            is_first = False
            self._check_ready()
            with suppress(TimeoutError):
                async with asyncio.timeout(SCAN_S):
                    await stopping.wait()
        await self._until_stopped(stopping, list(members.values()))

    async def _keep_leading(self, name: str, stopping: asyncio.Event) -> None:
        """Lead one of all groups, again and again until it is gone."""
        while not stopping.is_set() and name not in self._released:
            try:
                group = await unless_stopped(stopping, self._member(name))
                if group is None:
                    return
                self.led[name] = group
                self.troubles.pop(name, None)
                await self._run(name, stopping)
            except GroupMissing:
                break
            except MemberReplaced:
                raise
            except GroupError as error:
                self.troubles[name] = str(error)
                self.log("trouble", group=name, error=str(error))
                self._awaited.discard(name)
                self._check_ready()
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await stopping.wait()
        self.troubles.pop(name, None)
        self._awaited.discard(name)
        self._check_ready()

    # ---- one group ----

    async def _member(self, name: str) -> Group:
        """A member that only leads: of the group as its bucket says it, or as it is to be.

        Raises ConfigMismatch where the group is there and is to be another one.
        """
        rule = None
        try:
            config = await self.target(name).config()
        except GroupMissing:
            if self._new is None:
                raise
            partitions, stream = self._new.partitions, self._new.stream
            rule = KeyRule.parse(self._new.key) if self._new.key is not None else None
        else:
            partitions, stream = config.partitions, config.stream
            if self._new is not None:
                wanted = ConfigRecord(
                    partitions=self._new.partitions, stream=self._new.stream, filter=None
                )
                if (differing := differences(config, wanted)) is not None:
                    raise ConfigMismatch(name, differing[1], differing[0])
        settings = self.settings
        group = Group(
            self.connection,
            stream=stream,
            name=name,
            partitions=partitions,
            member=settings.member,
            capacity=0,
            heartbeat_interval=settings.heartbeat_interval,
            heartbeat_timeout=settings.heartbeat_timeout,
            static_grace=settings.static_grace,
            drain_timeout=settings.drain_timeout,
            on_event=lambda event: self._on_event(name, event),
            domain=settings.domain,
            api_prefix=settings.js_prefix,
        )
        if rule is not None:
            # It has no capacity, so this is never called; the rule says what the group reads.
            group.handler(rule)(_handle_nothing)
        return group

    def _on_event(self, name: str, event: GroupEvent) -> None:
        group = self.led.get(name)
        if group is not None and isinstance(event, Joined | Left) and event.member == group.member:
            (self._joined.add if isinstance(event, Joined) else self._joined.discard)(name)
            self._awaited.discard(name)
            self._check_ready()
        for listener in self.listeners:
            listener(name, event)

    def _check_ready(self) -> None:
        if not self._awaited and not self._is_ready:
            self._is_ready = True
            self._on_ready()

    async def _on_release(self, message: Msg) -> None:
        """Somebody deletes the group: leave it for a while."""
        name = message.subject.split(".")[-2]
        group = self.led.get(name)
        if group is None:
            return
        self._released[name] = asyncio.get_running_loop().time() + RELEASE_S
        self.log("released", group=name)
        await group.stop()

    def log(self, event: str, **facts: Any) -> None:
        """Tell something of the service itself."""
        words = " ".join(f"{name}={value}" for name, value in facts.items())
        extra = {"event": event, "facts": facts}
        logger.info("coordinator %s: %s", event.replace("_", " "), words, extra=extra)


async def _handle_nothing(message: Message) -> None:
    raise AssertionError(f"a member without capacity got message {message.seq}")
