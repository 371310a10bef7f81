"""Every scenario runs, shortened, on both servers; what it measures is not asserted."""

import pytest

from tests.benchmarks.broker import SCENARIOS
from tests.benchmarks.measure import Scenario, can_measure, compare
from tests.helpers import require

pytestmark = [pytest.mark.benchmark, pytest.mark.real_server]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_scenario_runs_on_both_servers(scenario: Scenario) -> None:
    require.need("nats")
    if not can_measure():
        pytest.skip("this system tells no processor time per thread")

    [comparison] = compare([scenario.shortened()], pairs=1)

    assert comparison.ratio > 0
    assert comparison.document()["scenario"] == scenario.name
