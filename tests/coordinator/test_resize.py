"""Split and merge: what is handed on, and that any leader goes on from any step."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from millstream_coordinator import naming
from millstream_coordinator.events import Cause, Resized, Resizing
from millstream_coordinator.machine.resize import hand_on, hand_on_parked
from millstream_coordinator.model import (
    ChildPosition,
    ConfigRecord,
    DonePosition,
    DoneRecord,
    ParkedRecord,
    PartitionRecord,
    PartitionState,
    Retention,
    Timing,
    decode,
)
from millstream_coordinator.ports import (
    Command,
    CreateConsumer,
    KeyChanged,
    ReadConsumer,
    ReadKey,
    WriteKey,
)

from .plane import GROUP, STREAM, Plane, Process

LEVELS = (2, 4, 8)
RULE = "s.{partition}.{partition:4}.{partition:8}.{key}"


def publish(plane: Plane, number: int) -> int:
    """One message of the key with this number."""
    subject = f"s.{number % 2}.{number % 4}.{number % 8}.k{number}"
    return plane.server.publish(STREAM, subject, b"")


# ---- what is handed on ----

Done = set[int]


def is_done(position: DonePosition, seq: int, finest: int) -> bool:
    """Whether a position says that a message is done; ``finest``: its number of 8 partitions."""
    if seq <= position.floor or any(first <= seq <= last for first, last in position.done):
        return True
    return any(
        finest % child.level == child.partition
        and (seq <= child.floor or any(first <= seq <= last for first, last in child.done))
        for child in position.children
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[int], set[int]]:
    """Messages (their numbers of 8 partitions, in order), levels one after the other, done ones."""
    messages = draw(st.lists(st.integers(0, 7), max_size=30))
    levels = draw(st.lists(st.sampled_from(LEVELS), min_size=2, max_size=5))
    done = draw(st.sets(st.integers(1, max(1, len(messages)))))
    return messages, levels, {seq for seq in done if seq <= len(messages)}


def positions_of(messages: list[int], level: int, done: set[int]) -> dict[int, DonePosition]:
    found = {}
    for number in range(level):
        own = [seq for seq, it in enumerate(messages, 1) if it % level == number]
        floor = 0
        for seq in own:
            if seq not in done:
                break
            floor = seq
        ranges = tuple((seq, seq) for seq in own if seq in done and seq > floor)
        found[number] = DonePosition(epoch=1, floor=floor, done=ranges)
    return found


@given(histories())
@example(([2, 0], [4, 2], {2}))
def test_whatever_was_done_is_done_afterwards_and_nothing_else(
    history: tuple[list[int], list[int], set[int]],
) -> None:
    messages, levels, done = history
    positions = positions_of(messages, levels[0], done)
    for old, new in pairwise(levels):
        positions = hand_on(positions, old, new, 2)

    level = levels[-1]
    for seq, finest in enumerate(messages, 1):
        assert is_done(positions[finest % level], seq, finest) is (seq in done)


@given(histories())
def test_what_the_floor_says_is_said_once(
    history: tuple[list[int], list[int], set[int]],
) -> None:
    messages, levels, done = history
    positions = positions_of(messages, levels[0], done)
    for old, new in pairwise(levels):
        positions = hand_on(positions, old, new, 2)

    for position in positions.values():
        assert all(last > position.floor for _, last in position.done)
        for child in position.children:
            assert child.floor > position.floor or child.done
            assert child.level > levels[-1]


def test_a_merge_begins_at_the_lowest_floor_and_remembers_each_child() -> None:
    positions = {
        0: DonePosition(epoch=1, floor=10, done=((12, 14),)),
        1: DonePosition(epoch=1, floor=3),
        2: DonePosition(epoch=1, floor=20),
        3: DonePosition(epoch=1, floor=3, done=((7, 7),)),
    }

    merged = hand_on(positions, 4, 2, 9)

    assert merged[0] == DonePosition(
        epoch=9,
        floor=10,
        children=(
            ChildPosition(level=4, partition=0, floor=10, done=((12, 14),)),
            ChildPosition(level=4, partition=2, floor=20),
        ),
    )
    assert merged[1].floor == 3
    assert [child.partition for child in merged[1].children] == [3]


def test_parked_keys_are_known_to_every_relative() -> None:
    parked = {1: ParkedRecord(keys={"k": 5}), 3: ParkedRecord(keys={"k": 3, "l": 9}, replay=("l",))}

    assert hand_on_parked(parked, 4, 2) == {1: ParkedRecord(keys={"k": 3, "l": 9}, replay=("l",))}
    assert hand_on_parked(parked, 4, 8).keys() == {5, 7}


def test_what_a_relatives_lost_record_knew_is_asked_for_anew() -> None:
    whole = ParkedRecord(keys={"k": 5}, epoch=3)

    assert hand_on_parked({0: whole, 1: whole}, 2, 1) == {}
    assert hand_on_parked({0: whole}, 2, 1) == {0: ParkedRecord(keys={"k": 5}, epoch=0)}


def test_what_was_parked_at_an_earlier_number_of_partitions_is_over() -> None:
    left_over = ParkedRecord(keys={"k": 5}, epoch=3)

    handed_on = hand_on_parked({0: ParkedRecord(epoch=9), 1: left_over}, 1, 2)

    assert handed_on == {1: ParkedRecord()}


# ---- the barrier ----

KEYS = 16


def plane_of(retention: Retention = Retention.LIMITS) -> Plane:
    plane = Plane(2, rule=RULE, levels=LEVELS, retention=retention)
    plane.handler_s = 0.003
    return plane


def publish_for(plane: Plane, duration_s: float) -> None:
    for number in range(int(duration_s * 200)):
        plane.after(number / 200, partial(publish, plane, number * 7 % KEYS))


def check_history(plane: Plane, *, repeats_max: int = 0) -> None:
    """Every message was handled, and each key's for the first time in order."""
    seen: dict[str, list[int]] = {}
    for message in plane.handled:
        seqs = seen.setdefault(message.subject, [])
        if message.seq not in seqs:
            assert not seqs or message.seq > seqs[-1], message
            seqs.append(message.seq)
    first = sum(len(seqs) for seqs in seen.values())
    assert first == len(plane.stream.messages) > 0
    assert len(plane.handled) - first <= repeats_max


