"""The whole year of flights, followed per aircraft by a group that is never left alone.

``python -m tests.chaos.flights``: 336,776 flights (``make flights`` fetches them; ``--small`` takes
the demo's 10,452) are published in the file's order, one message each, keyed by aircraft. Workers
join, leave, are killed and are stopped at random; in the middle the group is resized. What the sink
holds in the end must be what a loop over the file computes: each aircraft's chain and its times
away from New York, which are wrong as soon as one flight is lost, repeated or out of order.

    python -m tests.chaos.flights --server real --report report.json
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from millstream.demo.flights import Flight, read_flights
from millstream.demo.sink import read_sink
from millstream.demo.tracks import Track, follow
from millstream_coordinator import Publisher
from millstream_coordinator.operation import admin, target as operated
from tests.chaos.flights_data import FILE, fetched
from tests.chaos.group_cluster import STREAM, Cluster
from tests.chaos.target import KINDS, Target, opened
from tests.helpers.servers import REAL

GROUP = "year"
SINK = "tracks"
RULE = "flights.{partition}.{partition:16}.{key}"
PARTITIONS = 8
RESIZED = 16
WORKERS_MIN = 2
WORKERS_MAX = 4
PATIENCE_S = 120.0
BACKLOG_MAX = 20_000
"""The producer waits while the group is so far behind."""


@dataclass(slots=True)
class Year:
    """What a run did and found."""

    flights: int = 0
    aircraft: int = 0
    seconds: float = 0.0
    joined: int = 0
    left: int = 0
    killed: int = 0
    stopped: int = 0
    resized_to: int | None = None
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    """Aircraft whose track is not the file's."""

    @property
    def changes(self) -> int:
        """How often a worker came, went or was stopped."""
        return self.joined + self.left + self.killed + self.stopped

    @property
    def is_right(self) -> bool:
        return not self.lost and not self.wrong


def computed(flights: Sequence[Flight]) -> tuple[dict[str, Track], int]:
    """What the file says: each aircraft's track, and how many flights have no tail number."""
    tracks: dict[str, Track] = {}
    without = 0
    for number, flight in enumerate(flights):
        if flight.key is None:
            without += 1
            continue
        key = flight.key.decode()
        tracks[key] = follow(tracks.get(key, Track()), 0, number, flight.value)
    return tracks, without


async def produce(client: Client, flights: Sequence[Flight], group: Cluster, year: Year) -> None:
    """Publish all flights in order; each says its number in the file.

    The last quarter waits for a first change of the workers, however fast the machine is.
    """
    async with Publisher(client, RULE, partitions=PARTITIONS, stream=STREAM) as publisher:
        for number, flight in enumerate(flights):
            if number == len(flights) * 3 // 4:
                await group.until(lambda: year.changes > 0, PATIENCE_S, "a change")
            await publisher.send(flight.key, flight.value, headers={"Flight-Number": str(number)})
            if number % 500 == 0:
                least = number - BACKLOG_MAX
                await group.until(lambda: _handled(group) >= least, PATIENCE_S, "progress")  # noqa: B023


def _handled(group: Cluster) -> int:
    """How many effects the workers told of; those of a killed one's last moments are missing."""
    made = 0
    for worker in group.workers:
        told = (line for line in reversed(worker.lines) if line.kind == "made")
        made += next((int(line.facts[0]) for line in told), 0)
    return made


class Churn:
    """Workers that come and go, until it is cancelled."""

    def __init__(self, group: Cluster, chance: random.Random, year: Year, pause_s: float) -> None:
        self._group = group
        self._chance = chance
        self._year = year
        self._pause_s = pause_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._pause_s)
            await self._change()

    async def _change(self) -> None:
        running = self._group.running()
        joined = [one for one in running if any(line.kind == "Joined" for line in one.lines)]
        if len(joined) <= WORKERS_MIN:
            if len(running) < WORKERS_MAX:
                await self._group.start()
                self._year.joined += 1
            return
        one = self._chance.choice(joined)
        match self._chance.randrange(4):
            case 0 if len(running) < WORKERS_MAX:
                await self._group.start()
                self._year.joined += 1
            case 1:
                await self._group.dismiss(one, PATIENCE_S)
                self._year.left += 1
            case 2:
                await self._group.kill(one)
                self._year.killed += 1
            case _:
                await self._group.hang(one)
                try:
                    await asyncio.sleep(self._chance.uniform(0.3, 2.5))
                finally:
                    self._group.wake(one)
                self._year.stopped += 1


