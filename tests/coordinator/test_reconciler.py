"""What the leader cleans up: consumers and saved progress that are over."""

from dataclasses import replace

from millstream_coordinator import naming
from millstream_coordinator.events import ConsumerReconciled
from millstream_coordinator.ports import CreateConsumer

from .plane import GROUP, STREAM, Plane


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
