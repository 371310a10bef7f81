"""Several bridges of one route in a storm of faults: kills, cuts and stalls; then two judges.

    python -m tests.chaos.bridge_storm --mode chain --bridges 2 --records 1000000 \\
        --kills 100 --server-kills 20 --kafka-kills 20 --cuts 20 --stalls 20

All bridges run all the time, each a process of its own behind a TCP proxy of its own; one that is
killed is started again. Before each fault records are produced, so that every fault meets work.
Somebody else publishes to the same subjects,
but for ``--mode dense``. ``--server cluster`` is three nodes with three
replicas, and it is the stream's leader that is killed; ``--kafka cluster`` is three brokers, and
it is a partition's leader (`bridge_sides`). At the end one bridge finishes, and both
`verify` and `bridge_judge`, which shares no code with it, compare the streams with Kafka.

``--guard sequence`` and ``--guard none`` are control arms: with these the storm must find faults.
Prints one JSON line; exit code 1 if the judges do not say what they should.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import uvloop
from confluent_kafka import Producer

from millstream_bridge import Route, verify
from tests.chaos.bridge_judge import count_in_kafka, judge, key_of, value_of
from tests.chaos.bridge_process import FULL, NONE, SEQUENCE
from tests.chaos.bridge_sides import CLUSTER, PAUSE_S_MAX, Sides
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA
from tests.helpers.proxy import Proxy
from tests.helpers.servers import EMBEDDED, REAL

MODES: dict[str, dict[str, Any]] = {
    "chain": {},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
    "shared": {"shared": True},
}
FAULTS = {
    "bridge": "--kills",
    "server": "--server-kills",
    "kafka": "--kafka-kills",
    "cut": "--cuts",
    "stall": "--stalls",
}
TOPIC = "flights"
PARTITIONS = 8
UNREACHABLE = 3
STAND_BACK_S = 0.3
STALL_S_MAX = 3.0
NATIVE_EVERY_S = {"chain": 0.5, "shared": 0.02}
"""Somebody else's messages: strays that end a session, or, on a shared route, native publishing."""
FINISH_S_MAX = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What is to happen."""

    mode: str = "chain"
    guard: str = FULL
    server: str = REAL
    kafka: str = REAL_KAFKA
    bridges: int = 2
    records: int = 1_000_000
    faults: dict[str, int] = field(default_factory=dict)
    """How many of each: bridge, server, kafka, cut, stall."""
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    records: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    met_work: int = 0
    """Faults that came when not all records were stored."""
    starts: int = 0
    strange_ends: list[str] = field(default_factory=list)
    native: int = 0
    verify_equal: bool = False
    verify_difference: str = ""
    judge_clean: bool = False
    judge_seconds: float = 0.0
    judgement: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Both judges agree that nothing is lost, doubled or out of order."""
        return self.verify_equal and self.judge_clean and not self.strange_ends


