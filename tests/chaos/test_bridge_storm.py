"""The short form of `tests.chaos.bridge_storm`, and its control arm."""

from pathlib import Path

import pytest

from tests.chaos.bridge_process import SEQUENCE
from tests.chaos.bridge_storm import Storm, run
from tests.helpers.kafka import MOCK
from tests.helpers.require import need

STORMS_MAX = 5
pytestmark = [pytest.mark.slow, pytest.mark.real_server]


@pytest.mark.parametrize("mode", ["chain", "dense", "shared"])
async def test_two_bridges_in_a_storm_lose_and_repeat_nothing(tmp_path: Path, mode: str) -> None:
    need("nats")
    faults = {"bridge": 2, "server": 1, "cut": 1, "stall": 1}

    outcome = await run(Storm(mode=mode, kafka=MOCK, records=20_000, faults=faults), tmp_path)

    assert outcome.is_good, outcome
    assert outcome.faults == faults


async def test_without_the_chain_both_judges_find_a_hole(tmp_path: Path) -> None:
    """The arm that must fail, or the test above would have no power.

    A storm whose faults all fall between two frames does no harm; the next one is another.
    """
    need("nats")
    faults = {"bridge": 4, "cut": 4}
    for seed in range(1, STORMS_MAX + 1):
        storm = Storm(guard=SEQUENCE, kafka=MOCK, records=60_000, faults=faults, seed=seed)
        outcome = await run(storm, tmp_path / str(seed))
        assert outcome.verify_equal is outcome.judge_clean, outcome
        if outcome.judgement["missing"] + outcome.judgement["doubled"]:
            return
    pytest.fail(f"none of {STORMS_MAX} storms did any harm")