def is_resized(plane: Plane, to: int) -> bool:
    return plane.count == to and plane.is_served()


def resize(plane: Plane, to: int) -> None:
    plane.resize(to)
    plane.until(partial(is_resized, plane, to), 20.0)


@pytest.mark.parametrize("retention", [Retention.LIMITS, Retention.WORK_QUEUE])
@pytest.mark.parametrize("way", [(4,), (8,), (8, 2), (4, 8, 4, 2)])
def test_a_group_goes_on_with_another_number_of_partitions(
    way: tuple[int, ...], retention: Retention
) -> None:
    plane = plane_of(retention)
    processes = plane.settle("a", "b", "c")
    before = 2
    for number, to in enumerate(way):
        publish_for(plane, 1.0)
        plane.run(0.4)
        resize(plane, to)
        plane.run(1.0)
        for one in processes:
            assert one.told(Resizing)[number] == Resizing(partitions=before, resize_to=to)
            assert one.told(Resized)[number] == Resized(previous=before, partitions=to)
        before = to
    plane.run(4.0)

    check_history(plane)
    assert set(plane.records()) == set(range(before))
    assert {record.cause for record in plane.records().values()} <= {Cause.RESIZED, Cause.JOINED}
    assert set(plane.stream.consumers) == {
        naming.consumer(GROUP, n, record.epoch) for n, record in plane.records().items()
    }
    assert len([event for event in plane.kept() if event["event"] == "resized"]) == len(way)
    needed = {record.done_from for record in plane.records().values()}
    assert {holder for holder in plane.done_keys() if holder.startswith("=")} <= needed


