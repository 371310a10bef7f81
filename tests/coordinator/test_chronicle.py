"""What happened in a group, as it is told: by each member, and once in the leader's ring."""

from millstream_coordinator import naming
from millstream_coordinator.events import Cause, PartitionMoved, Paused, Resumed

from .plane import Plane


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
