"""The short form of `tests.chaos.both_ways`: a few turns on a real Kafka."""

from pathlib import Path

import pytest

from tests.chaos.both_ways import BothWays
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


async def test_both_directions_killed_at_random_lose_repeat_and_return_nothing(
    tmp_path: Path,
) -> None:
    need("kafka")
    victims = ["run", "back", "run", "back", "server"]

    outcome = await BothWays(tmp_path, 7, server=EMBEDDED).run(5, victims)

    assert outcome.is_exact, outcome
    assert outcome.in_kafka == outcome.in_nats == outcome.written > 0
