"""``python -m tests.simulation --seeds N --seed S``: run seeds S … S+N-1, say what they were."""

import argparse
import statistics
import sys
import time

from .checkers import Violation
from .world import Arms, Outcome, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-epoch-check", action="store_true", help="an arm that must fail")
    parser.add_argument("--ignore-done", action="store_true", help="an arm that must fail")
    given = parser.parse_args()
    arms = Arms(sink_checks_epoch=not given.no_epoch_check, respects_done=not given.ignore_done)
    outcomes: list[Outcome] = []
    failed = 0
    started_at = time.perf_counter()
    for seed in range(given.seed, given.seed + given.seeds):
        try:
            outcomes.append(World(seed, arms).run())
        except Violation as violation:
            failed += 1
            print(f"seed {seed}: {violation}", flush=True)
    took_s = time.perf_counter() - started_at
    if outcomes:
        print(summary(outcomes, took_s))
    print(f"{failed} of {given.seeds} seeds failed")
    return 1 if failed else 0


def summary(outcomes: list[Outcome], took_s: float) -> str:
    """One line per figure that says whether the runs had any power."""
    events = statistics.median(one.num_events for one in outcomes)
    faults = statistics.median(one.num_faults for one in outcomes)
    return (
        f"{len(outcomes)} seeds in {took_s:.1f} s; per seed, median: {events:.0f} events,"
        f" {faults:.0f} faults; in all: {sum(one.num_published for one in outcomes)} messages,"
        f" {sum(one.num_moves for one in outcomes)} ownerships,"
        f" {sum(one.num_stale for one in outcomes)} stale effects refused,"
        f" {sum(one.num_repeated for one in outcomes)} repeats refused"
    )


if __name__ == "__main__":
    sys.exit(main())
