"""What was lost is made anew: no epoch comes twice, and no progress is lost with it."""

from collections import Counter
from dataclasses import replace
from typing import TypeGuard

import pytest

from millstream_coordinator import naming
from millstream_coordinator.events import Cause, PartitionAssigned
from millstream_coordinator.model import ConfigRecord, encode
from millstream_coordinator.ports import (
    Command,
    Failed,
    Failure,
    Handled,
    KeyChanged,
    Prepare,
    ReadKey,
    WriteKey,
)

from .plane import GROUP, STREAM, Plane, Process


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
    assert len(given) == plane.num_assigned > 1
    assert plane.records()[0].epoch > before.epoch


def _is_record(command: Command) -> TypeGuard[WriteKey]:
    return isinstance(command, WriteKey) and command.key == naming.partition_key(0)


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
