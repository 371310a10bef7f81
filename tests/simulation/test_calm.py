"""One change at a time, and nothing else: how little moves, and how soon it is served again."""

from collections.abc import Callable

import pytest

from millstream_coordinator.model import Timing
from millstream_coordinator.ports import Listen
from tests.simulation.checkers import record_of
from tests.simulation.member import SimulatedMember
from tests.simulation.world import World

SETTLED_S = 4.0
BATCHED_S = 8.0
"""Joins and leaves are planned together, some time after the last."""
STEP_S = 0.01
SEEDS = range(6)


class CalmWorld(World):
    """A world in which nothing happens but what the test does."""

    capacities = (1,)

    def __init__(self, seed: int, num_members: int = 3) -> None:
        super().__init__(seed)
        self.timing = Timing()
        self.faults.is_over = True
        self.cure()
        self._handler_s = 0.002
        self._base_delay_s = min(self._base_delay_s, 0.001)
        for _ in range(num_members):
            self.scheduler.at(self.chance.uniform(0, 0.3), self.start_member)
        if self.has_stream:
            self._arrange_publishing()

    def handler_duration(self, *, is_slow: bool) -> float:
        return 0.002

    def duplicates(self) -> bool:
        return False

    @property
    def owners(self) -> dict[int, tuple[str | None, int]]:
        """Partition → owner and epoch, as the bucket has it."""
        found = {}
        for number in self.numbers:
            record = record_of(self.server.value(self.group, f"part.{number}"))
            assert record is not None
            found[number] = (record.owner, record.epoch)
        return found

    def settle(self, seconds: float) -> None:
        self.advance_to(self.now + seconds)
        assert self._rest_fault() is None

    def takes_over_in(self, victim: SimulatedMember, befall: Callable[[], None]) -> float:
        """Let something befall a member; how long until all it had is served by others."""
        lost = set(victim.machine.partitions)
        befall()
        began_at = self.now
        while lost:
            self.advance_to(self.now + STEP_S)
            for one in self.living():
                if one is not victim:
                    lost -= set(one.machine.partitions)
            if self.now - began_at > 10:
                self.checkers.fail(f"{lost} are not taken over")
        return self.now - began_at


def fewest_moves(before: dict[int, tuple[str | None, int]], members: list[str]) -> int:
    """What a change of the members costs at least: who stays keeps what it may keep."""
    each, extra = divmod(len(before), len(members))
    loads = [sum(owner == name for owner, _ in before.values()) for name in members]
    kept = sum(min(load, each) for load in loads)
    kept += min(extra, sum(load > each for load in loads))
    return len(before) - kept


@pytest.mark.parametrize("change", ["join", "leave", "kill"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_of_the_members_moves_as_little_as_can_be(seed: int, change: str) -> None:
    world = CalmWorld(seed)
    world.settle(SETTLED_S)
    before = world.owners
    victim = world.chance.choice(world.living())

    if change == "join":
        world.start_member()
    elif change == "leave":
        victim.stop()
    else:
        victim.kill()
    world.settle(BATCHED_S)

    after = world.owners
    members = [one.settings.member for one in world.living()]
    moved = [n for n in before if after[n][0] != before[n][0]]
    assert len(moved) == fewest_moves(before, members)
    assert [n for n in before if after[n][1] != before[n][1]] == moved


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_that_restarts_moves_nothing(seed: int) -> None:
    world = CalmWorld(seed)
    world.settle(SETTLED_S)
    before = world.owners

    world.is_server_down = True
    for member in world.living():
        member.disconnect()
    world.advance_to(world.now + world.chance.uniform(0.1, 1.0))
    world.is_server_down = False
    for member in world.living():
        world.scheduler.after(world.chance.uniform(0.05, 0.2), member.reconnect)
    world.settle(BATCHED_S)

    assert world.owners == before
    assert world.checkers.is_complete


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_killed_member_had_is_served_again_within_half_a_second(seed: int) -> None:
    world = CalmWorld(seed)
    world.settle(SETTLED_S)
    victim = world.chance.choice([one for one in world.living() if one.machine.partitions])

    assert world.takes_over_in(victim, victim.kill) <= 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_hung_member_had_is_served_again_half_a_second_after_the_timeout(
    seed: int,
) -> None:
    world = CalmWorld(seed)
    world.settle(SETTLED_S)
    victim = world.chance.choice([one for one in world.living() if one.machine.partitions])
    bound_s = world.timing.heartbeat_timeout_s + 0.5

    assert world.takes_over_in(victim, victim.pause) <= bound_s


def test_who_is_restarted_twice_comes_back_once() -> None:
    world = CalmWorld(0)
    world.settle(SETTLED_S)
    world.start_member("static")
    world.settle(BATCHED_S)
    victim = world.living()[-1]
    world.faults.is_over = False

    for _ in range(2):
        world.faults._befall("restart", victim)
    world.settle(BATCHED_S)

    assert [one.settings.member for one in world.living()].count("static") == 1


@pytest.mark.parametrize("is_late", [False, True])
def test_what_a_member_listens_to_outlasts_its_connection(*, is_late: bool) -> None:
    """A client keeps a subscription over a reconnect; in the world it must be so as well."""
    world = CalmWorld(0)
    world.settle(SETTLED_S)
    member = world.living()[0]

    if is_late:
        member.disconnect()
    member._carry_out(Listen(member="another"))
    member.disconnect()
    member.reconnect()

    assert member.client.hears == "another"


def nested() -> list[int]:
    """Seeds whose subjects carry tokens for several numbers of partitions."""
    return [seed for seed in range(60) if len(World(seed).levels) > 1][:6]


@pytest.mark.parametrize("seed", nested())
def test_a_resize_repeats_nothing_loses_nothing_and_keeps_the_order(seed: int) -> None:
    world = CalmWorld(seed)
    world.advance_to(1.5)

    for level in (*world.levels[1:], *reversed(world.levels[:-1])):
        config = world.operators.config
        assert config is not None
        world.operators.resize(level)
        world.settle(3.0)
        assert world.num_partitions == level
    world.settle(2.0)

    assert world.checkers.is_complete
    world.checkers.check_end()
    assert world._stale_consumer() is None
    sink = world.checkers.sink
    assert (sink.num_repeated, sink.num_stale) == (0, 0)
