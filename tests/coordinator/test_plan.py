"""What the leader decides: who owns what, for which cause, and how long it waits for others."""

from collections import Counter
from dataclasses import replace
from functools import partial

from millstream_coordinator import naming
from millstream_coordinator.events import Cause, MemberDead, PartitionLost
from millstream_coordinator.model import ControlRecord, MemberRecord, PartitionState

from .plane import STREAM, Plane


def test_a_pin_moves_a_partition_and_keeps_the_balance() -> None:
    plane = Plane()
    plane.settle("a", "b")
    mine = next(n for n, owner in plane.owners().items() if owner == "a")

    plane.control(pins={mine: "b"})
    plane.until(lambda: plane.owners()[mine] == "b" and plane.is_served())

    assert Counter(plane.owners().values()) == {"a": 2, "b": 2}
    assert plane.records()[mine].cause == Cause.MOVED


def test_a_pin_ends_with_its_member_and_is_forgotten() -> None:
    plane = Plane()
    plane.settle("a", "b")
    plane.control(pins={0: "b", 1: "b", 2: "b", 3: "b"})
    plane.until(lambda: set(plane.owners().values()) == {"b"})

    next(one for one in plane.processes if one.settings.member == "b").kill()
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served())
    plane.run(1.0)

    assert plane.read(ControlRecord, naming.CONTROL_KEY) == ControlRecord()


def test_a_draining_member_owns_nothing_and_stays_a_member() -> None:
    plane = Plane()
    plane.settle("a", "b")

    plane.control(draining=("a",))
    plane.until(lambda: set(plane.owners().values()) == {"b"} and plane.is_served())

    assert Cause.DRAINED in {record.cause for record in plane.records().values()}
    assert plane.read(MemberRecord, naming.member_key("a")) is not None

    plane.control(draining=())
    plane.until(lambda: Counter(plane.owners().values()) == {"a": 2, "b": 2})


def test_what_moves_stays_in_its_rack() -> None:
    plane = Plane(12, prefer_label="rack")
    for name, rack in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")):
        plane.join(name, labels={"rack": rack})
    plane.until(plane.is_served)
    plane.run(1.0)
    of_b = {n for n, owner in plane.owners().items() if owner == "b"}

    next(one for one in plane.processes if one.settings.member == "b").kill()
    plane.until(lambda: "b" not in plane.owners().values() and plane.is_served())

    assert len([n for n in of_b if plane.owners()[n] == "d"]) == 1


def test_a_death_is_told_with_its_cause_and_the_time_since_it_was_heard() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    mine = min(b.partitions)

    b.kill()
    plane.until(lambda: mine in a.partitions)

    event = a.assigned(mine)
    assert event.cause == Cause.NO_RESPONDERS
    assert event.stopped_s is not None
    assert 0.05 < event.stopped_s < 0.5
    assert MemberDead(member="b", reason="no responders") in a.told(MemberDead)


def test_a_silent_member_is_told_as_such() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    mine = min(b.partitions)

    b.is_alive = False  # stopped: its connection is there and answers nothing
    b.client.probed = lambda *_: None  # type: ignore[method-assign]
    plane.until(lambda: mine in a.partitions)

    assert a.assigned(mine).cause == Cause.MISSED_HEARTBEATS
    assert 0.9 < (a.assigned(mine).stopped_s or 0) < 1.6


def test_a_graceful_move_tells_how_long_the_draining_took() -> None:
    plane = Plane(1)
    plane.settle("a")
    plane.handler_s = 0.4
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(0.05)

    b = plane.join("b")
    plane.until(lambda: b.machine.phase.name == "MEMBER")
    plane.control(pins={0: "b"})
    plane.until(lambda: b.partitions == {0})

    assert b.assigned(0).cause == Cause.MOVED
    assert 0.0 < (b.assigned(0).stopped_s or 0) < 0.4


