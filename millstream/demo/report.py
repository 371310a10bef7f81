"""The report: what happened, what was counted, and whether all of it is right.

The verdict rests on the sink's final content and the flights file. What each aircraft's track must
be is computed here from the file and the places Kafka gave the rows; the workers' own counts are
shown, but nothing is proven by them. ``README.md`` in this folder describes the JSON field by
field; ``examples/check_demo.py`` comes to the same verdict from the kept files alone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from .flights import Flight
from .ledger import Call, Effect
from .scene import Fault, Outcome
from .servers import without_credentials
from .settings import MAX_LANES, DemoSettings
from .sink import SinkContent
from .tracks import Track, follow

SCHEMA = "millstream.demo/1"
SINK_SCHEMA = "millstream.demo.sink/1"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The sink's content against what the file says it must be."""

    equal: int
    different: list[str]
    lost: int
    applied_twice: int
    without_key_equal: bool


def out_of_order(calls: Iterable[Call]) -> int:
    """How many messages were handled for the first time after a later one of their key.

    A repeated call of a message that was handled before is no disorder: the sink refuses it.
    Messages without a key have no order.
    """
    newest: dict[str, int] = {}
    seen: set[int] = set()
    violations = 0
    for call in sorted(calls, key=lambda call: call.time):
        if call.key is None or call.seq in seen:
            continue
        seen.add(call.seq)
        violations += call.seq < newest.get(call.key, 0)
        newest[call.key] = max(call.seq, newest.get(call.key, 0))
    return violations


def compare(
    flights: Sequence[Flight], places: dict[int, tuple[int, int]], sink: SinkContent
) -> Comparison:
    """Compute every track from the file and compare; ``places`` are the rows' places in Kafka.

    A row that was never produced is a lost one.
    """
    tracks: dict[str, Track] = {}
    legs: Counter[str] = Counter()
    without_key = []
    for index, flight in enumerate(flights):
        place = places.get(index, (-1, -1))
        if flight.key is None:
            without_key.append(follow(Track(), *place, flight.value))
            continue
        key = flight.key.decode()
        legs[key] += 1
        tracks[key] = follow(tracks.get(key, Track()), *place, flight.value)
    found = sink.aircraft
    different = sorted(
        key for key in tracks.keys() | found.keys() if tracks.get(key) != found.get(key)
    )
    wanted_chains = Counter(track.chain for track in without_key)
    found_chains = Counter(track.chain for track in sink.without_key)
    missing = [max(0, legs[key] - found.get(key, Track()).legs) for key in tracks]
    surplus = [max(0, track.legs - legs[key]) for key, track in found.items()]
    return Comparison(
        equal=len(tracks) - sum(key in tracks for key in different),
        different=different,
        lost=sum(missing) + (wanted_chains - found_chains).total(),
        applied_twice=sum(surplus) + (found_chains - wanted_chains).total(),
        without_key_equal=wanted_chains == found_chains,
    )