def test_epochs_only_grow_over_a_resize() -> None:
    plane = plane_of()
    plane.settle("a", "b")
    for to in (8, 2, 4):
        highest = max(record.epoch for record in plane.records().values())
        resize(plane, to)
        assert min(record.epoch for record in plane.records().values()) > highest


def test_a_resize_that_is_called_off_in_time_leaves_the_old_partitions() -> None:
    plane = plane_of()
    a, b = plane.settle("a", "b")
    plane.handler_s = 0.5
    publish(plane, 0)
    plane.run(0.1)

    plane.resize(8)
    plane.run(0.2)
    assert PartitionState.FREE in {record.state for record in plane.records().values()}
    plane.resize(None)
    plane.until(plane.is_served)

    assert set(plane.records()) == {0, 1}
    assert a.told(Resized) == b.told(Resized) == []


def test_a_number_that_is_no_level_is_not_obeyed() -> None:
    plane = plane_of()
    plane.settle("a", "b")
    before = plane.records()

    plane.resize(6)
    plane.run(2.0)

    assert plane.records() == before


def test_a_group_without_a_stream_has_any_number() -> None:
    plane = Plane(4, stream=None)
    plane.settle("a", "b")

    resize(plane, 7)
    resize(plane, 3)

    assert sum(Counter(plane.owners().values()).values()) == 3


def test_a_dead_owner_does_not_hold_a_resize_up_for_its_grace() -> None:
    plane = Plane(2, rule=RULE, levels=LEVELS, timing=Timing(static_grace_s=30.0))
    for name in "ab":
        plane.join(name, is_static=True)
    plane.until(plane.is_served)
    plane.processes[1].kill()
    plane.run(1.0)

    plane.resize(4)
    plane.until(lambda: plane.count == 4, 5.0)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", range(14))
def test_any_leader_goes_on_from_any_step(step: int, moment: str) -> None:
    """The leader dies at its n-th write of a resize, before the server saw it or right after."""
    plane = plane_of()
    plane.settle("a", "b", "c")
    resize(plane, 4)
    publish_for(plane, 1.0)
    plane.run(0.3)
    leader = plane.leader
    writes = 0

    def dies(one: Process, command: Command) -> bool:
        nonlocal writes
        if one is not leader or not isinstance(command, WriteKey):
            return False
        if command.key.startswith((naming.EVENT_PREFIX, naming.MEMBER_PREFIX, naming.LEADER_KEY)):
            return False
        if command.key == naming.done_key(leader.settings.member):
            return False
        writes += 1
        if writes == step + 1:
            if moment == "after":
                plane.server.execute(one.client, command)
            one.kill()
            return True
        return False

    plane.loses = dies
    plane.resize(8 if step % 2 else 2)
    plane.until(partial(is_resized, plane, 8 if step % 2 else 2), 20.0)
    plane.run(4.0)

    # The dead one's handler calls of the last tenth of a second were not saved.
    check_history(plane, repeats_max=60)
    assert set(plane.records()) == set(range(plane.count))


def test_a_deposed_leader_that_did_not_hear_of_a_resize_gives_nothing_away() -> None:
    plane = plane_of()
    a, b, c = plane.settle("a", "b", "c")
    old = {n: replace(record) for n, record in plane.records().items()}
    resize(plane, 8)

    base_epoch = (plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config).base_epoch
    for n, record in old.items():
        stale = replace(record, epoch=base_epoch, owner="c", instance=c.settings.instance)
        plane.put(naming.partition_key(n), stale)
    plane.run(0.01)
    assert not c.partitions & {0, 1}
    plane.until(plane.is_served)

    assert {record.level for record in plane.records().values()} == {8}
    assert a.is_alive
    assert b.is_alive


def test_a_record_of_a_partition_that_is_no_more_goes_also_when_it_is_ahead() -> None:
    """A leader that had not heard of the resize changed its owner more than once."""
    plane = plane_of()
    plane.settle("a", "b")
    resize(plane, 4)
    resize(plane, 2)

    base_epoch = (plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config).base_epoch
    plane.put(naming.partition_key(3), PartitionRecord(epoch=base_epoch + 3, level=4))
    plane.run(1.0)

    assert set(plane.records()) == {0, 1}


