"""What a coordinator group's records say is handled."""

from millstream_bridge.cutover.takeover import Handled


def test_what_is_handled_is_a_floor_and_ranges_beyond_it() -> None:
    handled = Handled(10, ((12, 13), (20, 20)))

    assert [seq for seq in range(1, 25) if handled.has(seq)] == [*range(1, 11), 12, 13, 20]
    assert handled.end == 20


def test_without_ranges_the_floor_is_the_end() -> None:
    assert Handled(7).end == 7
    assert not Handled(7).has(8)
