"""What befalls a simulated group: which faults there are, when they come, and how they end.

======================== ==========================================================================
kill, restart            a process dies; the second comes back, under its name if that is static
pause                    SIGSTOP and SIGCONT, up to three times the heartbeat timeout
suspend                  a virtual machine stopped: the monotonic clock too, connection half open
cut                      the connection breaks
leader                   one of the four above, for whoever leads
still, leap, wall        the monotonic clock stands still or jumps ahead; the wall clock jumps
server                   the server is killed and started again; in-memory consumers may be gone
slow, loss               handlers take long; requests, replies, heartbeats, deliveries get lost
conflict                 a foreign writer writes keys' own values again: all revisions are old
foreign                  … deletes or garbles ``leader``, ``members.<id>``, ``done.<id>``,
                         ``parked.<n>``
record                   … deletes or garbles ``part.<n>``
bucket                   the group's bucket is deleted
redeliver                everything pending is delivered again
vanish                   consumers are gone with their node; who pulls hears nothing for a while
zombie                   a consumer of an epoch that is over is made again, as by one that woke up
purge                    the stream drops its oldest messages, handled or not
join, leave              a member comes; a member drains and goes
                         and what operators do (``operators.py``)
======================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from millstream_coordinator import naming
from millstream_coordinator.machine.group import Phase
from millstream_coordinator.model import FailurePolicy
from millstream_coordinator.naming import parse_consumer
from millstream_coordinator.ports import Command, DeleteConsumer, PullEnded

from .operators import KINDS as OPERATIONS

if TYPE_CHECKING:
    from .member import SimulatedMember
    from .world import World

KINDS = (
    *("kill", "kill", "restart", "pause", "pause", "suspend", "suspend", "cut", "leader", "leader"),
    *("still", "leap", "wall", "server", "slow", "loss", "conflict", "foreign", "record", "bucket"),
    *("redeliver", "vanish", "zombie", "purge", "join", "leave", *OPERATIONS),
)
MEETS_BACKLOG = ("kill", "pause", "suspend", "cut", "leader", "still")
GARBAGE = b'{"epoch":"'
PULL_SILENCE_S = 3.0
"""After so long without a heartbeat an adapter asks again for what it pulls, and learns."""


class Faults:
    """The faults of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_done = 0
        self._num_zombies = 0
        self.is_over = False

    def arrange(self, start_s: float, end_s: float) -> None:
        """Draw what is to happen between two moments."""
        chance = self.world.chance
        for _ in range(chance.randint(3, 8)):
            kind = chance.choice(KINDS)
            self.world.scheduler.at(chance.uniform(start_s, end_s), partial(self.befall, kind))

    def befall(self, kind: str) -> None:
        """Let something happen to whoever is there, if need be with a backlog to meet."""
        world, chance = self.world, self.world.chance
        self.num_done += 1
        world.disturbed_at = world.now
        world.note(None, kind)
        world.outcome.kinds.append(kind)
        living = world.living()
        if not living:
            world.start_member()
            return
        victim = chance.choice(living)
        if kind in OPERATIONS:
            world.operators.act(kind, victim)
            return
        if kind == "leader":
            leaders = [one for one in living if one.machine.is_leader]
            victim = leaders[0] if leaders else victim
        if kind not in MEETS_BACKLOG:
            self._befall(kind, victim)
            return
        if world.has_stream:
            self.burst(victim)
        if kind == "leader":
            kind = chance.choice(("kill", "restart", "pause", "suspend", "cut"))
        world.scheduler.after(chance.uniform(0.0, 0.1), partial(self._befall, kind, victim))

    def burst(self, victim: SimulatedMember) -> None:
        """Publish to a member's partitions: a fault that meets no backlog shows nothing."""
        world, chance = self.world, self.world.chance
        num_partitions = world.num_partitions
        for partition in victim.machine.partitions:
            key = f"k{partition + num_partitions * chance.randrange(3)}".encode()
            for _ in range(chance.randint(2, 8)):
                world.publish(key)

    def later(self, low_s: float, high_s: float, action: Callable[[], None]) -> None:
        """End a fault after a while; that disturbs as well. `end` ends all that are left."""

        def act() -> None:
            if not self.is_over:
                self.world.disturbed_at = self.world.now
                action()

        self.world.scheduler.after(self.world.chance.uniform(low_s, high_s), act)

    def end(self) -> None:
        """Everybody wakes and is connected again; somebody is there."""
        world = self.world
        world.note(None, "the faults are over")
        world.disturbed_at = world.now
        world.loss = 0.0
        self._num_zombies = 0
        self.is_over = True
        world.is_server_down = False
        world.cure()
        world.operators.end()
        for member in world.living():
            member.slow_until = 0.0
            if member.is_paused:
                member.wake()
            member.start_clock()
            if member.is_half_open:
                member.disconnect()
            if not member.is_connected:
                member.reconnect()
        if not [one for one in world.living() if one.machine.phase is not Phase.LEAVING]:
            world.start_member()

    # ---- processes and connections ----

    def _befall(self, kind: str, victim: SimulatedMember) -> None:
        world, chance = self.world, self.world.chance
        match kind:
            case "kill":
                victim.kill()
            case "restart":
                victim.kill()
                again = victim.settings.member if victim.settings.is_static else None
                self.later(0.02, 1.0, lambda: self._start_again(again))
            case "pause":
                victim.pause()
                self.later(0.1, 3.0, victim.wake)
            case "suspend":
                self._suspend(victim)
            case "cut":
                victim.disconnect()
                self.later(0.05, 2.0, victim.reconnect)
            case "still":
                victim.stop_clock()
                self.later(0.2, 2.5, victim.start_clock)
            case "leap":
                victim.leap(chance.uniform(0.1, 20.0))
            case "wall":
                world.jump_wall_clock(chance.uniform(-5000.0, 5000.0))
            case "join":
                world.start_member()
            case "leave":
                victim.stop()
            case "slow":
                victim.slow_until = world.now + chance.uniform(0.5, 2.0)
            case _:
                self._befall_server(kind, victim)

    def _start_again(self, name: str | None) -> None:
        """Start a process, unless its name is taken: who was killed twice comes back once."""
        if name not in {one.settings.member for one in self.world.living()}:
            self.world.start_member(name)

    def _suspend(self, victim: SimulatedMember) -> None:
        others = [one for one in self.world.living() if one is not victim]
        victim.suspend()
        if self.world.chance.random() < 0.5:  # so that the sleeper can overtake who took over
            for other in others:
                other.slow_until = self.world.now + 4.0
            victim.slow_until = 0.0
        self.later(0.5, 3.0, lambda: self._wake_half_open(victim))

    def _wake_half_open(self, victim: SimulatedMember) -> None:
        victim.wake()
        self.later(0.1, 1.0, victim.disconnect)
        self.later(1.1, 1.5, victim.reconnect)

    # ---- the server and what it holds ----

    def _befall_server(self, kind: str, victim: SimulatedMember) -> None:
        world, chance = self.world, self.world.chance
        match kind:
            case "server":
                self._stop_server()
            case "loss":
                world.loss = chance.uniform(0.05, 0.3)
                self.later(0.1, 0.6, self._end_loss)
            case "redeliver":
                for name in list(world.server.streams):
                    world.server.redeliver(name)
            case "vanish":
                self._vanish(chance.uniform(0.2, 1.0))
            case "zombie":
                self._num_zombies += chance.randint(1, 3)
                self._make_zombie(chance.randrange(world.num_partitions))
            case "purge":
                self._purge()
            case _:
                self._befall_bucket(kind, victim)

    def _befall_bucket(self, kind: str, victim: SimulatedMember) -> None:
        world, chance = self.world, self.world.chance
        match kind:
            case "conflict":
                for number in world.numbers:
                    self._touch(naming.partition_key(number))
                self._touch(naming.done_key(victim.settings.member))
                self._touch(naming.LEADER_KEY)
            case "foreign":
                self._write_foreign(victim)
            case "record":
                number = chance.randrange(world.num_partitions)
                if world.server.value(world.group, naming.partition_key(number)) is not None:
                    world.checkers.loses_record(number)
                    self._put(naming.partition_key(number), chance.choice((None, GARBAGE)))
            case "bucket":
                world.checkers.loses_bucket()
                world.server.delete_bucket(victim.settings.group)
            case _:
                raise AssertionError(kind)

    def _touch(self, key: str) -> None:
        self.world.server.touch(self.world.group, key)

    def _put(self, key: str, value: bytes | None) -> None:
        server, group = self.world.server, self.world.group
        if server.value(group, key) is not None:
            server.put(group, key, value)

    def _write_foreign(self, victim: SimulatedMember) -> None:
        member = victim.settings.member
        keys = [naming.LEADER_KEY, naming.member_key(member), naming.done_key(member)]
        if self.world.config.on_failure is FailurePolicy.PARK:
            keys.append(naming.parked_key(self.world.chance.randrange(self.world.num_partitions)))
        key = self.world.chance.choice(keys)
        if key.startswith(naming.DONE_PREFIX):
            self.world.checkers.loses_progress()
        self._put(key, self.world.chance.choice((None, GARBAGE)))

    def _end_loss(self) -> None:
        self.world.loss = 0.0

    def _stop_server(self) -> None:
        world = self.world
        if world.is_server_down:
            return
        world.is_server_down = True
        for member in world.living():
            member.disconnect()
        if world.chance.random() < 0.3:
            self._vanish(1.0)
        self.later(0.1, 1.0, self._start_server)

    def _start_server(self) -> None:
        self.world.is_server_down = False
        for member in self.world.living():
            delay_s = self.world.chance.uniform(0.05, 0.2)
            self.world.scheduler.after(delay_s, member.reconnect)

    def _vanish(self, share: float) -> None:
        """Lose consumers without a word; who pulls learns when it misses the heartbeats."""
        chance = self.world.chance
        for stream in self.world.server.streams.values():
            for name in list(stream.consumers):
                if chance.random() >= share:
                    continue
                pull = stream.consumers.pop(name).pull
                if pull is not None:
                    ended = PullEnded(pull=pull.number, reason="503")
                    silence_s = chance.uniform(0.0, PULL_SILENCE_S)
                    self.world.scheduler.after(silence_s, partial(pull.push, ended))

    def after(self, command: Command) -> None:
        """Look at what was just carried out: a zombie comes right after its consumer went."""
        if self._num_zombies and isinstance(command, DeleteConsumer):
            found = parse_consumer(self.world.group, command.name)
            if found is not None:
                self._num_zombies -= 1
                self._make_zombie(found.partition)

    def _make_zombie(self, partition: int) -> None:
        """Make a consumer whose epoch is over, where the server lets one."""
        world = self.world
        record = world.record(partition)
        if record is None or record.epoch < 2 or not world.has_stream:
            return
        name = naming.consumer(world.group, partition, world.chance.randrange(1, record.epoch))
        stream = world.stream_of(partition)
        level = record.level or 0
        if name in stream.consumers or stream.overlaps(world.rule, partition, level):
            return
        world.note(None, f"zombie {name}")
        stream.add_consumer(
            name,
            partition,
            world.rule,
            level=level,
            start_seq=1,
            max_ack_pending=world.limits.max_ack_pending,
            ack_wait_s=world.timing.ack_wait_s,
        )

    def _purge(self) -> None:
        world = self.world
        for name in list(world.server.streams):
            last_seq = world.server.streams[name].last_seq
            below = last_seq + 2 - world.chance.randrange(1, 20)
            if below > 1:
                for seq in world.server.purge(name, below):
                    world.checkers.drops(world.mark_of(name, seq), seq)
