"""The short form of `tests.chaos.rehearsal`: on the embedded parts, and on a real Kafka."""

from pathlib import Path

import pytest

from millstream.demo.flights import read_flights
from tests.chaos.rehearsal import rehearse
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, mock_kafka, real_kafka
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED, REAL, Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kafka_kind", "server_kind"),
    [
        (MOCK, EMBEDDED),
        pytest.param(REAL_KAFKA, REAL, marks=[pytest.mark.kafka, pytest.mark.real_server]),
    ],
)
async def test_a_group_and_a_producer_move_there_and_home_and_no_leg_is_missed_or_twice(
    tmp_path: Path, kafka_kind: str, server_kind: str
) -> None:
    if kafka_kind == REAL_KAFKA:
        need("kafka")
        need("nats")
    flights = read_flights(limit=1_000)

    with (
        mock_kafka() if kafka_kind == MOCK else real_kafka() as kafka,
        Server(server_kind, tmp_path / "nats") as server,
    ):
        result = await rehearse(kafka, server, tmp_path, flights)

    assert result.is_right, result
    assert result.by_kafka + result.by_nats == len(flights)
    assert result.by_nats >= len(flights) // 4
