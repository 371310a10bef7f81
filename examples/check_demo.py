"""Check a run of the demo from its kept files and the flights file alone.

    millstream demo --keep run
    python examples/check_demo.py run millstream/demo/flights.csv.gz

This script imports nothing of millstream: it makes the records again from the CSV, finds out from
``handled.ndjson`` which place in Kafka each of them had, computes what every aircraft's track must
be, and compares that with ``sink.json``. Exit code 0 if everything is as it must be, 1 if not, 2 if
a file cannot be read.

What it relies on: the producer played the file in order, so the n-th row of an aircraft is its n-th
record; Kafka keeps the records of one key in one partition, in order; and every record was handled
at least once, so its place is in ``handled.ndjson``. Each of these is checked as far as it can be.
Rows without a tail number have no order: for them the places are matched by content.
"""

import csv
import gzip
import hashlib
import json
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

PROBLEMS_SHOWN = 20
TEXT = {"carrier", "tailnum", "origin", "dest", "time_hour"}


def rows(file, count):
    """The first ``count`` rows, each as (tail number or None, record value, row)."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
        for cells in islice(csv.DictReader(text), count):
            row = {
                name: None if cell == "NA" else cell if name in TEXT else int(cell)
                for name, cell in cells.items()
            }
            yield row["tailnum"], json.dumps(row, separators=(",", ":")).encode(), row


def departed(row):
    """When the flight left, in milliseconds; None if it was cancelled."""
    if row["dep_time"] is None:
        return None
    hour = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    at = hour + timedelta(minutes=row["minute"] + row["dep_delay"])
    return int(at.timestamp() * 1000)


def link(chain, partition, offset, value):
    """H(h, partition, offset, row)."""
    place = partition.to_bytes(4, "big") + offset.to_bytes(8, "big")
    return hashlib.sha256(bytes.fromhex(chain) + place + value).hexdigest()


def track(legs):
    """What must be known of an aircraft after these legs: [(partition, offset, value, row)]."""
    chain, last, gaps, departures = "00" * 32, None, [], 0
    for partition, offset, value, row in legs:
        chain = link(chain, partition, offset, value)
        at = departed(row)
        if at is None:
            continue
        departures += 1
        if last is not None and at > last:
            gaps.append((at - last) // 60_000)
        last = at
    return {
        "chain": chain,
        "legs": len(legs),
        "departures": departures,
        "kafka_partition": legs[-1][0],
        "offset": legs[-1][1],
        "departed_ms": last,
        "longest_absence_min": max(gaps, default=None),
        "shortest_turn_min": min(gaps, default=None),
        "away_min": sum(gaps),
    }


def lines_of(file):
    """The lines of a kept file, in the order of their times."""
    with file.open(encoding="utf-8") as lines:
        return sorted(map(json.loads, lines), key=lambda line: line["time"])


def count_out_of_order(calls):
    """Messages that were handled for the first time after a later one of their key."""
    newest, seen, violations = {}, set(), 0
    for call in calls:
        key, seq = call["key"], call["seq"]
        if key is None or seq in seen:
            continue
        seen.add(seq)
        violations += seq < newest.get(key, 0)
        newest[key] = max(seq, newest.get(key, 0))
    return violations


def places_by_key(calls):
    """Where the records of each key are: {key: [(partition, offset), …]}, in order of offset."""
    places = defaultdict(set)
    for call in calls:
        places[call["key"]].add((call["kafka_partition"], call["offset"]))
    return {key: sorted(found) for key, found in places.items()}


def check_places(places, count):
    """What is wrong with the places: gaps, or one key in two partitions."""
    problems = []
    everywhere = sorted(place for found in places.values() for place in found)
    if len(everywhere) != count:
        problems.append(f"{len(everywhere)} records were handled, {count} were produced")
    expected = {p: 0 for p, _ in everywhere}
    for partition, offset in everywhere:
        if offset != expected[partition]:
            problems.append(f"partition {partition}: offset {expected[partition]} was not handled")
            break
        expected[partition] += 1
    scattered = [key for key, found in places.items() if key and len({p for p, _ in found}) > 1]
    if scattered:
        problems.append(f"{len(scattered)} keys are in more than one partition")
    return problems


def check_stream_order(calls):
    """What is wrong with the stream: it must have each partition's records in Kafka's order."""
    seqs = defaultdict(set)
    for call in calls:
        seqs[call["kafka_partition"], call["offset"]].add(call["seq"])
    problems = [
        f"{place} is in the stream twice" for place, found in seqs.items() if len(found) > 1
    ]
    newest = {}
    for (partition, offset), found in sorted(seqs.items()):
        if min(found) < newest.get(partition, 0):
            problems.append(f"partition {partition}: offset {offset} is stored in another order")
        newest[partition] = max(found)
    return problems


def check_effects(calls, effects):
    """What is wrong with the ends of the calls: each record's effect must be applied once.

    A worker that was killed after its effect was in the sink could not write that down. Then, and
    when an answer of the sink was lost, there is no line that says so, but somebody was refused as
    a repeat later.
    """
    ends = defaultdict(Counter)
    for effect in effects:
        ends[effect["kafka_partition"], effect["offset"]][effect["outcome"]] += 1
    begun = Counter((call["kafka_partition"], call["offset"]) for call in calls)
    problems = []
    for place in sorted(begun.keys() | ends.keys()):
        outcomes = ends[place]
        unknown = begun[place] - outcomes.total() + outcomes["failed"]
        if begun[place] < outcomes.total():
            problems.append(f"the record at {place} has more ends of calls than calls")
        elif outcomes["applied"] > 1:
            problems.append(f"the effect of {place} was applied {outcomes['applied']} times")
        elif not outcomes["applied"] and not (outcomes["repeat"] and unknown):
            problems.append(f"nothing says that the effect of {place} was applied")
    return problems


def check_tracks(flights, places, sink):
    """What is wrong with the sink's content."""
    legs = defaultdict(list)
    for key, value, row in flights:
        legs[key].append((value, row))
    problems = []
    without_key = legs.pop(None, [])
    for key in sorted(legs.keys() | sink["aircraft"].keys()):
        found = places.get(key, [])
        if len(found) != len(legs[key]):
            problems.append(f"{key}: {len(found)} of {len(legs[key])} legs were handled")
            continue
        expected = track([(*place, *leg) for place, leg in zip(found, legs[key], strict=True)])
        stored = sink["aircraft"].get(key)
        if stored is None:
            problems.append(f"{key} is not in the sink")
        elif different := [name for name in expected if stored.get(name) != expected[name]]:
            problems.append(f"{key}: {', '.join(different)} differ from what the file gives")
    stored = Counter((one["kafka_partition"], one["offset"]) for one in sink["without_key"])
    if stored != Counter(places.get(None, [])):
        problems.append("the rows without a tail number are not there once each")
    left = list(without_key)
    for one in sink["without_key"]:
        place = one["kafka_partition"], one["offset"]
        match = next((leg for leg in left if track([(*place, *leg)]) == one), None)
        if match is None:
            problems.append(f"without a tail number: {place} is no row of the file")
        else:
            left.remove(match)
    return problems


