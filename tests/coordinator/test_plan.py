"""What the leader decides: wishes of operators, causes, batches, graces, versions, what is left."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TypeGuard

import pytest

from millstream_coordinator import naming
from millstream_coordinator.errors import ConfigMismatch, GroupTooNew
from millstream_coordinator.events import (
    Cause,
    ConsumerReconciled,
    JoinRefused,
    MemberDead,
    PartitionAssigned,
    PartitionLost,
    PartitionMoved,
    Paused,
    RecordTooNew,
    Resumed,
    StreamDoubtful,
)
from millstream_coordinator.memory import MemoryClient
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    FailurePolicy,
    MemberRecord,
    PartitionState,
    Timing,
    encode,
)
from millstream_coordinator.ports import (
    Command,
    CreateConsumer,
    Failed,
    Failure,
    Handled,
    KeyChanged,
    Prepare,
    Prepared,
    ReadKey,
    Watch,
    WriteKey,
)

from .plane import GROUP, STREAM, Plane, Process

SHORT = Timing(drain_timeout_s=3.0, reconcile_interval_s=1.0, lease_s=6.0)
GRACE = Timing(drain_timeout_s=3.0, reconcile_interval_s=1.0, static_grace_s=5.0)


def moves(plane: Plane) -> int:
    return sum(len(one.told(PartitionAssigned)) for one in plane.processes)


# ---- what operators ask for ----


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


def test_pause_and_resume_are_told_by_everybody_and_kept_once() -> None:
    plane = Plane()
    both = plane.settle("a", "b")

    plane.control(is_paused=True)
    plane.run(0.5)
    plane.control(is_paused=False, paused=(1, 2))
    plane.run(0.5)

    for one in both:
        assert one.told(Paused) == [Paused(), Paused(partitions=(1, 2))]
        assert one.told(Resumed) == [Resumed()]
    assert [event["event"] for event in plane.kept() if event["event"] == "resumed"] == ["resumed"]


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


# ---- causes, and how long a partition stood still ----


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


# ---- together ----


def test_members_that_join_together_are_one_plan() -> None:
    plane = Plane(12)
    (a,) = plane.settle("a")
    before = moves(plane)

    for delay_s, name in enumerate("bcd"):
        plane.after(delay_s * 0.1, partial(plane.join, name))
    plane.run(0.4)
    assert moves(plane) == before
    plane.until(lambda: Counter(plane.owners().values()) == dict.fromkeys("abcd", 3))
    plane.until(plane.is_served)

    assert moves(plane) - before == 9
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


# ---- static members ----


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


# ---- without a leader, and without leases that run out ----


def test_workers_go_on_without_a_leader() -> None:
    plane = Plane()
    plane.join("lead", capacity=0)
    plane.run(0.5)
    a = plane.join("a", can_lead=False)
    plane.until(plane.is_served)
    plane.leader.kill()

    plane.run(8.0)
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.until(lambda: len(a.handled) == 1)

    assert not a.machine.is_leader
    assert a.told(PartitionLost) == []


def test_a_member_whose_record_runs_out_while_it_is_heard_keeps_its_partitions() -> None:
    plane = Plane(timing=SHORT)
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
    plane = Plane(timing=SHORT)
    a, b = plane.settle("a", "b")
    plane.loses = lambda one, command: one is b and isinstance(command, WriteKey)
    plane.until(lambda: plane.read(MemberRecord, naming.member_key("b")) is None)

    b.kill()
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served(), 2.0)

    assert a.assigned(min(a.partitions)).cause in (Cause.NO_RESPONDERS, Cause.JOINED)
    assert a.told(MemberDead) == [MemberDead(member="b", reason="no responders")]


def test_a_leader_that_renews_nothing_is_replaced_where_leases_do_not_run_out() -> None:
    plane = Plane(has_key_ttl=False, timing=SHORT)
    a, b = plane.settle("a", "b")
    leader, other = (a, b) if a.machine.is_leader else (b, a)
    plane.loses = lambda one, command: one is leader and isinstance(command, WriteKey)

    plane.until(lambda: other.machine.is_leader, 12.0)


def test_a_member_that_hears_nothing_is_dead_though_it_beats() -> None:
    plane = Plane()
    _a, b = plane.settle("a", "b")
    mine = min(b.partitions)
    send = b.client.send
    b.client.send = lambda event: None
    b.client.probed = lambda *_: None  # type: ignore[method-assign]
    started = plane.now

    plane.until(lambda: plane.owners()[mine] == "a")

    assert send is not None
    assert plane.now - started < plane.timing.heartbeat_timeout_s + 0.5
    assert plane.records()[mine].cause == Cause.MISSED_HEARTBEATS


# ---- versions and agreement ----


def test_a_record_of_a_newer_version_is_left_alone() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    key = naming.partition_key(0)
    owner = a if 0 in a.partitions else b

    value = json.dumps({"version": 2, "epoch": "a word"}).encode()
    plane.server.put(GROUP, key, value)
    plane.run(3.0)

    assert plane.server.value(GROUP, key) == value  # also after somebody looked it over
    assert [event.partition for event in owner.told(PartitionLost)] == [0]
    assert a.told(RecordTooNew) == b.told(RecordTooNew) == [RecordTooNew(key=key, record_version=2)]
    assert (a.partitions | b.partitions) == {1, 2, 3}
    c = plane.join("c")
    plane.run(1.0)
    assert c.told(RecordTooNew) == [RecordTooNew(key=key, record_version=2)]


def test_a_group_of_a_newer_version_is_not_joined() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    plane.server.put(GROUP, naming.CONFIG_KEY, b'{"version": 3, "partitions": 4, "stream": "S"}')
    plane.run(0.5)
    b = plane.join("b")
    plane.until(lambda: not b.is_alive)

    assert isinstance(b.error, GroupTooNew)
    assert "version 3" in str(b.error)
    assert a.partitions == set()
    assert a.is_alive


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"partitions": 5}, "exists with 4 partitions, wanted 5 partitions"),
        ({"key": "s.{partition}.*.{key}"}, "wanted key 's.{partition}.*.{key}'"),
        ({"on_failure": FailurePolicy.PARK}, "exists with on_failure 'retry', wanted on_failure"),
        ({"max_attempts": 9}, "exists with max_attempts 5, wanted max_attempts 9"),
        ({"stream": "T", "partitions": 8}, "with 4 partitions, stream 'S', wanted 8 partitions,"),
    ],
)
def test_a_member_that_wants_something_else_is_told_what(
    change: dict[str, object], text: str
) -> None:
    plane = Plane()
    plane.settle("a")

    b = plane.join("b", config=replace(plane.config, **change))  # type: ignore[arg-type]
    plane.until(lambda: not b.is_alive)

    assert isinstance(b.error, ConfigMismatch)
    assert text in str(b.error)
    assert plane.read(MemberRecord, naming.member_key("b")) is None


def test_who_only_leads_takes_what_it_finds_and_is_completed() -> None:
    plane = Plane()
    bare = ConfigRecord(partitions=4, stream=STREAM, filter=None)
    lead = plane.join("lead", config=bare, capacity=0)
    plane.run(0.5)
    plane.settle("a")
    again = plane.join("again", config=bare, capacity=0)
    plane.run(0.5)

    found = plane.read(ConfigRecord, naming.CONFIG_KEY)
    assert found is not None
    assert replace(found, begins_at=0) == plane.config
    assert lead.is_alive
    assert again.is_alive


# ---- what is left over ----


def test_saved_progress_of_members_long_gone_is_deleted_when_nobody_needs_it() -> None:
    plane = Plane(2)
    _a, b = plane.settle("a", "b")
    for number in range(2):
        plane.server.publish(STREAM, f"s.{number}.k", b"")
    plane.run(1.0)
    assert plane.done_keys() == {"a", "b"}

    b.stop()
    plane.until(lambda: not b.is_alive)
    plane.until(plane.is_served)
    plane.run(5.0)

    assert plane.done_keys() == {"a"}


def test_progress_that_a_record_points_to_stays() -> None:
    plane = Plane(2)
    _a, b = plane.settle("a", "b")
    mine = min(b.partitions)
    plane.server.publish(STREAM, f"s.{mine}.k", b"")
    plane.run(1.0)

    plane.put(naming.partition_key(mine), replace(plane.records()[mine], done_from="old"))
    saved = plane.saved("b")
    assert saved is not None
    plane.put(naming.done_key("old"), saved)
    plane.put(naming.done_key("older"), saved)
    plane.run(5.0)

    assert plane.done_keys() == {"b", "old"}


def test_a_lost_bucket_is_made_anew_above_every_epoch_there_was() -> None:
    plane = Plane()
    _a, _b = plane.settle("a", "b")
    for _ in range(3):
        plane.control(draining=("a",))
        plane.until(lambda: set(plane.owners().values()) == {"b"} and plane.is_served())
        plane.control(draining=())
        plane.until(lambda: Counter(plane.owners().values()) == {"a": 2, "b": 2})
    plane.until(plane.is_served)
    highest = max(record.epoch for record in plane.records().values())

    plane.server.delete_bucket(GROUP)
    for name in list(plane.stream.consumers):
        plane.server.delete_consumer(STREAM, name)
    plane.until(lambda: plane.records() != {} and plane.is_served(), 20.0)

    assert min(record.epoch for record in plane.records().values()) > highest


@pytest.mark.parametrize("value", [None, b"no record"])
def test_a_record_that_was_lost_is_made_anew_under_a_higher_epoch(value: bytes | None) -> None:
    plane = Plane(1)
    (a,) = plane.settle("a")
    for _ in range(3):
        plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(1.0)
    before = plane.records()[0]

    plane.server.put(GROUP, naming.partition_key(0), value)
    plane.until(plane.is_served)
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(0.5)

    assert plane.records()[0].epoch > before.epoch
    assert [message.seq for message in a.handled] == [1, 2, 3, 4]


@pytest.mark.parametrize("is_bucket_lost", [False, True], ids=["record", "record and bucket"])
def test_a_lost_record_that_nobody_had_heard_of_is_made_anew_above_its_epoch(
    is_bucket_lost: bool,
) -> None:
    plane = Plane(1)
    (a,) = plane.settle("a")
    a.kill()
    unheard = replace(plane.records()[0], epoch=plane.records()[0].epoch + 5)
    plane.run(0.5)

    plane.server.put(GROUP, naming.partition_key(0), encode(unheard))
    plane.server.put(GROUP, naming.partition_key(0), None)
    if is_bucket_lost:
        plane.server.delete_bucket(GROUP)
    else:
        for name in list(plane.stream.consumers):
            plane.server.delete_consumer(STREAM, name)
    plane.settle("b")

    assert plane.records()[0].epoch > unheard.epoch


def test_a_first_record_that_was_under_way_when_the_bucket_was_lost_gives_no_epoch_twice() -> None:
    plane = Plane(1)
    held: list[WriteKey] = []

    def holds_a(one: Process, command: Command) -> bool:
        if one is not a or not _is_record(command):
            return False
        held.append(command)
        return True

    def fails_b(one: Process, command: Command) -> bool:
        if one is not b or not _is_record(command):
            return False
        b.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = holds_a
    a = plane.join("a")
    plane.until(lambda: held != [])
    a.is_alive = False  # paused: it has heard of no record
    plane.server.detach(a.client)
    (b,) = plane.settle("b")
    before = plane.records()[0]

    plane.loses = fails_b
    plane.server.delete_bucket(GROUP)
    for name in list(plane.stream.consumers):
        plane.server.delete_consumer(STREAM, name)
    plane.until(lambda: plane.read(ConfigRecord, naming.CONFIG_KEY) is not None)
    a.is_alive = True
    plane.server.attach(a.client)
    plane.server.execute(a.client, held[0])
    plane.run(1.0)
    plane.loses = lambda _process, _command: False
    plane.until(plane.is_served, 20.0)

    given = {(it.partition, it.epoch) for one in (a, b) for it in one.told(PartitionAssigned)}
    assert len(given) == moves(plane) > 1
    assert plane.records()[0].epoch > before.epoch


def _is_record(command: Command) -> TypeGuard[WriteKey]:
    return isinstance(command, WriteKey) and command.key == naming.partition_key(0)


@pytest.mark.parametrize("is_caught_up", [False, True], ids=["catching up", "caught up"])
def test_a_late_cfg_of_the_bucket_before_is_set_right_and_moves_nothing(
    is_caught_up: bool,
) -> None:
    plane = Plane(1)
    plane.loses = lambda _process, command: isinstance(command, Watch) and not is_caught_up
    a = plane.join("a")
    plane.until(plane.is_served if is_caught_up else lambda: plane.server.has_bucket(GROUP))
    plane.run(1.0)
    config = plane.read(ConfigRecord, naming.CONFIG_KEY)
    assert config is not None

    plane.put(naming.CONFIG_KEY, replace(config, begins_at=config.begins_at + 7))
    plane.loses = lambda _process, _command: False
    if not is_caught_up:
        plane.server.execute(a.client, Watch())
    plane.run(0.1)

    assert plane.read(ConfigRecord, naming.CONFIG_KEY) == config
    plane.until(plane.is_served)
    assert [it.epoch for it in a.told(PartitionAssigned)] == [1]
    assert a.told(PartitionLost) == []


def test_who_was_counted_out_before_it_had_caught_up_is_a_member_all_the_same() -> None:
    plane = Plane(1)
    plane.loses = lambda _process, command: isinstance(command, Watch)
    a = plane.join("a")
    plane.until(lambda: plane.read(MemberRecord, naming.member_key("a")) is not None)
    plane.server.put(GROUP, naming.member_key("a"), None)
    plane.loses = lambda _process, _command: False
    plane.server.execute(a.client, Watch())

    plane.until(plane.is_served, plane.timing.lease_s / 6)


def test_progress_of_an_owner_never_heard_of_comes_before_that_of_the_last_one_known() -> None:
    plane = Plane(1)
    a, b, c = plane.settle("a", "b", "c")
    plane.control(pins={0: "a"})
    plane.until(lambda: plane.owners() == {0: "a"} and plane.is_served())
    hears, key = c.client.send, naming.partition_key(0)
    c.client.send = lambda event: (
        None if isinstance(event, KeyChanged) and event.key == key else hears(event)
    )
    plane.control(pins={0: "b"})
    plane.until(lambda: plane.owners() == {0: "b"} and plane.is_served())
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(1.0)

    for one in (a, b):
        one.kill()
    plane.server.put(GROUP, key, None)
    c.client.send = hears
    plane.until(lambda: plane.owners() == {0: "c"} and plane.is_served(), 20.0)

    assert plane.records()[0].done_from == "b"


def test_a_fresh_leader_finds_epochs_in_saved_progress_when_all_else_is_lost() -> None:
    plane = Plane(1)
    a, _b = plane.settle("a", "b")
    plane.control(draining=("a",))
    plane.until(lambda: set(plane.owners().values()) == {"b"} and plane.is_served())
    for _ in range(3):
        plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(1.0)
    before = plane.records()[0]
    for one in plane.processes:
        one.kill()

    plane.server.put(GROUP, naming.partition_key(0), None)
    for name in list(plane.stream.consumers):
        plane.server.delete_consumer(STREAM, name)
    plane.run(8.0)
    (c,) = plane.settle("c")

    assert a.partitions == set()
    assert plane.records()[0].epoch > before.epoch
    assert plane.records()[0].floor == 3
    assert c.handled == []


# ---- events ----


def test_the_ring_keeps_the_last_events_whoever_leads() -> None:
    plane = Plane()
    plane.settle("a", "b", "c")
    for round_ in range(30):
        plane.control(draining=("a",) if round_ % 2 == 0 else ())
        plane.run(0.5)
    leader = plane.leader
    leader.kill()
    plane.until(plane.is_served)
    plane.run(1.0)

    kept = plane.kept()
    numbers = [int(str(event["number"])) for event in kept]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 30
    tellers = [event["teller"] for event in kept if event["event"] == "leader_changed"]
    assert tellers == [leader.settings.member, plane.leader.settings.member]
    assert kept[0]["event"] == "leader_changed"


def test_the_ring_goes_round() -> None:
    plane = Plane(1)
    (a,) = plane.settle("a")
    leader = a.machine.leader
    assert leader is not None
    for number in range(naming.EVENTS_KEPT + 40):
        leader.keep(Paused(partitions=(number,)))
        plane.run(0.01)
    a.kill()
    plane.settle("b")

    kept = plane.kept()
    numbers = [int(str(event["number"])) for event in kept]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(numbers) >= naming.EVENTS_KEPT
    assert kept[-1]["teller"] == "b"


def test_what_one_member_tells_is_announced_by_it_without_a_number() -> None:
    plane = Plane()
    plane.settle("a", "b")

    assigned = plane.announced("partition_assigned")

    assert {event["number"] for event in assigned} == {None}
    assert {event["teller"] for event in assigned} == {"a", "b"}
    moved = plane.announced("leader_changed")
    assert [event["number"] for event in moved] == [0]


def test_every_move_is_told_by_every_member() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")

    plane.control(draining=("a",))
    plane.until(lambda: set(plane.owners().values()) == {"b"} and plane.is_served())

    for one in (a, b):
        moved = [it for it in one.told(PartitionMoved) if it.cause == Cause.DRAINED]
        assert {(it.previous, it.owner) for it in moved} == {("a", "b")}


def test_the_ring_says_how_long_partitions_stood_still() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    mine = b.partitions
    b.kill()
    plane.until(lambda: a.partitions == {0, 1, 2, 3})
    plane.run(0.5)

    kept = [event for event in plane.kept() if event["event"] == "partition_assigned"]
    assert {event["partition"] for event in kept} == mine
    assert all(0.05 < float(str(event["stopped_s"])) < 0.5 for event in kept)
    assert [event["number"] for event in plane.kept()] == list(range(len(plane.kept())))


def test_who_is_deaf_does_not_take_the_lead() -> None:
    plane = Plane()
    plane.settle("a", "b", "c")
    leader = plane.leader
    deaf = next(one for one in plane.processes if one is not leader)
    deaf.client.send = lambda _event: None
    deaf.client.probed = lambda *_: None  # type: ignore[method-assign]
    plane.run(0.9)

    leader.kill()
    plane.run(1.0)

    assert not deaf.machine.is_leader
    assert plane.leader is not deaf


def test_a_member_whose_bucket_cannot_be_made_again_yet_keeps_trying() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    is_refused = True
    execute = plane.server.execute

    def refuse(client: MemoryClient, command: Command) -> None:
        if is_refused and isinstance(command, Prepare):
            client.send(Failed(id=command.id, reason=Failure.REFUSED, detail="no suitable peers"))
        else:
            execute(client, command)

    plane.server.execute = refuse  # type: ignore[method-assign]
    plane.server.delete_bucket(GROUP)
    plane.run(6.0)
    assert a.told(JoinRefused) == [JoinRefused(member="a", reason="no suitable peers")]
    is_refused = False
    plane.until(plane.is_served)

    assert a.is_alive


def test_late_news_of_a_bucket_that_is_gone_is_no_news() -> None:
    plane = Plane(2)
    a, b = plane.settle("a", "b")
    keys = naming.partition_key(next(iter(b.partitions))), naming.member_key("b")
    late = [
        KeyChanged(
            key=key,
            value=plane.server.value(GROUP, key),
            revision=a.machine.context.book.revision(key),
        )
        for key in keys
    ]
    is_slow = True
    execute = plane.server.execute

    def delay(client: MemoryClient, command: Command) -> None:
        if is_slow and isinstance(command, Prepare):
            client.send(Failed(id=command.id, reason=Failure.TIMEOUT))
        else:
            execute(client, command)

    plane.server.execute = delay  # type: ignore[method-assign]
    plane.server.delete_bucket(GROUP)
    plane.run(5.0)
    for news in late:
        a.take(news)
    is_slow = False

    plane.until(plane.is_served)


def test_what_a_stream_may_do_to_messages_is_told_once() -> None:
    plane = Plane()
    execute = plane.server.execute

    def warn(client: MemoryClient, command: Command) -> None:
        if isinstance(command, Prepare):
            send = client.send
            client.send = lambda event: send(
                replace(event, warnings=("drops by age",)) if isinstance(event, Prepared) else event
            )
            execute(client, command)
            client.send = send
        else:
            execute(client, command)

    plane.server.execute = warn  # type: ignore[method-assign]
    (a,) = plane.settle("a")
    plane.server.delete_bucket(GROUP)
    plane.run(6.0)

    assert a.told(StreamDoubtful) == [StreamDoubtful(text="drops by age")]


def test_a_consumer_of_an_epoch_that_is_over_is_deleted_and_told() -> None:
    plane = Plane(1)
    a, b = plane.settle("a", "b")
    owner, other = (a, b) if a.partitions else (b, a)
    plane.control(pins={0: other.settings.member})
    plane.until(lambda: other.partitions == {0} and plane.is_served())
    stale, current = naming.consumer(GROUP, 0, 1), naming.consumer(GROUP, 0, 2)

    plane.server.execute(owner.client, CreateConsumer(id=0, name=stale, partition=0, start_seq=1))
    assert set(plane.stream.consumers) == {stale, current}
    plane.run(2.0)

    assert set(plane.stream.consumers) == {current}
    assert plane.leader.told(ConsumerReconciled) == [ConsumerReconciled(consumer=stale)]


def test_the_witnesses_of_a_loss_are_asked_again_after_the_next_loss() -> None:
    plane = Plane(2)
    plane.settle("a")
    plane.server.publish(STREAM, "s.1.k", b"")
    plane.run(0.5)
    first, second = naming.partition_key(0), naming.partition_key(1)
    asked: list[str] = []

    def loses(one: Process, command: Command) -> bool:
        if isinstance(command, ReadKey | WriteKey):
            asked.append(command.key)
        if not isinstance(command, WriteKey) or command.key != first:
            return False
        one.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = loses
    plane.server.put(GROUP, first, None)
    plane.run(0.5)
    assert naming.done_key("a") in asked[: asked.index(first)]

    asked.clear()
    plane.server.put(GROUP, second, None)
    plane.until(lambda: 1 in plane.records())

    assert naming.done_key("a") in asked[: asked.index(second)]


def done_behind_a_slow_one(plane: Plane, partition: int) -> int:
    """Have a message handled behind one that goes on for long; what is done is saved."""
    plane.handler_s = 60.0
    plane.server.publish(STREAM, f"s.{partition}.slow", b"")
    plane.run(0.05)
    plane.handler_s = 0.0
    quick = plane.server.publish(STREAM, f"s.{partition}.quick", b"")
    plane.run(0.5)
    return quick


def test_what_was_done_is_still_known_when_a_record_is_lost_and_made_anew_late() -> None:
    plane = Plane()
    _a, b = plane.settle("a", "b")
    mine, other = sorted(b.partitions)
    quick = done_behind_a_slow_one(plane, mine)
    key = naming.partition_key(mine)
    is_cut = True

    def loses(one: Process, command: Command) -> bool:
        if not (is_cut and isinstance(command, WriteKey) and command.key == key):
            return False
        one.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = loses
    plane.server.put(GROUP, key, None)
    plane.run(0.1)
    plane.server.publish(STREAM, f"s.{other}.k", b"")  # so that the owner saves once more
    plane.run(0.5)
    is_cut = False
    plane.until(plane.is_served)
    plane.run(1.0)

    assert [it.seq for it in plane.handled if it.seq == quick] == [quick]


def test_what_was_done_is_not_saved_over_by_an_owner_that_had_not_read_it_yet() -> None:
    """It got the partition again under another epoch and lost it at once."""
    plane = Plane()
    a, b = plane.settle("a", "b")
    mine, other = sorted(b.partitions)
    quick = done_behind_a_slow_one(plane, mine)
    is_cut = True

    def loses(one: Process, command: Command) -> bool:
        if not (is_cut and isinstance(command, ReadKey) and command.key == naming.done_key("b")):
            return False
        one.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = loses
    for owner in (b, a):
        record = plane.records()[mine]
        name, instance = owner.settings.member, owner.settings.instance
        given = replace(
            record, epoch=record.epoch + 1, owner=name, instance=instance, done_from="b"
        )
        plane.put(naming.partition_key(mine), given)
        plane.run(0.1)
    plane.server.publish(STREAM, f"s.{other}.k", b"")  # so that it saves once more
    plane.run(0.5)
    is_cut = False
    plane.until(plane.is_served)
    plane.run(1.0)

    assert [it.seq for it in plane.handled if it.seq == quick] == [quick]


# ---- epochs without a stream ----


def slots(*names: str) -> tuple[Plane, list[Process]]:
    """A group without a stream whose partitions have changed hands a few times."""
    plane = Plane(stream=None)
    processes = plane.settle(*names)
    for draining in (names[:1], names[1:2], ()):
        plane.control(draining=draining)
        plane.run(1.0)
    plane.until(plane.is_served)
    return plane, processes


def test_a_bucket_that_a_newcomer_makes_anew_begins_above_the_epochs_of_the_living() -> None:
    plane, (a, b) = slots("a", "b")
    highest = max(record.epoch for record in plane.records().values())
    plane.loses = lambda one, command: one in (a, b) and isinstance(command, Prepare)
    plane.server.delete_bucket(GROUP)

    plane.join("c")
    plane.until(lambda: len(plane.records()) == 4, 20.0)

    assert min(record.epoch for record in plane.records().values()) > highest > 2


def test_who_comes_back_to_a_bucket_made_anew_raises_what_is_too_low() -> None:
    plane, (a, b) = slots("a", "b")
    epochs = {n: record.epoch for n, record in plane.records().items()}
    for one in (a, b):
        one.disconnect()
    plane.server.delete_bucket(GROUP)
    c = plane.join("c")
    plane.until(lambda: len(c.partitions) == 4, 20.0)
    assert {record.epoch for record in plane.records().values()} == {1}

    b.reconnect()
    plane.until(lambda: b.machine.phase.name == "MEMBER" and plane.is_served(), 20.0)
    plane.run(3.0)

    assert all(record.epoch > epochs[n] for n, record in plane.records().items())


def test_a_new_group_of_many_partitions_waits_longer_for_those_who_come_together() -> None:
    large, small = Plane(1000), Plane(250)
    for plane in (large, small):
        plane.join("a")
        plane.run(plane.timing.batch_s + 0.3)

    assert small.records()
    assert not large.records()


def test_an_epoch_below_a_sinks_is_raised_though_the_first_write_fails() -> None:
    plane = Plane(1)
    (a,) = plane.settle("a")
    plane.handler_s = 60.0
    plane.server.publish(STREAM, "s.0.k", b"")
    plane.run(0.1)
    (message,) = a.machine.owner.owned[0].lanes.all()
    failed: list[WriteKey] = []

    def loses(one: Process, command: Command) -> bool:
        if failed or not isinstance(command, WriteKey) or command.key != naming.partition_key(0):
            return False
        failed.append(command)
        one.take(Failed(id=command.id, reason=Failure.TIMEOUT))
        return True

    plane.loses = loses
    a.take(Handled(message=message, error="stale", seen_epoch=7))
    plane.until(lambda: plane.records()[0].epoch == 8 and plane.is_served())

    assert failed
    assert plane.records()[0].cause == Cause.SINK_AHEAD
