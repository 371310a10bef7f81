"""A thousand seeds; and safety rules turned off, one at a time: else the seeds prove nothing."""

import multiprocessing
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.simulation.arms import ARMS, Arm, Edit, first_failing, off
from tests.simulation.checkers import Violation
from tests.simulation.faults import KINDS
from tests.simulation.world import Outcome, World

SEEDS = 1000
FIRST = 60
NAMED = {"pause": 83}
"""Seeds above those whose run needs that rule: without it they fail (``--arms``)."""
ROOT = Path(__file__).parents[2]


def test_the_first_seeds_keep_every_promise() -> None:
    """The quick form; what is planted in ``tests/mutants`` is seen by these already."""
    for seed in range(FIRST):
        World(seed).run()


@pytest.mark.parametrize("seed", NAMED.values(), ids=list(NAMED))
def test_a_named_seed_keeps_every_promise(seed: int) -> None:
    World(seed).run()


def test_no_call_gets_stuck_any_more_when_the_faults_are_over() -> None:
    world = World(0)
    stuck_s = 1.5 * world.timing.drain_timeout_s
    assert stuck_s in {world.handler_duration(is_slow=False) for _ in range(10_000)}

    world.faults.end()

    assert stuck_s not in {world.handler_duration(is_slow=False) for _ in range(10_000)}


def outcome_of(seed: int) -> Outcome | str:
    """A seed's run, or what promise it broke."""
    try:
        return World(seed).run()
    except Violation as violation:
        return str(violation)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Every seed's run, in two processes; a broken promise fails here and names its seed."""
    done = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for seed, outcome in enumerate(pool.map(outcome_of, range(SEEDS), chunksize=25)):
            if isinstance(outcome, str):
                replay = f"python -m tests.simulation --seed {seed} --seeds 1 --trace"
                pytest.fail(f"{replay}: {outcome}")
            done.append(outcome)
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
    assert sum(one.num_dropped for one in outcomes) >= 100
    kinds = {kind for one in outcomes for kind in one.kinds}
    assert {"MemberDead", "Fenced", "ConsumerReconciled", *KINDS} <= kinds


def test_a_seed_is_a_run() -> None:
    first = World(7).run()

    again = World(7).run()

    assert first == again


def test_a_seed_is_the_same_run_in_another_process() -> None:
    seeds = (1, 11, 29)
    program = f"""
from tests.simulation.world import World
print(*(World(seed).run().digest for seed in {seeds}))
"""

    digests = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert digests == [World(seed).run().digest for seed in seeds]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_without_a_safety_rule_the_checkers_notice(arm: Arm) -> None:
    """`python -m tests.simulation --arms` prints the table: which seed, and what broke."""
    assert first_failing(arm, SEEDS) is not None


def test_an_arm_that_does_not_fit_the_source_any_more_is_refused() -> None:
    edit = ARMS[0].edits[0]
    blunt = Arm("blunt", (Edit(edit.module, edit.function, "no such text", ""),))

    with pytest.raises(ValueError, match="'no such text' is not once in"), off(blunt):
        pass