class World:
    """The servers, the proxies and the bridges of one storm."""

    def __init__(self, storm: Storm, folder: Path, stack: AsyncExitStack) -> None:
        self.storm, self._stack = storm, stack
        self._random = random.Random(storm.seed)
        self.outcome = Outcome()
        self.sides = Sides(folder, TOPIC, PARTITIONS, self._random)
        self._told: dict[str, Any] = {
            "topic": TOPIC,
            "stream": "FLIGHTS",
            "subject": "flights.{partition}.{key}",
            **MODES[storm.mode],
        }
        self.streams = ["FLIGHTS"]
        if storm.mode == "dense":
            self.streams = [f"FLIGHTS-{partition}" for partition in range(PARTITIONS)]
        self._proxies: list[Proxy] = []
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._is_over = False

    @property
    def route(self) -> Route:
        """What the bridges move."""
        return Route(**self._told)

    async def open(self) -> None:
        """Start everything but the bridges; the stack ends it."""
        await self.sides.open(self.storm.server, self.storm.kafka, self._stack)
        self._told["replicas"] = self.sides.replicas
        urls = self.sides.urls
        for _ in range(self.storm.bridges):
            proxy = Proxy(self._random.sample(urls, len(urls)))
            self._proxies.append(await self._stack.enter_async_context(proxy))

    # bridges

    async def keep_bridge(self, number: int) -> None:
        """Run one bridge until the storm is over; start it again whenever it ends."""
        while not self._is_over:
            process = await self._start_bridge(self._proxies[number].url, stop_at_end=False)
            self._processes[number] = process
            await self._live(process)

    async def _live(self, process: asyncio.subprocess.Process) -> None:
        if self._is_over:  # while it was started
            _kill(process)
        _, said = await process.communicate()
        self._note_end(process, said)

    async def finish(self) -> None:
        """End the bridges; then one alone moves what is left."""
        self._is_over = True
        for process in self._processes.values():
            _kill(process)
        async with asyncio.timeout(FINISH_S_MAX):
            while True:
                process = await self._start_bridge(",".join(self.sides.urls), stop_at_end=True)
                _, said = await process.communicate()
                if process.returncode == 0:
                    return
                self._note_end(process, said)

    async def _start_bridge(self, url: str, *, stop_at_end: bool) -> asyncio.subprocess.Process:
        self.outcome.starts += 1
        told = {
            "kafka": self.sides.bootstrap,
            "nats": url,
            "route": self._told,
            "guard": self.storm.guard,
            "stand_back_s": STAND_BACK_S,
            "stop_at_end": stop_at_end,
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.bridge_process", json.dumps(told)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    def _note_end(self, process: asyncio.subprocess.Process, said: bytes) -> None:
        if process.returncode not in (0, UNREACHABLE, -signal.SIGKILL):
            text = said.decode(errors="replace").strip()[-300:]
            self.outcome.strange_ends.append(f"exit {process.returncode}: {text}")

    # faults

    async def fault(self, kind: str) -> None:
        """One fault, and what it takes to live on."""
        self.outcome.faults[kind] = self.outcome.faults.get(kind, 0) + 1
        if kind == "bridge":
            _kill(self._random.choice(list(self._processes.values())))
        elif kind == "server":
            await self.sides.kill_server(self._random.choice(self.streams))
        elif kind == "kafka":
            await self.sides.kill_kafka()
        else:
            await self._disturb(kind, self._random.choice(self._proxies))

    async def _disturb(self, kind: str, proxy: Proxy) -> None:
        if kind == "cut":
            proxy.cut()
            await asyncio.sleep(self._random.uniform(0, PAUSE_S_MAX))
        else:
            up, down = self._random.choice([(True, True), (True, False), (False, True)])
            proxy.stall(up=up, down=down)
            await asyncio.sleep(self._random.uniform(0, STALL_S_MAX))
        proxy.release()

    async def stored(self) -> int:
        """How many messages the streams hold; 0 while they cannot be asked."""
        found = 0
        async with self.sides.client() as client:
            for stream in self.streams:
                with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
                    found += (await client.jetstream(timeout=1).stream_info(stream)).state.messages
        return found

    async def publish_natively(self) -> None:
        """Somebody else's messages among the bridge's, until the storm is over."""
        async with self.sides.client() as client:
            while not self._is_over:
                with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
                    partition = self._random.randrange(PARTITIONS)
                    await client.jetstream(timeout=1).publish(f"flights.{partition}.n", b"native")
                    self.outcome.native += 1
                await asyncio.sleep(NATIVE_EVERY_S[self.storm.mode])


def _kill(process: asyncio.subprocess.Process) -> None:
    """Its own `kill` takes the exit code of one that is dead already: asyncio then reports 255."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


class Records:
    """The topic's records: numbered per partition, each written once, whatever happens to Kafka."""

    def __init__(self, bootstrap: str, kind: str) -> None:
        options: dict[str, Any] = {"bootstrap.servers": bootstrap, "linger.ms": 5}
        if kind != MOCK:
            options["enable.idempotence"] = True
        self._producer = Producer(options)
        self.produced = 0
        self._failed: list[object] = []

    def produce(self, count: int) -> None:
        """So many more; returns when they are acknowledged."""
        for n in range(self.produced, self.produced + count):
            partition, number = n % PARTITIONS, n // PARTITIONS
            record = (TOPIC, value_of(partition, number), key_of(number), partition)
            while True:
                try:
                    self._producer.produce(*record, on_delivery=self._on_delivery)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        left = self._producer.flush(120)
        assert not left, f"{left} records were not acked in time"
        assert not self._failed, f"records failed, the first with {self._failed[0]}"
        self.produced += count

    def _on_delivery(self, error: object, _: object) -> None:
        if error is not None:
            self._failed.append(error)


async def run(storm: Storm, folder: Path) -> Outcome:
    """The storm, then both judges."""
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        world = World(storm, folder, stack)
        await world.open()
        outcome = world.outcome
        records = Records(world.sides.bootstrap, storm.kafka)
        await _weather(world, records)
        outcome.records = records.produced
        outcome.seconds = round(time.monotonic() - started, 1)
        await _judge(world)
        return outcome


async def _weather(world: World, records: Records) -> None:
    """All faults in random order, each after some more records; then the end."""
    storm, outcome = world.storm, world.outcome
    kinds = [kind for kind, count in storm.faults.items() for _ in range(count)]
    random.Random(storm.seed).shuffle(kinds)
    pauses = random.Random(storm.seed + 1)
    share = storm.records // (len(kinds) + 1)
    await asyncio.to_thread(records.produce, share)
    async with asyncio.TaskGroup() as tasks:
        for number in range(storm.bridges):
            tasks.create_task(world.keep_bridge(number), name=f"bridge {number}")
        if storm.mode in NATIVE_EVERY_S:
            await _until(world.stored)
            tasks.create_task(world.publish_natively(), name="native")
        for kind in kinds:
            producing = asyncio.create_task(asyncio.to_thread(records.produce, share))
            await asyncio.sleep(pauses.uniform(0, PAUSE_S_MAX))
            outcome.met_work += await world.stored() < records.produced + share
            await world.fault(kind)
            await producing
        await asyncio.to_thread(records.produce, storm.records - records.produced)
        await world.finish()


async def _until(call: Callable[[], Awaitable[int]]) -> None:
    async with asyncio.timeout(FINISH_S_MAX):
        while not await call():  # noqa: ASYNC110 - bounded polling
            await asyncio.sleep(PAUSE_S_MAX)


async def _judge(world: World) -> None:
    started, outcome = time.monotonic(), world.outcome
    proof = await verify(
        kafka=world.sides.bootstrap, nats=",".join(world.sides.urls), route=world.route
    )
    outcome.verify_equal = proof.equal and proof.records == outcome.records
    outcome.verify_difference = str(proof.difference or "")
    in_kafka = await asyncio.to_thread(count_in_kafka, world.sides.bootstrap, TOPIC, PARTITIONS)
    judgement = await judge(world.sides.urls, world.streams, "flights", in_kafka)
    outcome.judge_clean = judgement.is_clean and judgement.in_kafka == outcome.records
    outcome.judgement = asdict(judgement)
    outcome.judge_seconds = round(time.monotonic() - started, 1)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=list(MODES), default="chain")
    parser.add_argument("--guard", choices=[FULL, SEQUENCE, NONE], default=FULL)
    parser.add_argument("--server", choices=[EMBEDDED, REAL, CLUSTER], default=REAL)
    parser.add_argument("--kafka", choices=[MOCK, REAL_KAFKA, CLUSTER], default=REAL_KAFKA)
    parser.add_argument("--bridges", type=int, default=2)
    parser.add_argument("--records", type=int, default=1_000_000)
    for kind, option in FAULTS.items():
        parser.add_argument(option, type=int, default=0, dest=f"num_{kind}")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    storm = Storm(
        mode=args.mode,
        guard=args.guard,
        server=args.server,
        kafka=args.kafka,
        bridges=args.bridges,
        records=args.records,
        faults={kind: getattr(args, f"num_{kind}") for kind in FAULTS},
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory(prefix="millstream-chaos-") as folder:
        outcome = uvloop.run(run(storm, Path(folder)))
    print(
        json.dumps({"schema": "millstream.chaos.bridge-storm/1"} | asdict(storm) | asdict(outcome))
    )
    if storm.guard == FULL:
        return 0 if outcome.is_good else 1
    return 0 if not (outcome.verify_equal or outcome.judge_clean) else 1


if __name__ == "__main__":
    sys.exit(main())