async def run(
    target: Target,
    flights: Sequence[Flight],
    seed: int,
    *,
    resize: bool = True,
    pause_s: float = 2.0,
) -> Year:
    """Publish, follow, disturb, resize, compare."""
    year = Year(flights=len(flights))
    began = time.monotonic()
    group = Cluster(
        target.url,
        GROUP,
        PARTITIONS,
        *("--sink", SINK),
        rule=RULE,
        module="tests.chaos.flights_worker",
    )
    tasks: list[asyncio.Task[None]] = []
    try:
        client = await group.connect()
        await target.until_ready(client)
        await group.open(replicas=target.replicas)
        await client.jetstream(timeout=10).create_key_value(
            KeyValueConfig(bucket=SINK, replicas=target.replicas)
        )
        for _ in range(WORKERS_MIN + 1):
            await group.start()
        tasks.append(asyncio.create_task(produce(client, flights, group, year), name="produce"))
        churn = Churn(group, random.Random(seed), year, pause_s)
        tasks.append(asyncio.create_task(churn.run(), name="churn"))
        if resize:
            while _handled(group) < len(flights) // 2:
                _check(tasks)
                await asyncio.sleep(0.1)
            await admin.resize(operated.Target(client, GROUP), RESIZED)
            year.resized_to = RESIZED
        await tasks[0]
        while await _behind(client) > 0:
            _check(tasks)
            await asyncio.sleep(0.3)
        year.seconds = time.monotonic() - began
        tasks[1].cancel()
        await asyncio.wait(tasks)
        if resize:
            await group.until_view(
                lambda view: view.config.active == RESIZED, PATIENCE_S, f"{RESIZED} partitions"
            )
        await _compare(client, flights, year)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await group.close()
    return year


def _check(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _behind(client: Client) -> int:
    """Messages the group's consumers have not acknowledged; all of them if there are none."""
    jetstream = client.jetstream(timeout=5)
    try:
        state = (await jetstream.stream_info(STREAM)).state
        infos = await jetstream.consumers_info(STREAM)
    except (nats.errors.Error, nats.js.errors.Error):
        return 1
    left = [(one.num_pending or 0) + (one.num_ack_pending or 0) for one in infos]
    return sum(left) if len(left) in (PARTITIONS, RESIZED) else state.messages


async def _compare(client: Client, flights: Sequence[Flight], year: Year) -> None:
    """Hold the sink's tracks against the file's; the last effects may still be on their way."""
    tracks, without = computed(flights)
    year.aircraft = len(tracks)
    deadline = time.monotonic() + PATIENCE_S
    content = await read_sink(client, SINK)
    while content.effects < len(flights) and time.monotonic() < deadline:
        await asyncio.sleep(1)
        content = await read_sink(client, SINK)
    year.lost = len(flights) - content.effects
    year.wrong = sorted(
        key
        for key in tracks.keys() | content.aircraft.keys()
        if tracks.get(key) != content.aircraft.get(key)
    )
    if len(content.without_key) != without:
        year.wrong.append(f"{len(content.without_key)} of {without} without a tail number")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=KINDS, default=REAL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the demo's flights, not the year's")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many flights")
    parser.add_argument("--no-resize", action="store_true")
    parser.add_argument("--report", type=Path, default=None)
    given = parser.parse_args()
    if not given.small and not fetched():
        print(f"{FILE} is not there; make flights fetches it", file=sys.stderr)
        return 2
    flights = read_flights(limit=given.limit) if given.small else read_flights(FILE, given.limit)
    with tempfile.TemporaryDirectory() as store, opened(given.server, Path(store)) as target:
        year = asyncio.run(run(target, flights, given.seed, resize=not given.no_resize))
    print(
        f"{given.server}: {year.flights} flights of {year.aircraft} aircraft in"
        f" {year.seconds:.0f} s; workers: {year.joined} joined, {year.left} left,"
        f" {year.killed} killed, {year.stopped} stopped; resized to {year.resized_to};"
        f" {year.lost} lost, {len(year.wrong)} aircraft differ from the file"
    )
    for key in itertools.islice(year.wrong, 10):
        print(f"  {key}")
    if given.report is not None:
        document = {"schema": "millstream.chaos-flights/1", **asdict(year)}
        given.report.write_text(json.dumps(document, indent=1))
    return 0 if year.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
