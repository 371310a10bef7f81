"""``python -m tests.benchmarks``: run the scenarios in pairs on both servers and print ratios."""

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks import broker
from tests.benchmarks.measure import Comparison, can_measure, compare
from tests.helpers import require

SCENARIOS = [*broker.SCENARIOS]
LINE = "{:<44} {:>7} {:>12} {:>8} {:>8} {:>11} {:>11}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each server per scenario")
    parser.add_argument("--short", action="store_true", help="few messages: shows that it works")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    reason = require.missing("nats")
    if reason or not can_measure():
        sys.stderr.write(f"benchmarks: {reason or 'this system tells no time per thread'}\n")
        return 2
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    if not chosen:
        sys.stderr.write(f"benchmarks: no scenario has {options.only!r} in its name\n")
        return 2
    if options.short:
        chosen = [scenario.shortened() for scenario in chosen]

    say = sys.stdout.write
    say("server CPU per message, embedded / nats-server, median of the pairs\n\n")
    say(LINE.format("", "ratio", "range", "µs", "µs real", "per s", "per s real") + "\n")
    found: list[Comparison] = []
    for comparison in compare(chosen, options.pairs):
        found.append(comparison)
        say(_line(comparison) + "\n")
        sys.stdout.flush()
    if not all(comparison.has_enough_cpu for comparison in found):
        say("\n* a run in which a server worked less than a second: raise the messages\n")
    if options.json:
        document = {
            "schema": "millstream.benchmarks/1",
            "scenarios": [comparison.document() for comparison in found],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _line(comparison: Comparison) -> str:
    low, high = comparison.spread
    mark = "" if comparison.has_enough_cpu else " *"
    return LINE.format(
        comparison.scenario.name,
        f"{comparison.ratio:.2f}{mark}",
        f"{low:.2f}-{high:.2f}",
        *(f"{comparison.median(which, lambda s: s.cpu_us):.3f}" for which in (0, 1)),
        *(f"{comparison.median(which, lambda s: s.rate):,.0f}" for which in (0, 1)),
    )


if __name__ == "__main__":
    sys.exit(main())
