"""Both directions of one route at once, for long, with producers on both sides; either is killed.

    python -m tests.chaos.both_ways --turns 100 [--kills 100 --server-kills 20 --kafka-kills 5]
        [--server embedded|real|cluster] [--kafka real|cluster]

``run`` and ``back`` are processes of their own and start again after each kill. In every turn
records are written to Kafka and messages are published to NATS; then somebody is killed, while
there is a list of victims. In the end each side must have all of both, once, in the order of who
wrote them: whatever went in a circle would be there twice. The judge reads with confluent-kafka and
nats-py and shares no code with the bridge: a payload says who wrote it and its number. Prints one
JSON line; exit code 1 if anything is lost, twice, or out of order on either side.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.chaos.bridge_judge import messages_of, records_in_kafka
from tests.chaos.bridge_sides import CLUSTER, Sides
from tests.helpers.kafka import REAL as REAL_KAFKA
from tests.helpers.servers import EMBEDDED, REAL

PARTITIONS = 6
TOPIC, STREAM, HEAD = "flights", "FLIGHTS", "flights"
A_TURN = 3_000
"""So many of each kind a turn."""
LIFE_S_MAX = 0.5
READY_S_MAX = 60.0
DIRECTIONS = ("run", "back")
_AT_ONCE = 500


@dataclass(slots=True)
class Outcome:
    """What a run came to; faults per side."""

    kills: dict[str, int] = field(default_factory=dict)
    in_kafka: int = 0
    in_nats: int = 0
    written: int = 0
    lost: int = 0
    repeated: int = 0
    disorder: int = 0

    @property
    def is_exact(self) -> bool:
        return self.written > 0 and not (self.lost or self.repeated or self.disorder)


class BothWays:
    """One topic and one stream. ``seed`` chooses who is killed, and when."""

    def __init__(
        self, folder: Path, seed: int, *, server: str = REAL, kafka: str = REAL_KAFKA
    ) -> None:
        self._folder, self._kinds = folder, (server, kafka)
        self._random = random.Random(seed)
        self._sides = Sides(folder, TOPIC, PARTITIONS, self._random)
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._starts = 0
        self._numbers = 0
        self.outcome = Outcome()

    async def run(self, turns: int, victims: Iterable[str] = ()) -> Outcome:
        """So many turns; ``victims`` are directions, "server" and "kafka", in any order."""
        left = list(victims)
        self._random.shuffle(left)
        async with AsyncExitStack() as stack:
            await self._sides.open(*self._kinds, stack)
            await self._end(await self._start("run", "--stop-at-end"))  # makes the stream
            try:
                for turn in range(max(turns, len(left))):
                    for direction in DIRECTIONS:
                        await self._keep(direction)
                    await asyncio.gather(asyncio.to_thread(self._produce), self._publish())
                    self._numbers += A_TURN
                    if turn < len(left):
                        await asyncio.sleep(self._random.uniform(0, LIFE_S_MAX))
                        await self._kill(left[turn])
            finally:
                for process in self._processes.values():
                    await _kill(process)
            for direction in (*DIRECTIONS, "run"):
                await self._end(await self._start(direction, "--stop-at-end"))
            await self._judge()
        return self.outcome

    async def _keep(self, direction: str) -> None:
        process = self._processes.get(direction)
        if process is None or process.returncode is not None:
            self._processes[direction] = await self._start(direction)

    async def _kill(self, victim: str) -> None:
        self.outcome.kills[victim] = self.outcome.kills.get(victim, 0) + 1
        if victim == "server":
            await self._sides.kill_server(STREAM)
        elif victim == "kafka":
            await self._sides.kill_kafka()
        else:
            await _kill(self._processes[victim])

    async def _start(self, direction: str, *more: str) -> asyncio.subprocess.Process:
        """Start it, and wait until it is at work."""
        self._starts += 1
        ready = self._folder / f"ready{self._starts}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream_bridge", direction),
            *("--project", str(self._project()), "--ready-file", str(ready)),
            *("--end-with-stdin", *more),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(READY_S_MAX):
            while not ready.exists() and process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return process

    def _project(self) -> Path:
        file = self._folder / "project.toml"
        file.write_text(
            f'[kafka]\nbootstrap = "{self._sides.bootstrap}"\n'
            f'[nats]\nurl = "{",".join(self._sides.urls)}"\n'
            f'[[route]]\ntopic = "{TOPIC}"\nstream = "{STREAM}"\nshared = true\n'
            f'subject = "{HEAD}.{{partition}}.{{key}}"\nreplicas = {self._sides.replicas}\n'
        )
        return file

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert await process.wait() == 0, "a run to the end did not end well"

    def _produce(self) -> None:
        failed: list[object] = []
        producer = Producer(
            {"bootstrap.servers": self._sides.bootstrap, "enable.idempotence": True}
        )
        for n in range(self._numbers, self._numbers + A_TURN):
            producer.produce(
                TOPIC,
                b"k %d" % n,
                b"N%d" % (n % 97),
                partition=n % PARTITIONS,
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
        assert producer.flush(120) == 0
        assert not failed, failed[0]

    async def _publish(self) -> None:
        async with self._sides.client() as client:
            jetstream = client.jetstream(publish_async_max_pending=2 * _AT_ONCE)
            for start in range(self._numbers, self._numbers + A_TURN, _AT_ONCE):
                acks = [
                    await jetstream.publish_async(f"{HEAD}.{n % PARTITIONS}.N{n % 97}", b"n %d" % n)
                    for n in range(start, start + _AT_ONCE)
                ]
                await asyncio.gather(*acks)

    async def _judge(self) -> None:
        self.outcome.written = 2 * self._numbers
        kafka = await asyncio.to_thread(self._in_kafka)
        stored: list[tuple[int, bytes]] = []
        async with self._sides.client() as client:
            async for messages in messages_of(client, STREAM):
                for message in messages:
                    partition = message.subject.split(".")[1]
                    if partition.isdecimal():  # the others are checkpoints
                        stored.append((int(partition), message.data))
        self.outcome.in_kafka, self.outcome.in_nats = len(kafka), len(stored)
        for side in (kafka, stored):
            self._judge_side(side)

    def _in_kafka(self) -> list[tuple[int, bytes]]:
        records = records_in_kafka(self._sides.bootstrap, TOPIC, PARTITIONS)
        return [(partition, message.value() or b"") for partition, message in records]

    def _judge_side(self, found: list[tuple[int, bytes]]) -> None:
        seen = Counter(found)
        expected = {
            (n % PARTITIONS, b"%b %d" % (who, n))
            for n in range(self._numbers)
            for who in (b"k", b"n")
        }
        self.outcome.lost += len(expected - seen.keys())
        self.outcome.repeated += seen.total() - len(seen) + len(seen.keys() - expected)
        highest: dict[tuple[int, bytes], int] = {}
        for partition, payload in found:
            who, number = payload.split()
            newest = highest.get((partition, who), -1)
            self.outcome.disorder += int(number) < newest
            highest[partition, who] = max(newest, int(number))


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100)
    for kind in ("", "server-", "kafka-"):
        parser.add_argument(f"--{kind}kills", type=int, default=0)
    parser.add_argument("--server", choices=[EMBEDDED, REAL, CLUSTER], default=REAL)
    parser.add_argument("--kafka", choices=[REAL_KAFKA, CLUSTER], default=REAL_KAFKA)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    victims = [DIRECTIONS[n % 2] for n in range(args.kills)]
    victims += ["server"] * args.server_kills + ["kafka"] * args.kafka_kills
    with tempfile.TemporaryDirectory(prefix="millstream-chaos-") as folder:
        both = BothWays(Path(folder), args.seed, server=args.server, kafka=args.kafka)
        outcome = asyncio.run(both.run(args.turns, victims))
    head: dict[str, Any] = {"server": args.server, "kafka": args.kafka, "seed": args.seed}
    print(json.dumps({"schema": "millstream.chaos.both-ways/1"} | head | asdict(outcome)))
    return 0 if outcome.is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
