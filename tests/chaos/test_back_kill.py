"""The short form of `tests.chaos.back_kill`: a few kills on a real Kafka."""

from pathlib import Path

import pytest

from tests.chaos.back_kill import Chaos
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


async def test_a_way_back_killed_at_random_loses_and_repeats_nothing(tmp_path: Path) -> None:
    need("kafka")
    outcome = await Chaos(tmp_path, 7, server=EMBEDDED).run(2, 1)

    assert outcome.is_exact, outcome
    assert outcome.kills_in_flight >= 1
