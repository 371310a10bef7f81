"""Who is in a group, as its leader believes: static members, leases, and who hears nothing."""

from dataclasses import replace

from millstream_coordinator import naming
from millstream_coordinator.events import Cause, MemberDead
from millstream_coordinator.model import MemberRecord, Timing
from millstream_coordinator.ports import WriteKey

from .plane import SHORT_LEASE, STREAM, Plane, Process

GRACE = Timing(drain_timeout_s=3.0, reconcile_interval_s=1.0, static_grace_s=5.0)


def static(plane: Plane, *names: str) -> list[Process]:
    found = [plane.join(name, is_static=True) for name in names]
    plane.until(plane.is_served)
    plane.run(1.0)
    return found


def test_a_rolling_restart_of_static_members_moves_nothing() -> None:
    plane = Plane(6, timing=GRACE)
    static(plane, "a", "b", "c")
    owners = plane.owners()

    for name in "abc":
        old = next(one for one in plane.processes if one.settings.member == name)
        old.stop()
        plane.until(lambda old=old: not old.is_alive)  # type: ignore[misc]
        plane.run(1.0)
        assert plane.owners() == owners
        plane.join(name, is_static=True)
        plane.until(plane.is_served)
        assert plane.owners() == owners
        plane.run(1.0)

    assert not [event for event in plane.kept() if event["event"] == "member_dead"]
    assert len([event for event in plane.kept() if event["event"] == "left"]) == 3
    causes = {event["cause"] for event in plane.kept() if event["event"] == "partition_moved"}
    assert causes == {Cause.RESTARTED}


def test_a_static_member_that_stops_saves_what_it_did() -> None:
    plane = Plane(2, timing=GRACE)
    a, _b = static(plane, "a", "b")
    plane.handler_s = 0.2
    mine = min(a.partitions)
    for _ in range(3):
        plane.server.publish(STREAM, f"s.{mine}.k", b"")
    plane.run(0.1)

    a.stop()
    plane.until(lambda: not a.is_alive)
    plane.run(0.05)
    again = plane.join("a", is_static=True)
    plane.until(lambda: len(again.handled) == 2)

    assert [message.seq for message in a.handled] == [1]
    assert [message.seq for message in again.handled] == [2, 3]
    assert again.assigned(mine).cause == Cause.RESTARTED
    assert again.assigned(mine).stopped_s


def test_a_static_member_that_does_not_come_back_loses_its_partitions_after_its_grace() -> None:
    plane = Plane(timing=GRACE)
    _a, b = static(plane, "a", "b")

    b.kill()
    plane.run(GRACE.static_grace_s - 0.5)
    assert "b" in plane.owners().values()
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served(), 2.0)


def test_one_that_is_away_for_longer_than_its_grace_loses_them_too() -> None:
    plane = Plane(timing=GRACE)
    _a, b = static(plane, "a", "b")

    b.stop()
    plane.until(lambda: not b.is_alive)
    plane.run(GRACE.static_grace_s - 0.5)
    assert "b" in plane.owners().values()
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served(), 2.0)

    assert plane.read(MemberRecord, naming.member_key("b")) is None


def test_a_static_members_record_outlasts_its_grace() -> None:
    long = replace(GRACE, static_grace_s=30.0)
    plane = Plane(timing=long)
    _a, b = static(plane, "a", "b")

    b.kill()
    plane.run(long.static_grace_s - 1.0)

    assert "b" in plane.owners().values()
    assert plane.read(MemberRecord, naming.member_key("b")) is not None


def test_a_member_whose_record_runs_out_while_it_is_heard_keeps_its_partitions() -> None:
    plane = Plane(timing=SHORT_LEASE)
    a, b = plane.settle("a", "b")
    epochs = {n: record.epoch for n, record in plane.records().items()}
    is_cut = True
    plane.loses = lambda one, command: is_cut and one is b and isinstance(command, WriteKey)

    plane.until(lambda: plane.read(MemberRecord, naming.member_key("b")) is None)
    plane.run(3.0)
    is_cut = False
    plane.until(lambda: plane.read(MemberRecord, naming.member_key("b")) is not None, 20.0)
    plane.run(1.0)

    assert {n: record.epoch for n, record in plane.records().items()} == epochs
    assert a.told(MemberDead) == []


def test_it_loses_them_when_it_is_not_heard_any_more() -> None:
    plane = Plane(timing=SHORT_LEASE)
    a, b = plane.settle("a", "b")
    plane.loses = lambda one, command: one is b and isinstance(command, WriteKey)
    plane.until(lambda: plane.read(MemberRecord, naming.member_key("b")) is None)

    b.kill()
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served(), 2.0)

    assert a.assigned(min(a.partitions)).cause in (Cause.NO_RESPONDERS, Cause.JOINED)
    assert a.told(MemberDead) == [MemberDead(member="b", reason="no responders")]


def test_a_member_that_hears_nothing_is_dead_though_it_beats() -> None:
    plane = Plane()
    _a, b = plane.settle("a", "b")
    mine = min(b.partitions)
    b.client.send = lambda event: None
    b.client.probed = lambda *_: None  # type: ignore[method-assign]
    started = plane.now

    plane.until(lambda: plane.owners()[mine] == "a")

    assert plane.now - started < plane.timing.heartbeat_timeout_s + 0.5
    assert plane.records()[mine].cause == Cause.MISSED_HEARTBEATS