def build(settings: DemoSettings, flights: Sequence[Flight], outcome: Outcome) -> dict[str, Any]:
    """The report as it is written to ``--report FILE``."""
    board, servers = outcome.board, outcome.servers
    comparison = compare(flights, outcome.places, outcome.sink)
    disorder = out_of_order(board.calls)
    records = len(flights)
    handled = len({(call.kafka_partition, call.offset) for call in board.calls})
    takeovers = [
        t.seconds * 1000 for f in outcome.faults if f.name == "kill workers" for t in f.takeovers
    ]
    checks = {
        "lost is 0": comparison.lost == 0,
        "out of order is 0": disorder == 0,
        "each effect applied exactly once": outcome.sink.effects == records
        and comparison.lost == 0
        and comparison.applied_twice == 0,
        "all results equal": not comparison.different and comparison.without_key_equal,
        "every fault met a backlog": all(fault.backlog > 0 for fault in outcome.faults),
    }
    for fault in outcome.faults:
        if fault.name == "kill the broker":
            checks["the broker's restart moved no partition"] = not fault.moved_partitions
    return {
        "schema": SCHEMA,
        "millstream": version("millstream"),
        "passed": all(checks.values()),
        "checks": checks,
        "settings": {
            "records": records,
            "workers": settings.workers,
            "partitions": settings.partitions,
            "seed": settings.seed,
            "handler_ms": settings.work_ms,
            "max_lanes": MAX_LANES,
        },
        "servers": {
            "nats": {
                "url": without_credentials(servers.nats),
                "embedded": settings.nats is None,
                "version": servers.nats_version,
            },
            "kafka": {"bootstrap": servers.kafka, "embedded": settings.kafka is None},
        },
        "records": {
            "produced": len(outcome.places),
            "moved": board.moved,
            "handled": handled,
            "without_key": sum(flight.key is None for flight in flights),
        },
        "lost": comparison.lost,
        "out_of_order": disorder,
        "delivery_attempts": len(board.calls),
        "effects": {
            "applied": outcome.sink.effects,
            "applied_twice": comparison.applied_twice,
            "repeats_refused": board.repeats_refused,
            "stale_refused": board.stale_refused,
            "failed_and_retried": board.failed,
            "cut_off_by_a_kill": len(board.calls) - len(board.effects),
        },
        "aircraft": {
            "count": comparison.equal + len(comparison.different),
            "equal": comparison.equal,
            "different": comparison.different,
            "without_key_equal": comparison.without_key_equal,
        },
        "figures": _figures(outcome.sink),
        "faults": [_fault(fault) for fault in outcome.faults],
        "takeover_ms": {
            "count": len(takeovers),
            "p50": _quantile(takeovers, 0.5),
            "p95": _quantile(takeovers, 0.95),
            "max": max(takeovers, default=None),
        },
        "rates_per_second": {
            "handled": round(handled / outcome.work_seconds, 1),
            "delivery_attempts": round(len(board.calls) / outcome.work_seconds, 1),
        },
        "seconds": round(outcome.seconds, 2),
    }


def keep(directory: Path, outcome: Outcome, report: dict[str, Any]) -> None:
    """Write what anybody needs to check the run: ledgers, the sink's content, the report."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_lines(directory / "handled.ndjson", outcome.board.calls)
    _write_lines(directory / "effects.ndjson", outcome.board.effects)
    content = {
        "schema": SINK_SCHEMA,
        "aircraft": dict(sorted(outcome.sink.aircraft.items())),
        "without_key": outcome.sink.without_key,
    }
    (directory / "sink.json").write_bytes(_pretty(content))
    write(directory / "report.json", report)


def write(file: Path, report: dict[str, Any]) -> None:
    """Write the report as JSON."""
    file.write_bytes(_pretty(report))


def _write_lines(file: Path, lines: Sequence[Call] | Sequence[Effect]) -> None:
    in_time = sorted(lines, key=lambda line: line.time)
    file.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in in_time))


def _pretty(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def _fault(fault: Fault) -> dict[str, Any]:
    facts = asdict(fault)
    takeovers = facts.pop("takeovers")
    recovered_s = facts.pop("recovered_s")
    return {
        **facts,
        "at_s": round(fault.at_s, 3),
        "takeovers": [
            {
                **{k: v for k, v in one.items() if k != "seconds"},
                "ms": round(one["seconds"] * 1000, 1),
            }
            for one in takeovers
        ],
        "recovered_ms": None if recovered_s is None else round(recovered_s * 1000, 1),
    }


def _figures(sink: SinkContent) -> dict[str, Any]:
    """The two figures a person would tell another about."""
    away = [
        (track.longest_absence_min, key)
        for key, track in sink.aircraft.items()
        if track.longest_absence_min is not None
    ]
    turns = [
        (track.shortest_turn_min, key)
        for key, track in sink.aircraft.items()
        if track.shortest_turn_min is not None
    ]
    longest, shortest = max(away, default=None), min(turns, default=None)
    return {
        "longest_absence": longest and {"aircraft": longest[1], "minutes": longest[0]},
        "shortest_turn": shortest and {"aircraft": shortest[1], "minutes": shortest[0]},
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
