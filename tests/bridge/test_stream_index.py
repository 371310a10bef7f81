"""What is remembered of a partition finds the edge of what is handled."""

from hypothesis import given, strategies as st

from millstream_bridge.cutover.index import Partition
from millstream_bridge.cutover.takeover import Handled

SEQS = st.integers(1, 30)
RANGES = st.lists(st.tuples(SEQS, SEQS).map(lambda it: (min(it), max(it))), max_size=4)


@given(st.sets(SEQS), st.integers(0, 30), RANGES)
def test_the_edge_of_native_messages_is_as_if_each_was_looked_at(
    seqs: set[int], floor: int, done: list[tuple[int, int]]
) -> None:
    handled = Handled(floor, tuple(done))
    partition = Partition("S")
    partition.natives.extend(sorted(seqs))

    edge = partition.natives_edge(*handled)

    last = max((seq for seq in seqs if handled.has(seq)), default=None)
    first = min((seq for seq in seqs if not handled.has(seq)), default=None)
    assert edge == (last, first)
