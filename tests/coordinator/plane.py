"""A few group machines on a `MemoryServer`, in virtual time and without chance.

What a machine asks for is carried out at once, in order; handler calls take ``handler_s``. For
tests of single decisions of the control plane; faults at random are the simulation's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from millstream_coordinator import naming
from millstream_coordinator.events import GroupEvent, PartitionAssigned, decode_events
from millstream_coordinator.machine.group import GroupMachine, Phase
from millstream_coordinator.memory import MemoryClient, MemoryServer, Observer
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    DoneRecord,
    MemberSettings,
    Message,
    PartitionRecord,
    Record,
    Retention,
    Timing,
    decode,
    encode,
)
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import (
    Command,
    Disconnected,
    Failed,
    Failure,
    Handle,
    Handled,
    Happening,
    Reconnected,
    Reply,
    Stop,
    Tell,
)

GROUP = "g"
STREAM = "S"
WALL_NS = 1_700_000_000_000_000_000
"""The wall clock when the plane's time is 0."""
SHORT_LEASE = Timing(drain_timeout_s=3.0, reconcile_interval_s=1.0, lease_s=6.0)

Event = TypeVar("Event", bound=GroupEvent)
R = TypeVar("R", bound=Record)


class _Announcements(Observer):
    def __init__(self) -> None:
        self.all: list[dict[str, object]] = []

    def announced(self, client: MemoryClient, value: bytes) -> None:
        self.all += decode_events(value)


