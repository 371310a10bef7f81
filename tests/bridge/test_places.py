"""The place on the other side: exact where there is one, refused where there is none."""

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.cutover.places import Edge, Place, in_stream, in_topic, replay_obstacle

# A history: each message of a partition in the stream's order, True for a record of Kafka's, False
# for a native one; and where the way back wrote each native one in Kafka.
history = st.lists(st.booleans(), max_size=12)


def offsets_of(kinds: list[bool], delays: list[int]) -> list[int]:
    """Offsets in Kafka: records in the stream's order; each native one after so many records."""
    line: list[int] = []
    pending: list[tuple[int, int]] = []  # (index, records still to be written before it)
    for index, is_record in enumerate(kinds):
        if is_record:
            line.append(index)
            pending = [(it, max(0, left - 1)) for it, left in pending]
        else:
            pending.append((index, delays[index % len(delays)]))
        while pending and pending[0][1] == 0:
            line.append(pending.pop(0)[0])
    line += [it for it, _ in pending]
    offsets = [0] * len(kinds)
    for offset, index in enumerate(line):
        offsets[index] = offset
    return offsets


def edges(kinds: list[bool], offsets: list[int], handled: set[int]) -> tuple[Edge, Edge]:
    """The edges of both kinds; a message's sequence is its index + 1."""

    def edge(wanted: bool) -> Edge:
        mine = [i for i, is_record in enumerate(kinds) if is_record is wanted]
        last = [i for i in mine if i in handled]
        first = [i for i in mine if i not in handled]
        return Edge(
            (last[-1] + 1, offsets[last[-1]]) if last else None,
            (first[0] + 1, offsets[first[0]]) if first else None,
        )

    return edge(True), edge(False)


@given(history, st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 13))
def test_a_place_in_the_stream_is_exact_or_refused(
    kinds: list[bool], delays: list[int], committed: int
) -> None:
    offsets = offsets_of(kinds, delays)
    handled = {i for i, offset in enumerate(offsets) if offset < committed}

    place = in_stream(*edges(kinds, offsets, handled), end_seq=len(kinds) + 1)

    behind = {i for i in range(len(kinds)) if i + 1 >= place.at}
    is_exact = behind == set(range(len(kinds))) - handled
    assert is_exact is (place.obstacle is None)


@given(history, st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 13))
def test_a_place_in_the_topic_is_exact_or_refused(
    kinds: list[bool], delays: list[int], floor: int
) -> None:
    offsets = offsets_of(kinds, delays)
    handled = {i for i in range(len(kinds)) if i + 1 <= floor}

    place = in_topic(*edges(kinds, offsets, handled), end_offset=len(kinds))

    behind = {i for i, offset in enumerate(offsets) if offset >= place.at}
    is_exact = behind == set(range(len(kinds))) - handled
    assert is_exact is (place.obstacle is None)


def test_all_handled_is_the_next_message_to_come() -> None:
    assert in_stream(Edge((7, 3), None), Edge(None, None), end_seq=20) == Place(20)


def test_a_native_message_that_is_not_back_in_kafka_is_in_the_way_home() -> None:
    is_open = in_topic(Edge((7, 3), None), Edge(None, (8, None)), end_offset=4)
    is_handled = in_topic(Edge((7, 3), None), Edge((8, None), None), end_offset=4)

    assert "sequence 8 is not in Kafka yet" in (is_open.obstacle or "")
    assert "handled again" in (is_handled.obstacle or "")


def test_a_native_message_skipped_by_the_group_is_named() -> None:
    place = in_stream(Edge((9, 5), None), Edge(None, (4, None)), end_seq=10)

    assert place.at == 4
    assert "sequence 4 is not handled, and sequence 9" in (place.obstacle or "")


def test_a_place_is_never_behind_a_record_the_stream_does_not_have() -> None:
    """Offset 10 came to Kafka after the bridge had stopped, and 11 came back from NATS."""
    natives = Edge(None, (6, 11))

    assert in_topic(Edge((5, 9), None), natives, end_offset=10) == Place(10)


@pytest.mark.parametrize(
    ("is_handled", "is_behind", "says"),
    [
        (True, False, None),  # handled, and not given again
        (False, True, None),
        (True, True, "handled, and would be again"),
        (False, False, "not handled, and would be missed"),
    ],
)
def test_a_replayed_record_is_in_the_way_where_it_would_be_missed_or_come_again(
    is_handled: bool, is_behind: bool, says: str | None
) -> None:
    found = replay_obstacle(9, 4, is_handled=is_handled, is_behind=is_behind)

    assert (found is None) is (says is None)
    assert found is None or found == f"the record of offset 4, replayed at sequence 9, is {says}"