def test_a_bucket_lost_after_a_resize_is_made_anew_with_as_many_partitions() -> None:
    plane = plane_of()
    plane.settle("a", "b")
    publish_for(plane, 0.5)
    resize(plane, 8)
    plane.run(1.0)
    for one in plane.processes:
        one.kill()

    plane.server.delete_bucket(GROUP)
    plane.settle("c")
    publish_for(plane, 0.5)
    plane.run(2.0)

    assert plane.count == 8
    assert set(plane.records()) == set(range(8))
    check_history(plane)


def test_a_consumer_of_who_had_not_heard_of_a_resize_does_not_undo_it() -> None:
    plane = plane_of()
    a, _b = plane.settle("a", "b")
    resize(plane, 4)
    resize(plane, 2)

    base_epoch = (plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config).base_epoch
    name = naming.consumer(GROUP, 0, base_epoch + 9)
    stale = CreateConsumer(id=0, name=name, partition=0, start_seq=1, level=4)
    plane.server.execute(a.client, stale)
    plane.server.put(GROUP, naming.partition_key(1), None)
    plane.until(lambda: 1 in plane.records() and plane.is_served())

    assert plane.count == 2


def hears_no_config(one: Process) -> None:
    """Its watch tells it no ``cfg`` from now on."""
    hears = one.client.send
    one.client.send = lambda event: (
        None if isinstance(event, KeyChanged) and event.key == naming.CONFIG_KEY else hears(event)
    )


def test_a_leader_that_missed_a_resize_makes_no_record_of_before() -> None:
    plane = plane_of()
    (a,) = plane.settle("a")
    hears_no_config(a)
    config = plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config
    plane.put(naming.CONFIG_KEY, replace(config, level=4, base_epoch=100))

    plane.server.put(GROUP, naming.partition_key(0), None)
    plane.until(lambda: 0 in plane.records())

    assert plane.records()[0].level == 4


def test_a_leader_that_missed_a_resize_gives_out_no_partition_that_was_freed_for_it() -> None:
    """What its owner did there the new partitions would not begin with."""
    plane = plane_of()
    (a,) = plane.settle("a")
    hears_no_config(a)
    config = plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config
    freed = replace(plane.records()[0], owner=None, instance=None, state=PartitionState.FREE)
    plane.put(naming.CONFIG_KEY, replace(config, level=4, base_epoch=100))
    given: list[PartitionRecord] = []

    def notes(_one: Process, command: Command) -> bool:
        if isinstance(command, WriteKey) and command.key == naming.partition_key(0):
            given.append(decode(PartitionRecord, command.value))
        return False

    plane.loses = notes
    plane.put(naming.partition_key(0), replace(freed, epoch=50))
    plane.until(lambda: 0 in plane.records() and plane.records()[0].level == 4)

    assert {record.level for record in given} == {4}


def test_progress_is_read_by_the_next_leader_too() -> None:
    """Who did the resize dies right after it: the new partitions are made by somebody else."""
    plane = plane_of()
    plane.settle("a", "b", "c")
    plane.handler_s = 0.05
    for number in range(KEYS):
        publish(plane, number)
    plane.run(0.5)
    leader = plane.leader
    plane.loses = lambda one, command: (
        one is leader
        and isinstance(command, ReadKey | WriteKey)
        and command.key.startswith(naming.PARTITION_PREFIX)
        and plane.count == 8
    )
    plane.resize(8)
    plane.until(lambda: plane.count == 8)
    leader.kill()
    plane.until(plane.is_served)
    plane.run(2.0)

    check_history(plane)


def test_a_record_of_a_resized_group_that_is_lost_is_made_anew_above_its_epoch() -> None:
    plane = plane_of()
    plane.settle("a", "b", "c")
    publish_for(plane, 0.5)
    resize(plane, 4)
    for member in ("a", "b"):
        plane.control(draining=(member,))
        plane.run(1.0)
    before = plane.records()[0]
    assert before.epoch > (plane.read(ConfigRecord, naming.CONFIG_KEY) or plane.config).base_epoch

    plane.leader.kill()
    plane.server.put(GROUP, naming.partition_key(0), None)
    plane.until(plane.is_served)
    plane.run(1.0)

    assert plane.records()[0].epoch > before.epoch
    assert plane.records()[0].floor >= before.floor
    check_history(plane, repeats_max=20)


