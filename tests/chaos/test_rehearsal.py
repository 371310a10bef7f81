"""The short form of `tests.chaos.rehearsal`: embedded parts; `make rehearsal` is all of it."""

from pathlib import Path

import pytest

from millstream.demo.flights import read_flights
from tests.chaos.rehearsal import rehearse
from tests.helpers.kafka import mock_kafka
from tests.helpers.servers import EMBEDDED, Server

pytestmark = pytest.mark.slow


async def test_a_group_and_a_producer_move_there_and_home_and_no_leg_is_missed_or_twice(
    tmp_path: Path,
) -> None:
    flights = read_flights(limit=1_000)

    with mock_kafka() as kafka, Server(EMBEDDED, tmp_path / "nats") as server:
        result = await rehearse(kafka, server, tmp_path, flights)

    assert result.is_right, result
    assert result.by_kafka + result.by_nats == len(flights)
    assert result.by_nats >= len(flights) // 4