class Process:
    """One machine with its connection."""

    def __init__(self, plane: Plane, settings: MemberSettings) -> None:
        self.plane = plane
        self.settings = settings
        self.machine = GroupMachine(settings)
        self.client = MemoryClient(settings, plane.rule, self._arrive)
        self.is_alive = True
        self.is_connected = True
        self.wall_offset_ns = 0
        self.events: list[GroupEvent] = []
        self.handled: list[Message] = []
        self.error: Exception | None = None
        self._tick_at = float("inf")

    def told(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def assigned(self, partition: int) -> PartitionAssigned:
        """The last time the partition came here."""
        return [it for it in self.told(PartitionAssigned) if it.partition == partition][-1]

    @property
    def partitions(self) -> set[int]:
        return set(self.machine.partitions) if self.is_alive else set()

    def stop(self) -> None:
        self.step(lambda: self.machine.stop(self.plane.now, self._wall_ns))

    def kill(self) -> None:
        """Die without a word, and without a connection."""
        self.is_alive = False
        self.plane.server.detach(self.client)

    def disconnect(self) -> None:
        self.is_connected = False
        self.plane.server.detach(self.client)
        self.take(Disconnected())

    def reconnect(self) -> None:
        self.is_connected = True
        self.plane.server.attach(self.client)
        self.take(Reconnected())

    @property
    def _wall_ns(self) -> int:
        return WALL_NS + int(self.plane.now * 1e9) + self.wall_offset_ns

    def start(self) -> None:
        self.plane.server.attach(self.client)
        self.step(lambda: self.machine.start(self.plane.now, self._wall_ns))

    def take(self, event: Happening | Reply) -> None:
        self.step(lambda: self.machine.receive(event, self.plane.now, self._wall_ns))

    def step(self, act: Callable[[], None]) -> None:
        if not self.is_alive:
            return
        act()
        for command in self.machine.take_commands():
            self._carry_out(command)
        deadline = max(self.machine.next_deadline, self.plane.now)
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.plane.at(deadline, partial(self._tick, deadline))

    def _tick(self, deadline: float) -> None:
        if deadline == self._tick_at:
            self._tick_at = float("inf")
            self.step(lambda: self.machine.tick(self.plane.now, self._wall_ns))

    def _arrive(self, event: Happening | Reply) -> None:
        self.plane.soon(lambda: self.take(event))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Tell():
                self.events.append(command.event)
            case Handle():
                for message in command.messages:
                    self.plane.after(self.plane.handler_s, partial(self._end, message))
            case Stop():
                self.error = command.error
                self.kill()
            case _:
                self.plane.soon(lambda: self._send(command))

    def _send(self, command: Command) -> None:
        if self.is_alive and self.is_connected:
            if not self.plane.loses(self, command):
                self.plane.server.execute(self.client, command)
        elif (id_ := getattr(command, "id", None)) is not None:
            self.take(Failed(id=id_, reason=Failure.DISCONNECTED))

    def _end(self, message: Message) -> None:
        if self.is_alive:
            self.handled.append(message)
            self.plane.handled.append(message)
            self.take(Handled(message=message))


class Plane:
    """The processes, their server and their time."""

    def __init__(
        self,
        partitions: int = 4,
        *,
        stream: str | None = STREAM,
        rule: str = "s.{partition}.{key}",
        levels: tuple[int, ...] = (),
        retention: Retention = Retention.LIMITS,
        has_key_ttl: bool = True,
        prefer_label: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.now = 0.0
        self.handler_s = 0.0
        self.rule = KeyRule.parse(rule)
        self.config = ConfigRecord(
            partitions=partitions,
            stream=stream,
            filter=None if stream is None else rule.replace("{key}", "*"),
            key=None if stream is None else rule,
            levels=levels,
            prefer_label=prefer_label,
        )
        self.timing = timing or Timing(drain_timeout_s=3.0, reconcile_interval_s=1.0)
        self._observer = _Announcements()
        self.server = MemoryServer(self._observer, clock=lambda: self.now, has_key_ttl=has_key_ttl)
        self.stream = self.server.add_stream(STREAM, retention)
        self.processes: list[Process] = []
        self.handled: list[Message] = []
        """By anybody, in order of time."""
        self.loses: Callable[[Process, Command], bool] = lambda _process, _command: False
        """Says which commands never reach the server."""
        self._queue: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._last_timer = 0
        self.after(0.25, self._keep_server)

    # ---- time ----

    def at(self, at: float, act: Callable[[], object]) -> None:
        self._last_timer += 1
        heapq.heappush(self._timers, (at, self._last_timer, act))

    def after(self, delay_s: float, act: Callable[[], object]) -> None:
        self.at(self.now + delay_s, act)

    def soon(self, act: Callable[[], None]) -> None:
        self._queue.append(act)

    def run(self, duration_s: float) -> None:
        self.until(lambda: False, within_s=duration_s, is_expected=False)

    def until(
        self, is_so: Callable[[], bool], within_s: float = 10.0, *, is_expected: bool = True
    ) -> None:
        """Let time pass until something is so; fails when it never is."""
        end = self.now + within_s
        while not (not self._queue and is_so()):
            if self._queue:
                self._queue.popleft()()
            elif self._timers[0][0] <= end:
                self.now, _, act = heapq.heappop(self._timers)
                act()
            else:
                self.now = end
                assert not is_expected, f"not within {within_s} s: {self.records()}"
                return

    def _keep_server(self) -> None:
        self.server.tick()
        self.after(0.25, self._keep_server)

    # ---- members ----

    def join(self, name: str, **settings: object) -> Process:
        number = len(self.processes) + 1
        given = MemberSettings(
            group=GROUP,
            member=name,
            instance=f"{name}.{number}",
            config=self.config,
            joined_ns=number,
            timing=self.timing,
        )
        process = Process(self, replace(given, **settings))  # type: ignore[arg-type]
        self.processes.append(process)
        process.start()
        return process

    def settle(self, *names: str) -> list[Process]:
        """Let members join and wait until everything is served; return them."""
        found = [self.join(name) for name in names]
        self.until(self.is_served)
        self.run(1.0)
        return found

    @property
    def count(self) -> int:
        return (self.read(ConfigRecord, naming.CONFIG_KEY) or self.config).active

    @property
    def num_assigned(self) -> int:
        """How often a partition came to anybody."""
        return sum(len(one.told(PartitionAssigned)) for one in self.processes)

    def is_served(self) -> bool:
        """Whether every partition is served by exactly the process its record names."""
        served = {
            (n, epoch): one.settings.instance
            for one in self.processes
            if one.is_alive and one.machine.phase is not Phase.GONE
            for n, epoch in one.machine.partitions.items()
        }
        records = self.records()
        return set(records) == set(range(self.count)) and all(
            served.get((n, record.epoch)) == record.instance is not None and record.next is None
            for n, record in records.items()
        )

    @property
    def leader(self) -> Process:
        return next(one for one in self.processes if one.is_alive and one.machine.is_leader)

    # ---- the bucket ----

    def read(self, kind: type[R], key: str) -> R | None:
        value = self.server.value(GROUP, key)
        return None if value is None else decode(kind, value)

    def records(self) -> dict[int, PartitionRecord]:
        found = {n: self.read(PartitionRecord, naming.partition_key(n)) for n in range(64)}
        return {n: it for n, it in found.items() if it is not None and not it.is_place}

    def owners(self) -> dict[int, str | None]:
        return {n: record.owner for n, record in self.records().items()}

    def put(self, key: str, record: Record) -> None:
        self.server.put(GROUP, key, encode(record))

    def control(self, **wishes: object) -> None:
        known = self.read(ControlRecord, naming.CONTROL_KEY) or ControlRecord()
        self.put(naming.CONTROL_KEY, replace(known, **wishes))  # type: ignore[arg-type]

    def resize(self, to: int | None) -> None:
        config = self.read(ConfigRecord, naming.CONFIG_KEY)
        assert config is not None
        self.put(naming.CONFIG_KEY, replace(config, resize_to=to))

    def done_keys(self) -> set[str]:
        keys = self.server.keys(GROUP, naming.DONE_PREFIX)
        return {key.removeprefix(naming.DONE_PREFIX) for key in keys}

    def saved(self, holder: str) -> DoneRecord | None:
        return self.read(DoneRecord, naming.done_key(holder))

    def announced(self, name: str) -> list[dict[str, object]]:
        return [one for one in self._observer.all if one["event"] == name]

    def kept(self) -> list[dict[str, object]]:
        """The ring of events, oldest first."""
        found: list[dict[str, object]] = []
        for entry in range(naming.EVENTS_KEPT):
            value = self.server.value(GROUP, naming.event_key(entry))
            found += [] if value is None else decode_events(value)
        return sorted(found, key=lambda event: int(str(event["number"])))
