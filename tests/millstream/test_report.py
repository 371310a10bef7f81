"""The verdict: what is lost, twice or out of order is found, and nothing else is."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from millstream.demo.flights import Flight, read_flights
from millstream.demo.ledger import Call
from millstream.demo.report import compare, out_of_order
from millstream.demo.sink import SinkContent
from millstream.demo.tracks import Track, follow

Places = dict[int, tuple[int, int]]


@pytest.fixture(scope="module")
def flights() -> list[Flight]:
    """Three days, with rows without a tail number among them."""
    return read_flights(limit=3000)


@pytest.fixture(scope="module")
def places(flights: list[Flight]) -> Places:
    """Everything in one partition, in the file's order."""
    return {index: (0, index) for index in range(len(flights))}


def sink_after(flights: list[Flight], order: list[int]) -> SinkContent:
    """What is in the sink when rows are applied in this order, each with its own place."""
    content = SinkContent()
    for index in order:
        flight = flights[index]
        if flight.key is None:
            content.without_key.append(follow(Track(), 0, index, flight.value))
        else:
            key = flight.key.decode()
            content.aircraft[key] = follow(
                content.aircraft.get(key, Track()), 0, index, flight.value
            )
    return content


def test_every_row_once_and_in_order_is_equal(flights: list[Flight], places: Places) -> None:
    comparison = compare(flights, places, sink_after(flights, list(places)))
    assert (comparison.different, comparison.lost, comparison.applied_twice) == ([], 0, 0)
    assert comparison.without_key_equal
    assert comparison.equal == len({flight.key for flight in flights if flight.key})


def test_a_lost_row_is_counted_and_its_aircraft_named(
    flights: list[Flight], places: Places
) -> None:
    comparison = compare(flights, places, sink_after(flights, list(places)[:-1]))
    key = flights[-1].key
    assert key is not None
    assert (comparison.lost, comparison.different) == (1, [key.decode()])


def test_a_row_applied_twice_is_counted(flights: list[Flight], places: Places) -> None:
    comparison = compare(flights, places, sink_after(flights, [*places, len(flights) - 1]))
    assert (comparison.lost, comparison.applied_twice) == (0, 1)
    assert len(comparison.different) == 1


def test_two_swapped_legs_are_found_though_every_count_is_right(
    flights: list[Flight], places: Places
) -> None:
    key = b"N730MQ"
    second, third = [index for index in places if flights[index].key == key][1:3]
    order = list(places)
    order[second], order[third] = order[third], order[second]
    comparison = compare(flights, places, sink_after(flights, order))
    assert (comparison.lost, comparison.applied_twice) == (0, 0)
    assert comparison.different == ["N730MQ"]


@pytest.mark.parametrize(
    ("spoil", "lost", "twice"),
    [
        pytest.param(lambda rows: rows[1:], 1, 0, id="lost"),
        pytest.param(lambda rows: [*rows, rows[0]], 0, 1, id="twice"),
        pytest.param(lambda rows: [replace(rows[0], chain="ff" * 32), *rows[1:]], 1, 1, id="other"),
    ],
)
def test_a_row_without_a_tail_number_counts_as_well(
    flights: list[Flight],
    places: Places,
    spoil: Callable[[list[Track]], list[Track]],
    lost: int,
    twice: int,
) -> None:
    sink = sink_after(flights, list(places))
    assert sink.without_key
    sink.without_key = spoil(sink.without_key)
    comparison = compare(flights, places, sink)
    assert not comparison.without_key_equal
    assert (comparison.lost, comparison.applied_twice) == (lost, twice)


def call(seq: int, time: int, key: str | None = "N1") -> Call:
    return Call(
        worker="w", epoch=1, kafka_partition=0, offset=seq, key=key, seq=seq, time=time
    )  # fmt: skip


def test_calls_in_the_order_of_their_sequences_are_in_order() -> None:
    assert out_of_order([call(1, 10), call(2, 20), call(5, 30)]) == 0


def test_a_first_call_after_a_later_message_of_its_key_is_out_of_order() -> None:
    assert out_of_order([call(1, 10), call(5, 20), call(2, 30)]) == 1


def test_a_repeated_call_is_not_out_of_order() -> None:
    assert out_of_order([call(1, 10), call(2, 20), call(1, 30), call(3, 40)]) == 0


def test_messages_of_different_keys_and_without_a_key_have_no_order() -> None:
    calls = [call(5, 10, "N1"), call(1, 20, "N2"), call(9, 30, None), call(4, 40, None)]
    assert out_of_order(calls) == 0