def test_a_member_that_left_and_one_that_joined_are_the_causes() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    assert {b.assigned(n).cause for n in b.partitions} == {Cause.JOINED}

    b.stop()
    plane.until(lambda: not b.is_alive)
    plane.until(plane.is_served)

    assert {a.assigned(n).cause for n in range(4)} == {Cause.JOINED, Cause.LEFT}
    assert b.error is None
    plane.run(1.0)
    assert a.told(MemberDead) == []


def test_a_wall_clock_that_jumps_changes_nothing_but_what_is_told() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    mine = min(b.partitions)

    a.wall_offset_ns = -3600 * 10**9
    b.kill()
    plane.until(lambda: mine in a.partitions)

    assert a.assigned(mine).stopped_s is not None
    assert plane.is_served()


def test_a_reset_under_the_same_owner_is_served_again_under_its_cause() -> None:
    plane = Plane(1)
    (a,) = plane.settle("a")
    for _ in range(5):
        plane.server.publish(STREAM, "s.0.k", b"")
    plane.until(lambda: len(a.handled) == 5)
    plane.run(1.0)
    record = plane.records()[0]

    new = replace(record, epoch=record.epoch + 1, floor=2, done_from=None, cause=Cause.RESET)
    plane.put(naming.partition_key(0), new)
    plane.until(lambda: len(a.handled) == 8)

    assert [message.seq for message in a.handled] == [1, 2, 3, 4, 5, 3, 4, 5]
    assert a.assigned(0).cause == Cause.RESET


def test_a_start_position_written_before_the_group_ran_is_kept() -> None:
    plane = Plane(1)
    (first,) = plane.settle("a")
    first.stop()
    plane.until(lambda: not first.is_alive)
    record = plane.records()[0]
    assert record.state is PartitionState.FREE
    for _ in range(5):
        plane.server.publish(STREAM, "s.0.k", b"")

    plane.put(naming.partition_key(0), replace(record, floor=3, cause=Cause.RESET))
    (second,) = plane.settle("b")

    assert [message.seq for message in second.handled] == [4, 5]
    assert second.assigned(0).cause == Cause.RESET


def test_members_that_join_together_are_one_plan() -> None:
    plane = Plane(12)
    (a,) = plane.settle("a")
    before = plane.num_assigned

    for delay_s, name in enumerate("bcd"):
        plane.after(delay_s * 0.1, partial(plane.join, name))
    plane.run(0.4)
    assert plane.num_assigned == before
    plane.until(lambda: Counter(plane.owners().values()) == dict.fromkeys("abcd", 3))
    plane.until(plane.is_served)

    assert plane.num_assigned - before == 9
    assert len(a.told(PartitionLost)) == 0


def test_no_join_waits_for_ever_for_others() -> None:
    plane = Plane(32)
    plane.settle("a")
    for number in range(40):
        plane.after(number * 0.2, partial(plane.join, f"m{number}"))

    plane.run(plane.timing.batch_max_s + 0.3)

    assert len(set(plane.owners().values())) > 5


def test_a_death_does_not_wait_for_a_batch() -> None:
    plane = Plane()
    _a, b = plane.settle("a", "b")
    mine = min(b.partitions)
    plane.join("c")
    plane.run(0.01)

    b.kill()
    started = plane.now
    plane.until(lambda: plane.owners()[mine] != "b")

    assert plane.now - started < 0.25


def test_a_new_group_of_five_makes_each_partition_once() -> None:
    plane = Plane(10)
    for name in "abcde":
        plane.join(name)
    plane.until(plane.is_served)

    assert {record.epoch for record in plane.records().values()} == {1}
    assert set(Counter(plane.owners().values()).values()) == {2}


def test_a_new_group_of_many_partitions_waits_longer_for_those_who_come_together() -> None:
    large, small = Plane(1000), Plane(250)
    for plane in (large, small):
        plane.join("a")
        plane.run(plane.timing.batch_s + 0.3)

    assert small.records()
    assert not large.records()
