"""``python -m tests.benchmarks``: run the scenarios in pairs on both servers and print ratios."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import broker
from tests.benchmarks.measure import Comparison, can_measure, compare
from tests.helpers import require

SCENARIOS = [*broker.SCENARIOS]


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

    console = Console()
    found: list[Comparison] = []
    for comparison in compare(chosen, options.pairs):
        found.append(comparison)
        console.print(f"{comparison.scenario.name}: {comparison.ratio:.2f}", highlight=False)
    console.print(_table(found))
    if options.json:
        document = {
            "schema": "millstream.benchmarks/1",
            "scenarios": [comparison.document() for comparison in found],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _table(comparisons: list[Comparison]) -> Table:
    table = Table(title="server CPU per message: embedded / nats-server (median of pairs)")
    for heading in ("scenario", "ratio", "range", "embedded µs", "real µs", "embedded/s", "real/s"):
        table.add_column(heading, justify="left" if heading == "scenario" else "right")
    for comparison in comparisons:
        low, high = comparison.spread
        one, other = (comparison.median(which, lambda s: s.cpu_us) for which in (0, 1))
        rates = [f"{comparison.median(which, lambda s: s.rate):,.0f}" for which in (0, 1)]
        enough = all(s.has_enough_cpu for pair in comparison.pairs for s in pair)
        table.add_row(
            comparison.scenario.name,
            f"{comparison.ratio:.2f}" + ("" if enough else " *"),
            f"{low:.2f}-{high:.2f}",
            f"{one:.3f}",
            f"{other:.3f}",
            *rates,
        )
    table.caption = "* a run in which a server worked less than a second: raise the messages"
    return table


if __name__ == "__main__":
    sys.exit(main())
