"""The bridges of a project's routes in one process, each on its own, and new topics' too.

One route's failure does not stop the others: it is told, and what the whole run comes to says so.
Memory is bounded for the process: routes share what one would have for fetched records.

With a ``group`` the work is shared with every process of that group (see `moving.sharing`).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from millstream_coordinator.operation.process import unless_stopped

from ..errors import BridgeError, ConfigurationError
from ..kafka.admin import KafkaAdmin
from ..model import BridgeReport, Positions, Route
from ..moving.progress import State
from ..moving.runner import Bridge
from ..project.file import Project
from ..project.routes import current_routes

if TYPE_CHECKING:
    from ..moving.sharing import Members

LOOK_FOR_TOPICS_S: Final = 30.0
_QUEUED_KBYTES: Final = "queued.max.messages.kbytes"
_QUEUED_KBYTES_ALL, _QUEUED_KBYTES_MIN = 16_384, 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a route's run ended: with its report, or an error."""

    route: Route
    report: BridgeReport | None = None
    error: BridgeError | None = None


class Fleet:
    """All bridges of one run. ``tell`` gets one line per event; ``on_ready`` is called once.

    ``member`` is this process's name in the ``group``, a random one by default.
    """

    def __init__(
        self,
        project: Project,
        *,
        tell: Callable[[str], None],
        on_ready: Callable[[list[Route]], None],
        group: str | None = None,
        member: str | None = None,
        look_for_topics_s: float = LOOK_FOR_TOPICS_S,
    ) -> None:
        self.bridges: dict[str, Bridge] = {}
        """By topic; those that ended too."""
        self.outcomes: dict[str, Outcome] = {}
        """By topic, of those that ended."""
        self.members: Members | None = None
        self._group, self._member = group, member
        self._project = project
        self._tell = tell
        self._on_ready: Callable[[list[Route]], None] | None = on_ready
        self._look_for_topics_s = look_for_topics_s
        self._waiting: set[str] = set()
        self._failure: BridgeError | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End every bridge as `Bridge.stop` does."""
        self._stopping.set()
        for bridge in self.bridges.values():
            bridge.stop()

    async def run(self, *, stop_at_end: bool) -> list[Outcome]:
        """Run until `stop`, or all routes ended; with ``stop_at_end`` each ends at its end.

        ConfigurationError, Unreachable: the routes could not be found out, the group cannot be
        entered, or ``on_ready`` raised it.
        """
        if stop_at_end and self._group is not None:
            raise ConfigurationError(
                "--stop-at-end does not go with --group: one process cannot know the end of all"
            )
        try:
            routes = await unless_stopped(self._stopping, self._begin())
            if routes is not None:
                await self._run_all(routes, stop_at_end)
        finally:
            if self.members is not None:
                await self.members.leave()
        if self._failure is not None:
            raise self._failure
        return [self.outcomes[topic] for topic in sorted(self.outcomes)]

    async def _run_all(self, routes: Sequence[Route], stop_at_end: bool) -> None:
        async with asyncio.TaskGroup() as tasks:
            runs = [self._start(tasks, route, len(routes), stop_at_end) for route in routes]
            looking = None
            if self._project.has_patterns and not stop_at_end:
                looking = tasks.create_task(self._look(tasks), name="topics")
            await asyncio.wait(runs)
            if looking is not None:
                if not self._stopping.is_set() and len(self._errors) < len(self.bridges):
                    await looking
                looking.cancel()

    async def _begin(self) -> Sequence[Route]:
        """Find the routes out and, with a group, become its member, till the end of the run."""
        routes = await current_routes(self._project)
        self._waiting = {route.topic for route in routes}
        if self._group is not None:
            from ..moving.sharing import Members, slots_of  # noqa: PLC0415 - most run alone

            # Kept before it joins: one that is told to end meanwhile has a group to leave, too.
            self.members = members = Members(
                self._project.nats,
                group=self._group,
                slots=slots_of(routes, await self._partitions()),
                replicas=max([1, *(it.replicas for it in routes)]),
                member=self._member,
            )
            await members.join()
            self._tell(f"member {members.name} of group {self._group}")
        return routes

    async def _partitions(self) -> Mapping[str, int]:
        admin = KafkaAdmin(self._project.kafka, options=self._project.kafka_options)
        try:
            return {name: topic.partitions for name, topic in (await admin.topics()).items()}
        finally:
            await admin.close()

    def error_of(self, bridge: Bridge) -> BridgeError | None:
        """What ended a bridge, if an error did."""
        outcome = self.outcomes.get(bridge.route.topic)
        return None if outcome is None else outcome.error

    @property
    def health(self) -> dict[str, tuple[State, BridgeError | None]]:
        """What each route is doing, by name, and what ended it if an error did."""
        return {
            it.route.name: (it.progress.state, self.error_of(it)) for it in self.bridges.values()
        }

    @property
    def _errors(self) -> list[Outcome]:
        return [it for it in self.outcomes.values() if it.error is not None]

    def _start(
        self, tasks: asyncio.TaskGroup, route: Route, count: int, stop_at_end: bool
    ) -> asyncio.Task[None]:
        share = max(_QUEUED_KBYTES_MIN, _QUEUED_KBYTES_ALL // count)
        bridge = Bridge(
            kafka=self._project.kafka,
            nats=self._project.nats,
            route=route,
            share=None if self.members is None else self.members.share(route),
            kafka_options={_QUEUED_KBYTES: str(share), **self._project.kafka_options},
            on_ready=lambda positions: self._ready(route, positions),
        )
        self.bridges[route.topic] = bridge
        if self._stopping.is_set():
            bridge.stop()
        return tasks.create_task(self._run_one(bridge, stop_at_end), name=f"bridge {route.name}")

    async def _run_one(self, bridge: Bridge, stop_at_end: bool) -> None:
        route = bridge.route
        try:
            report = await bridge.run(stop_at_end=stop_at_end)
        except BridgeError as error:
            self.outcomes[route.topic] = Outcome(route=route, error=error)
            if self._project.is_file:
                self._tell(f"bridge {route.topic} → {route.stream} stopped: {error}")
            self._is_ready(route.topic)
        else:
            self.outcomes[route.topic] = Outcome(route=route, report=report)

    def _ready(self, route: Route, positions: Positions) -> None:
        how = f"and goes on after {sum(positions.values()):,} offsets stored before"
        if self._group is not None:
            how = f"and moves what group {self._group} gives it"
        self._tell(f"bridge {route.topic} → {route.stream} is ready {how}")
        self._is_ready(route.topic)

    def _is_ready(self, topic: str) -> None:
        self._waiting.discard(topic)
        running = [it.route for it in self.bridges.values() if it.route.topic not in self._failed]
        if not self._waiting and running and self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            try:
                on_ready(running)
            except BridgeError as error:  # whoever waits for it would wait for ever
                self._failure = error
                self.stop()

    @property
    def _failed(self) -> set[str]:
        return {it.route.topic for it in self._errors}

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        """Give topics that came later their bridges, until told to stop."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_for_topics_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            try:
                routes = await current_routes(self._project)
            except BridgeError as error:
                self._tell(f"looking for topics: {error}")
                continue
            for route in routes:
                if route.topic not in self.bridges:
                    self._tell(f"topic {route.topic} is new")
                    self._start(tasks, route, len(routes), stop_at_end=False)