def check(kept, flights_file):
    """Check a kept run; returns what is wrong, and prints what was read."""
    count = json.loads((kept / "report.json").read_bytes())["settings"]["records"]
    sink = json.loads((kept / "sink.json").read_bytes())
    calls, effects = lines_of(kept / "handled.ndjson"), lines_of(kept / "effects.ndjson")
    flights = list(rows(flights_file, count))
    places = places_by_key(calls)

    problems = check_places(places, count) + check_stream_order(calls)
    problems += check_effects(calls, effects) + check_tracks(flights, places, sink)
    if violations := count_out_of_order(calls):
        problems.append(f"{violations} messages were handled out of order")
    applied = sum(one["legs"] for one in [*sink["aircraft"].values(), *sink["without_key"]])
    if applied != count:
        problems.append(f"{applied} effects were applied, {count} records were produced")
    print(
        f"{len(flights)} rows of {flights_file.name}, {len(calls)} handler calls, "
        f"{applied} effects, {len(sink['aircraft'])} aircraft"
    )
    return problems


def main():
    """Run the check that the arguments name; returns the exit code."""
    if len(sys.argv) != 3:
        is_help = sys.argv[1:] in (["-h"], ["--help"])
        print(
            "usage: check_demo.py KEPT_DIRECTORY FLIGHTS_CSV_GZ",
            file=None if is_help else sys.stderr,
        )
        return 0 if is_help else 2
    try:
        problems = check(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"check_demo.py: cannot be read: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for problem in problems[:PROBLEMS_SHOWN]:
        print(f"WRONG: {problem}")
    if len(problems) > PROBLEMS_SHOWN:
        print(f"… and {len(problems) - PROBLEMS_SHOWN} more")
    print(f"{len(problems)} problems" if problems else "everything is as the file says")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
