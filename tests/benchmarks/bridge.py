"""What a bridge costs: mock Kafka → file streams of a NATS server, each its own process.

    python -m tests.benchmarks.bridge [--only NAME] [--server embedded|real|both] [--runs 3]
        [--records 400000] [--partitions 40] [--bytes 200] [--sizes 10000,100000,1000000]
        [--short] [--json FILE] [--store DIR]

Prints for each arm: records a second, from a command's first session to its last acknowledgement;
processor time of the command and of the server per record, without what a start costs; and the
command's largest resident size. The ``peers`` are run where they are there: nats-py's awaited
publish, mq-bridge by ``pip`` in the environment .cache/peers/mq-bridge, nats-kafka built into
.cache/peers/bin. ``--store``: where the server keeps its streams; an atomic batch costs it three
fsync, so a shared route is as fast as the disk is in that.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import uvloop

from tests.benchmarks import bridge_peers, bridge_rows, bridge_single
from tests.benchmarks.bridge_ground import Figures, Options
from tests.helpers.servers import EMBEDDED, REAL

Section = Callable[[Options, str], Coroutine[Any, Any, Figures]]
SECTIONS: Mapping[str, Section] = {
    "rates": bridge_rows.rates,
    "sizes": bridge_rows.sizes,
    "partitions": bridge_rows.partitions,
    "back": bridge_rows.back,
    "processes": bridge_rows.processes,
    "cluster": bridge_rows.cluster,
    "single": bridge_single.single,
    "profile": bridge_single.profile,
    "peers": bridge_peers.peers,
}
REAL_ONLY = {"processes", "cluster", "peers"}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bridge")
    parser.add_argument("--only", default="", help="sections whose name contains this")
    parser.add_argument("--server", choices=(EMBEDDED, REAL, "both"), default=REAL)
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--short", action="store_true", help="few records: shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--store", type=Path)
    args = parser.parse_args()
    kinds = [EMBEDDED, REAL] if args.server == "both" else [args.server]
    with tempfile.TemporaryDirectory(prefix="millstream-bench-", dir=args.store) as store:
        options = Options(
            records=1_000 if args.short else args.records,
            partitions=args.partitions,
            size=args.bytes,
            sizes=(1_000,) if args.short else tuple(map(int, args.sizes.split(","))),
            store=Path(store),
        )
        document: Figures = {"schema": "millstream.bench.bridge/2", "records": options.records}
        for name, section in SECTIONS.items():
            if args.only in name:
                for kind in [REAL] if name in REAL_ONLY else kinds:
                    runs = 1 if args.short else args.runs
                    found = [uvloop.run(section(options, kind)) for _ in range(runs)]
                    title = f"{name} ({kind})"
                    document[title] = median(found)
                    _print(title, section.__doc__ or "", document[title])
    if args.json:
        args.json.write_text(json.dumps(document, indent=2) + "\n")


def median(runs: list[Figures]) -> Figures:
    """Of each number, wherever it is; the first of what is none."""
    merged: Figures = {}
    for name, first in runs[0].items():
        every = [run[name] for run in runs if name in run]
        if isinstance(first, dict):
            merged[name] = median(every)
        else:
            is_number = isinstance(first, (int, float))
            merged[name] = statistics.median(every) if is_number else first
    return merged


def _print(title: str, what: str, figures: Figures) -> None:
    sys.stdout.write(f"\n{title}: {what.strip()}\n")
    for name, figure in figures.items():
        shown = _text(figure) if isinstance(figure, dict) else str(figure)
        sys.stdout.write(f"  {name:<28} {shown}\n")
    sys.stdout.flush()


def _text(figure: Figures) -> str:
    if "peak_mb" not in figure:
        return "  ".join(f"{name} {value}" for name, value in figure.items())
    return (
        f"{figure['per_s']:>9,.0f} /s  {figure['cpu_us']:>6.2f} µs  server"
        f" {figure['server_us']:>6.2f} µs  {figure['peak_mb']:>4.0f} MB"
    )


if __name__ == "__main__":
    main()
