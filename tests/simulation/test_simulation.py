"""A thousand seeds, and arms that must fail so that the thousand mean something."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.checkers import Violation
from tests.simulation.world import Arms, Outcome, World

SEEDS = 1000
FIRST = 60
ROOT = Path(__file__).parents[2]


def test_the_first_seeds_keep_every_promise() -> None:
    """The quick form; what is planted in ``tests/mutants`` is seen by these already."""
    for seed in range(FIRST):
        World(seed).run()


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Every seed's run; a broken promise fails here and names its seed."""
    done = []
    for seed in range(SEEDS):
        try:
            done.append(World(seed).run())
        except Violation as violation:
            pytest.fail(f"python -m tests.simulation --seeds 1 --seed {seed}: {violation}")
    return done


@pytest.mark.slow
def test_a_thousand_seeds_keep_every_promise(outcomes: list[Outcome]) -> None:
    assert len(outcomes) == SEEDS


@pytest.mark.slow
def test_the_seeds_have_power(outcomes: list[Outcome]) -> None:
    assert statistics.median(one.num_events for one in outcomes) >= 200
    assert statistics.median(one.num_faults for one in outcomes) >= 3
    assert sum(one.num_stale for one in outcomes) >= 20
    assert sum(one.num_repeated for one in outcomes) >= 100
    kinds = {kind for one in outcomes for kind in one.kinds}
    assert {"MemberDead", "Fenced", "ConsumerReconciled"} <= kinds


def test_a_seed_is_a_run() -> None:
    first = World(7).run()

    again = World(7).run()

    assert first == again


def test_a_seed_is_the_same_run_in_another_process() -> None:
    program = "from tests.simulation.world import World; print(World(11).run().digest)"

    digest = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    assert digest == World(11).run().digest


def _first_failing(arms: Arms, seeds: int) -> Violation | None:
    for seed in range(seeds):
        try:
            World(seed, arms).run()
        except Violation as violation:
            return violation
    return None


def test_without_the_epoch_check_at_the_sink_a_stale_effect_gets_through() -> None:
    violation = _first_failing(Arms(sink_checks_epoch=False), SEEDS)

    assert "stale effect" in str(violation)


def test_without_the_done_set_handled_messages_are_handled_again() -> None:
    violation = _first_failing(Arms(respects_done=False), SEEDS)

    assert "is handled again" in str(violation)
