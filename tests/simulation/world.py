"""One simulated run: a stream, a group, its members, and a schedule of faults drawn from the seed.

Everything is drawn from one ``random.Random(seed)`` and happens in one heap, so a seed is a run:
the same events in the same order, down to the digest. The kinds and number of faults, delays, loss,
limits and retention are drawn, too. After the last fault everybody wakes and is connected again,
and the group must come to rest: every message handled, partitions balanced, no stale consumer left.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from functools import partial

from millstream_coordinator import naming
from millstream_coordinator.events import (
    ConsumerReconciled,
    Fenced,
    GroupEvent,
    MemberDead,
    PartitionAssigned,
)
from millstream_coordinator.machine.group import Phase
from millstream_coordinator.memory import MemoryClient, MemoryServer
from millstream_coordinator.model import (
    ConfigRecord,
    DoneRecord,
    Limits,
    MemberSettings,
    PartitionRecord,
    PartitionState,
    Retention,
    Timing,
    decode,
    encode,
)
from millstream_coordinator.naming import parse_consumer
from millstream_coordinator.partitioning.key import KeyRule, to_token
from millstream_coordinator.ports import Command, KeyRead, ReadKey

from .checkers import Checkers, Sink
from .member import SimulatedMember
from .scheduler import Scheduler

GROUP = "g"
STREAM = "S"
FAULTS = (
    "kill",
    "kill",
    "restart",
    "pause",
    "pause",
    "suspend",
    "suspend",
    "cut",
    "server",
    "slow",
    "loss",
    "conflict",
    "redeliver",
    "join",
    "leave",
)
FAULTS_UNTIL_S = 5.0
SETTLE_S = 25.0
UNOWNED_BOUND_S = 6.0
EVENTS_MAX = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """What is broken on purpose, to see that the checkers notice."""

    sink_checks_epoch: bool = True
    respects_done: bool = True


@dataclass(slots=True)
class Outcome:
    """What a run was."""

    seed: int
    num_events: int = 0
    num_faults: int = 0
    num_published: int = 0
    num_handler_calls: int = 0
    num_stale: int = 0
    num_repeated: int = 0
    num_moves: int = 0
    virtual_s: float = 0.0
    digest: str = ""
    kinds: list[str] = field(default_factory=list)


class World:
    """A run."""

    def __init__(self, seed: int, arms: Arms | None = None) -> None:
        self.arms = arms or Arms()
        self.chance = random.Random(seed)
        self.outcome = Outcome(seed)
        self.scheduler = Scheduler()
        self.num_partitions = self.chance.choice((1, 2, 4, 4, 6))
        self.timing = Timing(
            reconcile_interval_s=1.0,
            audit_interval_s=1.0,
            drain_timeout_s=3.0,
            static_grace_s=self.chance.choice((0.0, 0.0, 1.5)),
            retry_min_s=0.05,
            retry_max_s=0.5,
        )
        self.checkers = Checkers(
            Sink(self.arms.sink_checks_epoch), UNOWNED_BOUND_S, self.timing.heartbeat_timeout_s
        )
        self.server = MemoryServer(self.checkers)
        retention = self.chance.choice((Retention.LIMITS, Retention.LIMITS, Retention.WORK_QUEUE))
        self.stream = self.server.add_stream(STREAM, retention)
        self.rule = KeyRule.parse("s.*.{key}")
        self.limits = Limits(
            max_ack_pending=self.chance.choice((1, 4, 16, 64)),
            max_lanes=self.chance.choice((1, 4, 16)),
        )
        self.members: list[SimulatedMember] = []
        self.is_server_down = False
        self.disturbed_at = 0.0
        self._loss = 0.0
        self._base_delay_s = self.chance.choice((0.0002, 0.001, 0.01))
        self._handler_s = self.chance.choice((0.002, 0.02, 0.08))
        self._num_started = 0
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def now(self) -> float:
        return self.scheduler.now

    # ---- chance, asked for by members ----

    def delay(self) -> float:
        return self._base_delay_s * (0.5 + self.chance.expovariate(1.0))

    def loses(self) -> bool:
        return self._loss > 0 and self.chance.random() < self._loss

    def duplicates(self) -> bool:
        return self.chance.random() < 0.02

    def handler_duration(self, *, is_slow: bool) -> float:
        mean = max(0.4, self._handler_s) if is_slow else self._handler_s
        return mean * (0.3 + self.chance.random())

    def handler_fails(self) -> bool:
        return self.chance.random() < 0.02

    # ---- what members do ----

    def execute(self, client: MemoryClient, command: Command) -> None:
        self.server.now = self.now
        is_progress = isinstance(command, ReadKey) and command.key.startswith(naming.DONE_PREFIX)
        if is_progress and not self.arms.respects_done:
            self._execute_without_progress(client, command)
        else:
            self.server.execute(client, command)

    def _execute_without_progress(self, client: MemoryClient, command: Command) -> None:
        send = client.send

        def strip(event: object) -> None:
            assert isinstance(event, KeyRead)
            value = event.value
            if value is not None:
                record = decode(DoneRecord, value)
                bare = {n: replace(one, done=()) for n, one in record.partitions.items()}
                value = encode(replace(record, partitions=bare))
            send(replace(event, value=value))

        client.send = strip
        try:
            self.server.execute(client, command)
        finally:
            client.send = send

    def told(self, member: SimulatedMember, event: GroupEvent) -> None:
        self._note(f"{member.settings.instance} {event}")
        self.outcome.num_moves += isinstance(event, PartitionAssigned)
        if isinstance(event, MemberDead | Fenced | ConsumerReconciled):
            self.outcome.kinds.append(type(event).__name__)

    def _note(self, text: str) -> None:
        self._digest.update(f"{self.now:.9f} {text}\n".encode())

    # ---- a run ----

    def run(self) -> Outcome:
        """Run to the end; raises Violation at the first broken promise."""
        for _ in range(self.chance.choice((2, 3, 3, 4))):
            self.scheduler.at(self.chance.uniform(0, 0.3), self._start_member)
        self._arrange_publishing()
        self._arrange_faults()
        self.scheduler.at(0.25, self._look)
        self._run_until_rest()
        outcome = self.outcome
        outcome.num_events = self.scheduler.num_events
        outcome.virtual_s = self.now
        outcome.num_handler_calls = self.checkers.num_handled
        outcome.num_stale = self.checkers.sink.num_stale
        outcome.num_repeated = self.checkers.sink.num_repeated
        outcome.digest = self._digest.hexdigest()
        return outcome

    def _run_until_rest(self) -> None:
        while self.now < FAULTS_UNTIL_S:
            self._step()
        self._end_faults()
        deadline = self.now + SETTLE_S
        while not self._is_at_rest():
            for _ in range(20):
                self._step()
            if self.now > deadline:
                self._fail_to_settle()
        self._run_until_clean()
        self.checkers.check_end()

    def _run_until_clean(self) -> None:
        """Go on at rest until the reconciler had its time, twice over."""
        rest_until = self.now + 2 * self.timing.reconcile_interval_s
        deadline = rest_until + SETTLE_S
        while self.now < rest_until or not (self._is_at_rest() and not self._stale_consumer()):
            for _ in range(20):
                self._step()
            if self.now > deadline:
                self.checkers.fail(f"consumer {self._stale_consumer()} is left, its epoch is over")

    def _step(self) -> None:
        self.checkers.now = self.now
        if self.scheduler.num_events > EVENTS_MAX or not self.scheduler.step():
            self.checkers.fail("the run does not end")
        self.checkers.now = self.now

    def _fail_to_settle(self) -> None:
        missing = {
            n: [seq for seq in seqs if seq not in self.checkers.handled]
            for n, seqs in self.checkers.published.items()
        }
        records = [self.server.value(GROUP, naming.partition_key(n)) for n in self._numbers()]
        self.checkers.fail(f"not at rest {SETTLE_S} s after the last fault: {missing}, {records}")

    def _numbers(self) -> range:
        return range(self.num_partitions)

    # ---- work ----

    def _arrange_publishing(self) -> None:
        count = self.chance.randint(40, 160)
        keys = [f"k{i}".encode() for i in range(self.chance.choice((1, 3, 6, 16)))]
        burst_at = self.chance.uniform(0.1, FAULTS_UNTIL_S - 1)
        for _ in range(count):
            key = None if self.chance.random() < 0.05 else self.chance.choice(keys)
            is_burst = self.chance.random() < 0.5
            at = burst_at if is_burst else self.chance.uniform(0.1, FAULTS_UNTIL_S)
            self.scheduler.at(at, partial(self._publish, key))
        self.outcome.num_published = count

    def _publish(self, key: bytes | None) -> None:
        number = self.chance.randrange(1 << 20) if key is None else int(key[1:])
        partition = number % self.num_partitions
        self.server.now = self.now
        expected = len(self.stream.messages) + 1
        self.checkers.published.setdefault(partition, []).append(expected)
        entry = (partition, expected if key is None else key)
        self.checkers.by_entry.setdefault(entry, []).append(expected)
        self.server.publish(STREAM, f"s.{partition}.{to_token(key)}", b"")

    # ---- members ----

    def _start_member(self, member: str | None = None) -> None:
        self._num_started += 1
        is_static = member is not None or self.chance.random() < 0.5
        name = member or f"m{self._num_started}"
        settings = MemberSettings(
            group=GROUP,
            member=name,
            instance=f"{name}.{self._num_started}",
            config=ConfigRecord(
                partitions=self.num_partitions, stream=STREAM, filter="s.{partition}.*"
            ),
            is_static=is_static,
            capacity=self.chance.choice((1, 1, 1, 2)),
            joined_ns=self._num_started,
            timing=self.timing,
            limits=self.limits,
        )
        one = SimulatedMember(self, settings)
        self.members.append(one)
        self._note(f"start {settings.instance}")
        if self.is_server_down:
            one.is_connected = False
        one.start()
        if self.is_server_down:
            self.server.detach(one.client)

    def _living(self) -> list[SimulatedMember]:
        return [one for one in self.members if one.is_alive]

    # ---- faults ----

    def _arrange_faults(self) -> None:
        for _ in range(self.chance.randint(3, 8)):
            kind = self.chance.choice(FAULTS)
            at = self.chance.uniform(0.5, FAULTS_UNTIL_S - 0.3)
            self.scheduler.at(at, partial(self._fault, kind))
            self.outcome.num_faults += 1

    def _fault(self, kind: str) -> None:
        self._note(kind)
        self.disturbed_at = self.now
        self.outcome.kinds.append(kind)
        living = self._living()
        if not living:
            self._start_member()
            return
        victim = self.chance.choice(living)
        if kind in ("kill", "pause", "suspend", "cut"):
            self._burst(victim)  # a fault that meets no backlog shows nothing
            delay_s = self.chance.uniform(0.0, 0.1)
            self.scheduler.after(delay_s, partial(self._befall, kind, victim))
        else:
            self._befall(kind, victim)

    def _burst(self, victim: SimulatedMember) -> None:
        for partition in victim.machine.partitions:
            key = f"k{partition + self.num_partitions * self.chance.randrange(3)}".encode()
            for _ in range(self.chance.randint(2, 8)):
                self._publish(key)
                self.outcome.num_published += 1

    def _befall(self, kind: str, victim: SimulatedMember) -> None:
        living = self._living()
        match kind:
            case "kill":
                victim.kill()
            case "restart":
                victim.kill()
                again = victim.settings.member if victim.settings.is_static else None
                self._later(0.02, 1.0, lambda: self._start_member(again))
            case "pause":
                victim.pause()
                self._later(0.1, 3.0, victim.wake)
            case "suspend":
                victim.suspend()
                if self.chance.random() < 0.5:  # so that the sleeper can overtake who took over
                    for other in living:
                        other.slow_until = self.now + 4.0
                    victim.slow_until = 0.0
                self._later(0.5, 3.0, lambda: self._wake_half_open(victim))
            case "cut":
                victim.disconnect()
                self._later(0.05, 2.0, victim.reconnect)
            case "server":
                self._stop_server()
            case "slow":
                victim.slow_until = self.now + self.chance.uniform(0.5, 2.0)
            case "loss":
                self._loss = self.chance.uniform(0.05, 0.3)
                self._later(0.1, 0.6, self._end_loss)
            case _:
                self._mild_fault(kind, victim)

    def _mild_fault(self, kind: str, victim: SimulatedMember) -> None:
        match kind:
            case "conflict":
                for number in self._numbers():
                    self.server.touch(GROUP, naming.partition_key(number))
                self.server.touch(GROUP, naming.done_key(victim.settings.member))
                self.server.touch(GROUP, naming.LEADER_KEY)
            case "redeliver":
                for name in list(self.stream.consumers):
                    self.server.redeliver(STREAM, name)
            case "join":
                self._start_member()
            case "leave":
                victim.stop()
            case _:
                raise AssertionError(kind)

    def _later(self, low_s: float, high_s: float, action: object) -> None:
        def act() -> None:
            self.disturbed_at = self.now
            assert callable(action)
            action()

        self.scheduler.after(self.chance.uniform(low_s, high_s), act)

    def _wake_half_open(self, victim: SimulatedMember) -> None:
        victim.wake()
        self._later(0.1, 1.0, victim.disconnect)
        self._later(1.1, 1.5, victim.reconnect)

    def _end_loss(self) -> None:
        self._loss = 0.0

    def _stop_server(self) -> None:
        if self.is_server_down:
            return
        self.is_server_down = True
        for member in self._living():
            member.disconnect()
        self._later(0.1, 1.0, self._start_server)

    def _start_server(self) -> None:
        self.is_server_down = False
        for member in self._living():
            self.scheduler.after(self.chance.uniform(0.05, 0.2), member.reconnect)

    def _end_faults(self) -> None:
        self.disturbed_at = self.now
        self._loss = 0.0
        if self.is_server_down:
            self._start_server()
        for member in self._living():
            member.slow_until = 0.0
            if member.is_paused:
                member.wake()
            if member.is_half_open:
                member.disconnect()
            if not member.is_connected:
                member.reconnect()
        if not [one for one in self._living() if one.machine.phase is not Phase.LEAVING]:
            self._start_member()

    # ---- looking on ----

    def _look(self) -> None:
        self.server.now = self.now
        if not self.is_server_down:
            self.server.tick()
        owned: set[int] = set()
        for member in self.members:
            if member.is_active:
                owned.update(member.machine.partitions)
        if not [one for one in self._living() if one.machine.phase is Phase.MEMBER]:
            self.disturbed_at = self.now
        if self._loss or self.is_server_down:
            self.disturbed_at = self.now
        if self.checkers.published or self.now > 2:
            self.checkers.look(owned, self.num_partitions, max(self.disturbed_at, 1.0))
        self.scheduler.after(0.25, self._look)

    def _record(self, number: int) -> PartitionRecord | None:
        value = self.server.value(GROUP, naming.partition_key(number))
        return None if value is None else decode(PartitionRecord, value)

    def _is_at_rest(self) -> bool:
        if not self.checkers.is_complete:
            return False
        served: dict[int, int] = {}
        for member in self._living():
            if member.machine.phase is not Phase.MEMBER:
                return False
            served.update(member.machine.partitions)
        for number in self._numbers():
            record = self._record(number)
            if record is None or record.state is not PartitionState.OWNED:
                return False
            if served.get(number) != record.epoch:
                return False
        return True

    def _stale_consumer(self) -> str | None:
        for name in self.stream.consumers:
            found = parse_consumer(GROUP, name)
            assert found is not None
            record = self._record(found.partition)
            if record is None or record.epoch != found.epoch:
                return name
        return None
