"""Simulated groups by the thousand.

    python -m tests.simulation --seeds 100000 --jobs 2       seeds 0 … 99,999 in two processes
    python -m tests.simulation --seed 4711 --seeds 1 --trace  one of them, everything that happened
    python -m tests.simulation --arms                         safety rules off: where it shows

A failing seed prints what broke, the last lines of its trace and the command that replays it.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from .arms import ARMS, first_failing
from .checkers import Violation
from .world import World

CHUNK = 50
"""Seeds that one process does at a stretch."""
PROGRESS_S = 10.0
TRACE_LINES = 40
TRACES_MAX = 3
"""So many failing seeds are shown with their traces."""


@dataclass(slots=True)
class Sum:
    """What some seeds were, added up."""

    seeds: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    events: int = 0
    faults: int = 0
    messages: int = 0
    ownerships: int = 0
    stale: int = 0
    repeats: int = 0
    letters: int = 0
    resizes: int = 0
    longest_unowned_s: float = 0.0

    def add(self, other: "Sum") -> None:
        self.seeds += other.seeds
        self.failures += other.failures
        self.events += other.events
        self.faults += other.faults
        self.messages += other.messages
        self.ownerships += other.ownerships
        self.stale += other.stale
        self.repeats += other.repeats
        self.letters += other.letters
        self.resizes += other.resizes
        self.longest_unowned_s = max(self.longest_unowned_s, other.longest_unowned_s)

    def __str__(self) -> str:
        return (
            f"{self.seeds} seeds, {len(self.failures)} failed, {self.events} events,"
            f" {self.faults} faults, {self.messages} messages, {self.ownerships} ownerships,"
            f" {self.letters} letters, {self.resizes} resizes,"
            f" refused: {self.stale} stale effects and {self.repeats} repeats;"
            f" longest unowned after a disturbance {self.longest_unowned_s:.2f} s"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--arms", action="store_true", help="the table of safety rules turned off")
    given = parser.parse_args()
    if given.arms:
        return print_arms(given.seeds)
    if given.trace:
        failed = [print_trace(given.seed + i, None) for i in range(given.seeds)]
        return 1 if any(failed) else 0
    return run(given.seed, given.seeds, given.jobs)


def run(first: int, count: int, jobs: int) -> int:
    """Run the seeds, say now and then how far it is, and in the end what they were."""
    end = first + count
    chunks = [range(at, min(at + CHUNK, end)) for at in range(first, end, CHUNK)]
    whole = Sum()
    started_at = told_at = time.perf_counter()
    for part in _parts(chunks, jobs):
        whole.add(part)
        for seed, text in part.failures:
            print(f"seed {seed}: {text}")
            if len(whole.failures) <= TRACES_MAX:
                print_trace(seed, TRACE_LINES)
            print(f"replay: python -m tests.simulation --seed {seed} --seeds 1 --trace", flush=True)
        now = time.perf_counter()
        if now - told_at >= PROGRESS_S and whole.seeds < count:
            told_at = now
            took_s = now - started_at
            print(
                f"{whole.seeds} of {count} in {took_s:.0f} s, {len(whole.failures)} failed;"
                f" to go on from here: --seed {first + whole.seeds}"
                f" --seeds {count - whole.seeds}",
                flush=True,
            )
    took_s = time.perf_counter() - started_at
    print(f"{whole}; {took_s:.1f} s, {1000 * took_s * jobs / count:.1f} ms of a core per seed")
    return 1 if whole.failures else 0


def _parts(chunks: list[range], jobs: int) -> Iterator[Sum]:
    if jobs == 1:
        yield from map(run_chunk, chunks)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_chunk, chunks)


def run_chunk(seeds: range) -> Sum:
    """Run some seeds in this process."""
    part = Sum()
    gc.disable()  # a run is one heap of cycles that goes all at once
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except Violation as violation:
            part.failures.append((seed, str(violation)))
        except Exception as error:  # noqa: BLE001 - a machine that raises has failed as well
            part.failures.append((seed, f"{type(error).__name__}: {error}"))
        outcome = world.outcome
        part.seeds += 1
        part.events += outcome.num_events
        part.faults += outcome.num_faults
        part.messages += outcome.num_published
        part.ownerships += outcome.num_moves
        part.stale += outcome.num_stale
        part.repeats += outcome.num_repeated
        part.letters += outcome.num_letters
        part.resizes += outcome.num_resizes
        part.longest_unowned_s = max(part.longest_unowned_s, outcome.longest_unowned_s)
        if seed % 10 == 0:
            gc.collect()
    gc.enable()
    return part


def print_trace(seed: int, num_lines: int | None) -> bool:
    """Run a seed once more and print what happened (the last lines of it); whether it failed."""
    world = World(seed, trace=True)
    violation: Exception | None = None
    try:
        world.run()
    except Exception as error:  # noqa: BLE001 - what it raised is what is printed
        violation = error
    assert world.trace is not None
    lines = world.trace if num_lines is None else world.trace[-num_lines:]
    print("\n".join(lines))
    print(f"seed {seed}: {violation or world.outcome}", flush=True)
    return violation is not None


def print_arms(seeds: int) -> int:
    """Print, for each safety rule, the first seed that fails without it."""
    escaped = 0
    print(f"{'without':<28} {'fails at seed':>13}  how")
    for arm in ARMS:
        found = first_failing(arm, seeds)
        escaped += found is None
        seed, text = found or ("-", f"not in {seeds} seeds")
        print(f"{arm.name:<28} {seed:>13}  {text[:120]}", flush=True)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
