"""The floor and the done-set, against a model that keeps every message apart."""

from hypothesis import given, strategies as st

from millstream_coordinator.machine.floor import Delivery, Floor, merge
from millstream_coordinator.model import ChildPosition


def test_floor_follows_messages_handled_in_order() -> None:
    floor = Floor(10)
    for seq in (13, 15):
        floor.deliver(seq)

    floor.complete(13)

    assert floor.floor == 13


def test_floor_waits_for_the_oldest_message_that_is_not_handled() -> None:
    floor = Floor()
    for seq in (3, 5, 8):
        floor.deliver(seq)

    floor.complete(5)
    floor.complete(8)

    assert floor.floor == 0
    assert floor.done_ranges() == ((5, 8),)


def test_floor_jumps_over_what_is_done_above_it() -> None:
    floor = Floor()
    for seq in (3, 5, 8):
        floor.deliver(seq)
    floor.complete(5)

    floor.complete(3)

    assert floor.floor == 5
    assert floor.done_ranges() == ()


def test_a_second_delivery_of_a_waiting_message_is_told() -> None:
    floor = Floor()
    floor.deliver(3)

    assert floor.deliver(3) is Delivery.WAITING


def test_a_handled_message_that_comes_again_is_done() -> None:
    floor = Floor()
    floor.deliver(3)
    floor.deliver(4)
    floor.complete(4)

    assert floor.deliver(4) is Delivery.DONE


def test_a_message_below_the_last_one_that_never_came_is_late() -> None:
    floor = Floor()
    floor.deliver(7)

    assert floor.deliver(5) is Delivery.LATE


def test_inherited_done_messages_are_done_at_their_first_delivery() -> None:
    floor = Floor(10, [(12, 14)])

    assert floor.deliver(11) is Delivery.NEW
    assert floor.deliver(12) is Delivery.DONE
    assert floor.deliver(14) is Delivery.DONE
    assert floor.deliver(16) is Delivery.NEW


def test_inherited_done_messages_not_delivered_yet_are_saved_again() -> None:
    floor = Floor(10, [(12, 14), (20, 20)])
    floor.deliver(11)

    assert floor.done_ranges() == ((12, 14), (20, 20))


def test_overlapping_ranges_are_joined() -> None:
    assert merge([(5, 9), (1, 2), (7, 12)]) == [(1, 2), (5, 12)]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40, unique=True), st.data())
def test_a_new_owner_gets_exactly_what_is_not_handled(seqs: list[int], data: st.DataObject) -> None:
    """Whatever was handled in whatever order: floor and done-set hand on that and nothing else."""
    seqs = sorted(seqs)
    delivered = seqs[: data.draw(st.integers(0, len(seqs)), "delivered")]
    handled = data.draw(st.permutations(delivered), "order") if delivered else []
    handled = list(handled)[: data.draw(st.integers(0, len(handled)), "handled")]
    first = Floor()
    for seq in delivered:
        first.deliver(seq)
    for seq in handled:
        first.complete(seq)

    second = Floor(first.floor, first.done_ranges())
    new = [seq for seq in seqs if seq > first.floor and second.deliver(seq) is Delivery.NEW]

    assert new == [seq for seq in seqs if seq not in handled]


def test_after_a_merge_each_child_says_what_was_done_of_it() -> None:
    children = (
        ChildPosition(level=4, partition=1, floor=20, done=((24, 26),)),
        ChildPosition(level=4, partition=3, floor=10),
    )
    floor = Floor(10, children=children)

    new = [
        (seq, finest)
        for seq, finest in ((12, 1), (14, 3), (20, 5), (22, 1), (24, 1), (24 + 1, 3), (26, 5))
        if floor.deliver(seq, finest) is Delivery.NEW
    ]

    assert new == [(14, 3), (22, 1), (25, 3)]
    assert floor.floor == 12
    for seq, _ in new:
        floor.complete(seq)
    assert floor.floor == 26
    assert floor.children() == ()


def test_what_children_say_above_the_floor_is_saved_on() -> None:
    children = (ChildPosition(level=4, partition=1, floor=20),)
    floor = Floor(10, children=children)
    floor.deliver(12, 3)

    again = Floor(floor.floor, floor.done_ranges(), floor.children())

    assert again.children() == children
    assert again.deliver(15, 1) is Delivery.DONE
    assert again.deliver(16, 3) is Delivery.NEW
