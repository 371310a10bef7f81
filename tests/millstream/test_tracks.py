"""An aircraft's chain and figures: right for the right legs, wrong for any others."""

import json
from collections.abc import Callable
from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from millstream.demo.flights import read_flights
from millstream.demo.tracks import Track, decode, encode, follow, link

Leg = tuple[int, int, bytes]
"""Partition, offset and the row."""


@pytest.fixture(scope="module")
def legs() -> list[Leg]:
    """The legs of the aircraft that flew most; Kafka gave it every third offset of partition 4."""
    flights = [flight for flight in read_flights() if flight.key == b"N730MQ"]
    return [(4, 3 * number, flight.value) for number, flight in enumerate(flights)]


def track_of(legs: list[Leg]) -> Track:
    return reduce(lambda track, leg: follow(track, *leg), legs, Track())


def figures(track: Track) -> tuple[int | None, int | None, int]:
    return track.longest_absence_min, track.shortest_turn_min, track.away_min


def test_the_track_of_an_aircraft_is_what_the_file_says(legs: list[Leg]) -> None:
    track = track_of(legs)
    assert track.legs == len(legs) == 29
    assert track.offset == 3 * 28
    longest, shortest, away = figures(track)
    assert longest is not None
    assert shortest is not None
    assert 0 < shortest < longest < away


def swapped(legs: list[Leg], first: int, second: int) -> list[Leg]:
    """Two legs handled in the wrong order: each keeps its own place in Kafka."""
    changed = list(legs)
    changed[first], changed[second] = changed[second], changed[first]
    return changed


@pytest.mark.parametrize("first", range(1, 27))
def test_two_swapped_legs_change_the_chain_and_the_figures(legs: list[Leg], first: int) -> None:
    right, wrong = track_of(legs), track_of(swapped(legs, first, first + 1))
    assert wrong.chain != right.chain
    assert figures(wrong) != figures(right)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda legs: legs[:10] + legs[11:], id="one lost"),
        pytest.param(lambda legs: legs[:10] + legs[9:], id="one twice"),
        pytest.param(lambda legs: [*legs[:10], (4, 31, legs[10][2]), *legs[11:]], id="other place"),
    ],
)
def test_a_leg_too_few_or_too_many_or_from_elsewhere_changes_the_chain(
    legs: list[Leg], spoil: Callable[[list[Leg]], list[Leg]]
) -> None:
    assert track_of(spoil(legs)).chain != track_of(legs).chain


def test_a_cancelled_flight_is_a_leg_but_no_departure() -> None:
    cancelled = next(f for f in read_flights() if b'"dep_time":null' in f.value)
    track = follow(Track(), 0, 0, cancelled.value)
    assert (track.legs, track.departures, track.departed_ms) == (1, 0, None)


def row(minutes: int) -> bytes:
    """A flight that left so many minutes after midnight, January 1."""
    fields = {"dep_time": 1, "dep_delay": minutes, "minute": 0, "time_hour": "2013-01-01T00:00:00Z"}
    return json.dumps(fields).encode()


@given(st.lists(st.integers(min_value=0, max_value=10_000), min_size=1, max_size=30))
def test_figures_are_the_longest_the_shortest_and_all_of_the_forward_gaps(
    minutes: list[int],
) -> None:
    gaps = [later - earlier for earlier, later in pairwise(minutes)]
    forward = [gap for gap in gaps if gap > 0]
    track = track_of([(0, number, row(at)) for number, at in enumerate(minutes)])
    assert figures(track) == (
        max(forward, default=None),
        min(forward, default=None),
        sum(forward),
    )


def test_a_link_depends_on_each_of_its_parts() -> None:
    start = "00" * 32
    links = {
        link(start, 1, 2, b"row"),
        link(start, 2, 1, b"row"),
        link(start, 1, 2, b"raw"),
        link(link(start, 1, 2, b"row"), 1, 2, b"row"),
    }
    assert len(links) == 4


def test_a_stored_track_is_read_back_as_it_was(legs: list[Leg]) -> None:
    track = track_of(legs)
    assert decode(encode(track)) == track
    assert decode(None) == Track()