def test_a_consumer_that_is_replaced_while_it_is_asked_does_not_change_the_number() -> None:
    plane = plane_of()
    plane.settle("a", "b")
    resize(plane, 4)
    plane.control(draining=("b",))
    plane.until(lambda: set(plane.owners().values()) == {"a"} and plane.is_served())
    epochs = {n: record.epoch for n, record in plane.records().items()}
    newest = {
        naming.consumer(GROUP, n, it) for n, it in epochs.items() if it == max(epochs.values())
    }

    def loses(_one: Process, command: Command) -> bool:
        if isinstance(command, ReadConsumer) and command.name in newest:
            newest.remove(command.name)
            plane.server.delete_consumer(STREAM, command.name)
        return False

    plane.loses = loses
    for lost in epochs:
        plane.server.put(GROUP, naming.partition_key(lost), None)
    plane.until(lambda: not newest and plane.is_served())
    plane.run(1.0)

    assert plane.count == 4


def test_progress_of_another_number_of_partitions_says_nothing_of_these() -> None:
    """Bucket and consumers were lost; what a member saved before a resize came back with it."""
    plane = plane_of()
    (a,) = plane.settle("a")
    a.kill()
    for number in range(2):
        plane.server.put(GROUP, naming.partition_key(number), None)
    for name in list(plane.stream.consumers):
        plane.server.delete_consumer(STREAM, name)
    for number in range(KEYS):
        publish(plane, number)
    saved = {0: DonePosition(epoch=7, floor=KEYS, done=((KEYS, KEYS),), level=4)}
    plane.put(naming.done_key("old"), DoneRecord(instance="old", partitions=saved))

    plane.settle("b")
    plane.run(2.0)

    assert plane.records()[0].epoch > 7
    check_history(plane)


def test_a_record_of_another_number_of_partitions_is_not_written_over_below_its_epoch() -> None:
    plane = plane_of()
    plane.settle("a", "b")
    record = plane.records()[0]

    plane.put(naming.partition_key(0), replace(record, level=8, epoch=record.epoch + 5))
    plane.until(plane.is_served)

    assert plane.records()[0].level is None
    assert plane.records()[0].epoch > record.epoch + 5


def test_a_resize_tells_how_long_it_stood_still() -> None:
    plane = plane_of()
    processes = plane.settle("a", "b")
    plane.handler_s = 2.0
    publish(plane, 0)
    plane.run(0.1)
    resize(plane, 4)

    still = [one.assigned(n) for one in processes for n in one.partitions]
    assert {event.cause for event in still} == {Cause.RESIZED}
    assert all(1.8 < (event.stopped_s or 0) < 2.2 for event in still)


def test_every_partition_stood_still_since_the_first_one_stopped() -> None:
    """Also where the numbers have nothing in common."""
    plane = Plane(4, stream=None)
    processes = plane.settle("a", "b")
    resize(plane, 7)

    still = [one.assigned(n) for one in processes for n in one.partitions]
    assert len(still) == 7
    assert all(event.stopped_s is not None for event in still)


def test_a_standstill_is_told_also_where_the_leader_dies_at_the_barrier() -> None:
    plane = plane_of()
    plane.settle("a", "b", "c")
    leader = plane.leader

    def dies(one: Process, command: Command) -> bool:
        is_it = one is leader and isinstance(command, WriteKey) and command.key == naming.CONFIG_KEY
        if is_it:
            plane.server.execute(one.client, command)
            one.kill()
        return is_it

    plane.loses = dies
    resize(plane, 4)

    still = [one.assigned(n) for one in plane.processes for n in one.partitions]
    assert len(still) == 4
    assert all(event.stopped_s for event in still)
