"""One simulated run: a stream, a group, its members, and a schedule of faults drawn from the seed.

Everything is drawn from one ``random.Random(seed)`` and happens in one heap, so a seed is a run:
the same events in the same order, down to the digest. The kinds and number of faults, delays, loss,
limits, retention and whether what is sent to different leaders keeps its order are drawn, too.
After the last fault everybody wakes and is connected again, and the group must come to rest: every
message handled, partitions balanced, no stale consumer left, nothing moving any more.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from functools import partial

from millstream_coordinator import naming
from millstream_coordinator.events import (
    ConsumerReconciled,
    Fenced,
    GroupEvent,
    Joined,
    Left,
    MemberDead,
    PartitionAssigned,
    describe,
)
from millstream_coordinator.machine.group import Phase
from millstream_coordinator.memory import MemoryClient, MemoryServer, MemoryStream
from millstream_coordinator.model import (
    ConfigRecord,
    FailurePolicy,
    Limits,
    MemberSettings,
    Message,
    PartitionRecord,
    PartitionState,
    Retention,
    Timing,
)
from millstream_coordinator.naming import parse_consumer
from millstream_coordinator.partitioning.key import KeyRule, to_token
from millstream_coordinator.partitioning.layout import config_record
from millstream_coordinator.ports import Command, Happening, Reply

from .checkers import Checkers, balance_fault, record_of
from .faults import Faults
from .member import SimulatedMember
from .operators import Operators
from .scheduler import Scheduler

GROUP = "g"
STREAM = "S"
FAULTS_FROM_S = 0.5
FAULTS_UNTIL_S = 5.0
SETTLE_S = 25.0
UNOWNED_BOUND_S = 6.0
POLICIES = (
    *(FailurePolicy.RETRY, FailurePolicy.RETRY, FailurePolicy.RETRY),
    *(FailurePolicy.DEAD_LETTER, FailurePolicy.PARK, FailurePolicy.STOP),
)
LEVELS = ((1, 2), (1, 2, 6), (2, 4), (2, 6), (3, 6))
KEYED = "s.{partition}.{key}"
EVENTS_MAX = 60_000
LOOK_S = 0.25


@dataclass(slots=True)
class Outcome:
    """What a run was."""

    seed: int
    num_events: int = 0
    num_faults: int = 0
    num_published: int = 0
    num_dropped: int = 0
    num_letters: int = 0
    num_resizes: int = 0
    num_handler_calls: int = 0
    num_stale: int = 0
    num_repeated: int = 0
    num_moves: int = 0
    longest_unowned_s: float = 0.0
    virtual_s: float = 0.0
    digest: str = ""
    kinds: list[str] = field(default_factory=list)


class World:
    """A run. ``trace``: keep a readable line of everything that happens."""

    group = GROUP
    capacities: tuple[int, ...] = (1, 1, 1, 2)

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.chance = random.Random(seed)
        self.outcome = Outcome(seed)
        self.trace: list[str] | None = [] if trace else None
        self.scheduler = Scheduler()
        self.retention = self.chance.choice(
            (Retention.LIMITS, Retention.LIMITS, Retention.WORK_QUEUE)
        )
        self.has_stream = self.chance.random() > 0.05
        self.has_streams = self.has_stream and self.chance.random() < 0.15
        """One stream per partition."""
        self.levels: tuple[int, ...] = (self.chance.choice((1, 2, 4, 4, 6)),)
        if self.has_stream and not self.has_streams and self.chance.random() < 0.4:
            self.levels = self.chance.choice(LEVELS)
        self.config = self._make_config()
        self.timing = Timing(
            probe_interval_s=self.chance.choice((0.1, 0.25, 0.25)),
            reconcile_interval_s=1.0,
            audit_interval_s=1.0,
            drain_timeout_s=3.0,
            static_grace_s=self.chance.choice((0.0, 0.0, 1.5)),
            retry_min_s=0.05,
            retry_max_s=0.5,
        )
        self.checkers = Checkers(
            self.scheduler,
            UNOWNED_BOUND_S,
            self.timing.heartbeat_timeout_s,
            self.levels,
            value=lambda key: self.server.value(GROUP, key),
            has_consumers=lambda: any(one.consumers for one in self.server.streams.values()),
            has_streams=self.has_streams,
        )
        self.server = MemoryServer(
            self.checkers,
            clock=lambda: self.scheduler.now,
            has_key_ttl=self.chance.random() > 0.1,
        )
        for name in self.stream_names:
            self.server.add_stream(name, self.retention)
        self.limits = Limits(
            max_ack_pending=self.chance.choice((1, 4, 16, 64)),
            max_lanes=self.chance.choice((1, 4, 16)),
            batch_messages=self.chance.choice((1, 1, 1, 3)),
            batch_wait_s=0.01,
        )
        self.has_hooks = self.chance.random() < 0.2
        self.takes_calls = self.chance.random() < 0.5
        self.members: list[SimulatedMember] = []
        self.is_cluster = self.chance.random() < 0.3
        """What is sent to different leaders keeps no order."""
        self.is_server_down = False
        self.disturbed_at = 0.0
        self.loss = 0.0
        self._base_delay_s = self.chance.choice((0.0002, 0.001, 0.01))
        self._handler_s = self.chance.choice((0.002, 0.02, 0.08))
        self._wall_offset_s = 0.0
        self._members_changed_at = 0.0
        self._num_started = 0
        self._fail_rate = self.chance.choice((0.02, 0.02, 0.1))
        self._poison: set[int] = set()
        """Places of messages whose handler raises, until the faults are over."""
        self._marks: dict[tuple[str, int], int] = {}
        """Stream and sequence → mark."""
        self._digest = hashlib.blake2b(digest_size=8)
        self.faults = Faults(self)
        self.operators = Operators(self)

    def _make_config(self) -> ConfigRecord:
        if not self.has_stream:
            self.rule = KeyRule.parse(KEYED)
            return config_record(None, None, self.levels[0])
        first, *finer = self.levels
        if self.has_streams:
            self.rule = KeyRule.parse("s.{key}")
        else:
            tokens = ["s", "{partition}", *(f"{{partition:{level}}}" for level in finer), "{key}"]
            self.rule = KeyRule.parse(".".join(tokens))
        on_failure = self.chance.choice(POLICIES)
        stream = f"{STREAM}-{{partition}}" if self.has_streams else STREAM
        return config_record(self.rule, stream, first, on_failure=on_failure, max_attempts=2)

    @property
    def stream_names(self) -> list[str]:
        if not self.has_streams:
            return [STREAM]
        return [f"{STREAM}-{number}" for number in range(self.levels[0])]

    @property
    def num_partitions(self) -> int:
        """How many there are now."""
        config = self.operators.config
        return self.levels[0] if config is None else config.active

    @property
    def now(self) -> float:
        return self.scheduler.now

    # ---- chance, asked for by members ----

    def delay(self) -> float:
        return self._base_delay_s * (0.5 + self.chance.expovariate(1.0))

    def loses(self) -> bool:
        return self.chance.random() < self.loss

    def duplicates(self) -> bool:
        return self.chance.random() < 0.02

    def handler_duration(self, *, is_slow: bool) -> float:
        draw = self.chance.random()
        if draw < 0.001 and not self.faults.is_over:
            return 1.5 * self.timing.drain_timeout_s
        mean = max(0.4, self._handler_s) if is_slow else self._handler_s
        return mean * (0.3 + draw)

    def handler_fails(self, message: Message) -> bool:
        if self.checkers.place_of(message) in self._poison:
            return True
        return self.chance.random() < self._fail_rate

    def cure(self) -> None:
        """Let no message fail any more."""
        self._poison.clear()
        self._fail_rate = 0.0

    # ---- what members do ----

    def execute(self, client: MemoryClient, command: Command) -> None:
        self.server.execute(client, command)
        self.faults.after(command)

    def told(self, member: SimulatedMember, event: GroupEvent) -> None:
        self._digest.update(f"{self.now:.9f} {member.name} {event}\n".encode())
        if isinstance(event, PartitionAssigned):
            self.outcome.num_moves += 1
            self.checkers.serves(member.name, event.partition, event.epoch)
        elif isinstance(event, Joined | Left | MemberDead):
            self._members_changed_at = self.now
        if isinstance(event, MemberDead | Fenced | ConsumerReconciled):
            self.outcome.kinds.append(type(event).__name__)

    # ---- the trace ----

    def note(self, member: SimulatedMember | None, text: str) -> None:
        """Note what befalls a member or everybody; part of what makes a seed a run."""
        who = member.name if member is not None else "*"
        self._digest.update(f"{self.now:.9f} {who} {text}\n".encode())
        if self.trace is not None:
            self.trace.append(f"{self.now:9.4f} {who:<8} {text}")

    def note_command(self, member: SimulatedMember, command: Command) -> None:
        assert self.trace is not None
        event = getattr(command, "event", None)
        text = describe(event) if event is not None else _readable(command)
        self.trace.append(f"{self.now:9.4f} {member.name:<8} → {text}")

    def note_event(self, member: SimulatedMember, event: Happening | Reply) -> None:
        assert self.trace is not None
        self.trace.append(f"{self.now:9.4f} {member.name:<8} ← {_readable(event)}")

    # ---- a run ----

    def run(self) -> Outcome:
        """Run to the end; raises Violation at the first broken promise."""
        for _ in range(self.chance.choice((2, 3, 3, 4))):
            self.scheduler.at(self.chance.uniform(0, 0.3), self.start_member)
        if self.has_stream:
            self._arrange_publishing()
        self._arrange_faults()
        self.scheduler.at(LOOK_S, self._look)
        try:
            self._run_until_rest()
        finally:
            self._sum_up()
        return self.outcome

    def _sum_up(self) -> None:
        outcome, checkers = self.outcome, self.checkers
        outcome.num_events = self.scheduler.num_events
        outcome.num_faults = self.faults.num_done
        outcome.virtual_s = self.now
        outcome.num_published = checkers.num_published
        outcome.num_letters = len(checkers.lettered)
        outcome.num_resizes = self.operators.num_resizes
        outcome.num_dropped = len(checkers.dropped)
        outcome.num_handler_calls = checkers.num_handled
        outcome.num_stale = checkers.sink.num_stale
        outcome.num_repeated = checkers.sink.num_repeated
        outcome.longest_unowned_s = checkers.longest_unowned_s
        outcome.digest = self._digest.hexdigest()

    def _arrange_faults(self) -> None:
        self.faults.arrange(FAULTS_FROM_S, FAULTS_UNTIL_S - 0.3)

    def _run_until_rest(self) -> None:
        self.advance_to(FAULTS_UNTIL_S)
        self.faults.end()
        deadline = self.now + SETTLE_S
        while not self.is_at_rest():
            self.advance_to(self.now + 0.1)
            if self.now > deadline:
                self._fail_to_settle()
        self._run_until_clean()
        self.checkers.check_end()

    def _run_until_clean(self) -> None:
        """Go on at rest until reconciler and planner had their time; then nothing may move."""
        rest_until = max(
            self.now + 1.2 * self.timing.reconcile_interval_s,
            self._members_changed_at + self.timing.batch_max_s + 0.5,
        )
        deadline = rest_until + SETTLE_S
        while self.now < rest_until or (
            fault := self._rest_fault() or self._stale_consumer() or self._balance_fault()
        ):
            self.advance_to(self.now + 0.1)
            if self.now > deadline:
                self.checkers.fail(f"no rest {SETTLE_S} s after the last fault: {fault}")
        num_moves = self.outcome.num_moves
        self.advance_to(self.now + 0.5)
        if self.outcome.num_moves != num_moves:
            self.checkers.fail("partitions move at rest")

    def advance_to(self, when: float) -> None:
        if not self.scheduler.run_until(when, EVENTS_MAX):
            self.checkers.fail("the run does not end")

    def _fail_to_settle(self) -> None:
        missing = self.checkers.missing()
        records = [self.record(n) for n in self.numbers]
        fault = self._rest_fault()
        self.checkers.fail(
            f"not at rest {SETTLE_S} s after the last fault: {fault}; {missing}, {records}"
        )

    @property
    def numbers(self) -> range:
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
            self.scheduler.at(at, partial(self.publish, key))

    def publish(self, key: bytes | None) -> None:
        number = self.chance.randrange(1 << 20) if key is None else int(key[1:])
        finest = number % self.levels[-1]
        mark = finest % self.levels[0]
        name = f"{STREAM}-{mark}" if self.has_streams else STREAM
        stream = self.server.streams[name]
        seq = stream.last_seq + 1
        self._marks[name, seq] = mark
        self.checkers.publishes(finest, key, seq)
        has_poison = self.config.on_failure is not FailurePolicy.RETRY
        if has_poison and not self.faults.is_over and self.chance.random() < 0.02:
            self._poison.add(self.checkers.place(mark, seq))
        tokens = [] if self.has_streams else [str(finest % level) for level in self.levels]
        self.server.publish(name, ".".join(["s", *tokens, to_token(key)]), b"")

    def stream_of(self, partition: int) -> MemoryStream:
        """The stream that holds a partition."""
        return self.server.streams[f"{STREAM}-{partition}" if self.has_streams else STREAM]

    def mark_of(self, stream: str, seq: int) -> int:
        """The mark of a stream's message."""
        return self._marks[stream, seq]

    def record(self, number: int) -> PartitionRecord | None:
        """A partition's record, as the bucket has it."""
        return record_of(self.server.value(GROUP, naming.partition_key(number)))

    # ---- members ----

    def start_member(self, member: str | None = None) -> None:
        self._num_started += 1
        is_static = member is not None or self.chance.random() < 0.5
        name = member or f"m{self._num_started}"
        settings = MemberSettings(
            group=GROUP,
            member=name,
            instance=f"{name}.{self._num_started}",
            config=self.config,
            is_static=is_static,
            capacity=self.chance.choice(self.capacities),
            joined_ns=self.wall_ns(),
            timing=self.timing,
            limits=self.limits,
            has_hooks=self.has_hooks,
            takes_calls=self.takes_calls,
        )
        one = SimulatedMember(self, settings)
        self.members.append(one)
        self.note(one, f"starts with capacity {settings.capacity}")
        if self.is_server_down:
            one.is_connected = False
        one.start()
        if self.is_server_down:
            self.server.detach(one.client)

    def wall_ns(self) -> int:
        """The wall clock of whoever starts now: it may have jumped."""
        return max(0, int((1e6 + self.now + self._wall_offset_s) * 10) * 100_000_000)

    def jump_wall_clock(self, seconds: float) -> None:
        self._wall_offset_s += seconds

    def living(self) -> list[SimulatedMember]:
        return [one for one in self.members if one.is_alive]

    # ---- looking on ----

    def _look(self) -> None:
        if not self.is_server_down:
            self.server.tick_if_due()
        owned: set[int] = set()
        for member in self.members:
            if member.is_active:
                owned.update(member.machine.partitions)
        if not [one for one in self.living() if one.machine.phase is Phase.MEMBER]:
            self.disturbed_at = self.now
        config = self.operators.config
        is_resizing = config is not None and config.resize_to is not None
        if self.loss or self.is_server_down or is_resizing:
            self.disturbed_at = self.now
        self.checkers.look(owned, self.num_partitions, max(self.disturbed_at, 1.0))
        self.scheduler.after(LOOK_S, self._look)

    def is_at_rest(self) -> bool:
        if self.operators.mend():
            return False
        return self.checkers.is_complete and self._rest_fault() is None

    def _rest_fault(self) -> str | None:
        served: dict[int, int] = {}
        for member in self.living():
            if member.machine.phase is not Phase.MEMBER:
                return f"{member.name} is {member.machine.phase.name}"
            key = naming.member_key(member.settings.member)
            if self.server.value(GROUP, key) is None:
                return f"{member.name} has no record"
            served.update(member.machine.partitions)
        config = self.operators.config
        if config is None or config.resize_to is not None:
            return f"the configuration is {config}"
        for number in self.numbers:
            record = self.record(number)
            if record is None or record.state is not PartitionState.OWNED:
                return f"partition {number} is {record}"
            if (record.level or self.levels[0]) != config.active:
                return f"partition {number} is of another level: {record}"
            if served.get(number) != record.epoch:
                return f"partition {number} is served under {served.get(number)}, not {record}"
            for member in () if self.has_stream else self.living():
                fault = self.checkers.epoch_fault(member.name, number, record)
                if fault is not None:
                    return fault
        return None

    def _balance_fault(self) -> str | None:
        members = self.living()
        loads = {one.name: len(one.machine.partitions) for one in members}
        return balance_fault(loads, {one.name: one.settings.capacity for one in members})

    def _stale_consumer(self) -> str | None:
        active = self.num_partitions
        for stream in self.server.streams.values():
            for name in stream.consumers:
                found = parse_consumer(GROUP, name)
                assert found is not None
                record = self.record(found.partition)
                is_current = record is not None and record.epoch == found.epoch
                if not is_current or found.partition >= active:
                    return f"consumer {name} is left, its epoch is over"
        for number in range(active, self.levels[-1]):
            if self.record(number) is not None:
                return f"part.{number} is left, there are {active} partitions"
        return None


def _readable(one: object) -> str:
    """A command or happening as one line, without what is not set."""
    facts = []
    for name in one.__slots__:  # type: ignore[attr-defined]
        value = getattr(one, name)
        if name == "message":
            value = f"{value.partition}/{value.seq} epoch {value.epoch} key {value.key}"
        elif name == "messages":
            value = [(message.seq, message.consumer_seq) for message in value]
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        if value is not None:
            facts.append(f"{name}={value}")
    return f"{type(one).__name__} {' '.join(facts)}"
