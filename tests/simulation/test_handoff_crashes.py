"""A change of owner survives the death of whoever takes a step, before and after each step.

The usual checkers look on, and the group must come to rest (``crashes.py``).
"""

import pytest

from .crashes import STEPS, CrashingWorld, PausingWorld

UNTAKEN = {("kill", "sync acks"), ("leave", "1 read old consumer")}
"""The dead cannot sync their acks; who gives away knows the floor without its consumer."""


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", list(STEPS))
@pytest.mark.parametrize("change", ["leave", "kill"])
def test_a_crash_at_any_step_is_picked_up(change: str, step: str, is_after: bool) -> None:
    crashed = 0
    for seed in range(3):
        world = CrashingWorld(seed, change, STEPS[step], is_after=is_after)
        world.run()
        crashed += world.has_crashed

    if (change, step) not in UNTAKEN:
        assert crashed


def _run_with_pauses(step: str) -> None:
    for seed in range(6):
        PausingWorld(seed, "kill", STEPS[step], is_after=True).run()


@pytest.mark.parametrize("step", list(STEPS)[1:])
def test_a_pause_at_any_step_is_overtaken_safely(step: str) -> None:
    _run_with_pauses(step)
