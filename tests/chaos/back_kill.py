"""SIGKILL of the way back, the NATS server and Kafka at random moments; every record is counted.

    python -m tests.chaos.back_kill --kills 50 --server-kills 10 --kafka-kills 5 [--server real]

``--server cluster`` and ``--kafka cluster`` are three nodes each (`bridge_sides`). Never the mock:
it shows what was never committed. A way back (a process of its own) lives
for a random while, always with a backlog before it, and is killed. In the end each native message
must be in the topic once, in the stream's order per partition, for readers of committed records.
The judge reads with confluent-kafka and shares no code with the bridge: a message's payload says
its number. What only a reader of uncommitted records sees is counted: that is what the transactions
hid. Prints one JSON line; exit code 1 if anything is lost, twice, or out of order.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.chaos.bridge_judge import records_in_kafka
from tests.chaos.bridge_sides import CLUSTER, Sides
from tests.helpers.kafka import REAL as REAL_KAFKA
from tests.helpers.servers import EMBEDDED, REAL

PARTITIONS = 6
BACKLOG = 20_000
LIFE_S_MAX = 0.4
"""About as long as it takes to bring the backlog back."""
AT_WORK = 0.5
"""The share of lives that end as soon as something is written, however fast the machine is."""
SERVER_AWAY_S_MAX, KAFKA_AWAY_S_MAX = 1.0, 10.0
READY_S_MAX = 60.0
ASKS_MAX = 10
TRIES_MAX = 4
"""So many lives more, each at work and with twice the backlog, where no kill met any work."""
TOPIC, STREAM = "flights", "FLIGHTS"
_AT_ONCE = 500


@dataclass(slots=True)
class Outcome:
    """What a run of kills came to."""

    kills: int = 0
    server_kills: int = 0
    kafka_kills: int = 0
    kills_in_flight: int = 0
    """Kills of a way back that had written something and had more to write."""
    published: int = 0
    lost: int = 0
    repeated: int = 0
    disorder: int = 0
    uncommitted: int = 0
    """Records that only a reader of uncommitted ones sees."""

    @property
    def is_exact(self) -> bool:
        return self.published > 0 and not (self.lost or self.repeated or self.disorder)


class Chaos:
    """One topic, one stream, and ways back that do not live long. ``seed`` chooses the moments."""

    def __init__(
        self, folder: Path, seed: int, *, server: str = REAL, kafka: str = REAL_KAFKA
    ) -> None:
        self._folder, self._kinds = folder, (server, kafka)
        self._random = random.Random(seed)
        self._sides = Sides(folder, TOPIC, PARTITIONS, self._random)
        self.outcome = Outcome()
        self._lives = 0

    async def run(self, kills: int, server_kills: int, kafka_kills: int = 0) -> Outcome:
        """So many kills of each, then the end and the count."""
        async with AsyncExitStack() as stack:
            await self._sides.open(*self._kinds, stack)
            await self._run(kills, server_kills, kafka_kills)
        return self.outcome

    async def _run(self, kills: int, server_kills: int, kafka_kills: int) -> None:
        replicas = self._sides.replicas
        async with self._sides.client() as client:
            await client.jetstream().add_stream(
                name=STREAM, subjects=["flights.>"], num_replicas=replicas
            )
        victims = ["back"] * kills + ["server"] * server_kills + ["kafka"] * kafka_kills
        self._random.shuffle(victims)
        for victim in victims:
            await self._publish(BACKLOG)
            await self._live(victim)
        for tries in range(1, 1 + TRIES_MAX):
            if self.outcome.kills_in_flight:
                break
            await self._publish(BACKLOG << tries)
            await self._live("back", is_at_work=True)
        await self._finish()
        bootstrap = self._sides.bootstrap
        seen = await asyncio.to_thread(read_all, bootstrap, "read_committed")
        self._judge(seen)
        everything = await asyncio.to_thread(read_all, bootstrap, "read_uncommitted")
        self.outcome.uncommitted = sum(map(len, everything.values())) - sum(map(len, seen.values()))

    def _judge(self, seen: dict[int, list[int]]) -> None:
        numbers = [number for of_partition in seen.values() for number in of_partition]
        self.outcome.lost = self.outcome.published - len(set(numbers))
        self.outcome.repeated = len(numbers) - len(set(numbers))
        for of_partition in seen.values():
            pairs = itertools.pairwise(of_partition)
            self.outcome.disorder += sum([after <= before for before, after in pairs])

    async def _live(self, victim: str, *, is_at_work: bool = False) -> None:
        before = await asyncio.to_thread(self._ends)
        process, ready = await self._start()
        try:
            await _until_there(ready)
            if is_at_work or self._random.random() < AT_WORK:
                await self._until_written(before)
            else:
                await asyncio.sleep(self._random.uniform(0, LIFE_S_MAX))
            if victim == "server":
                self.outcome.server_kills += 1
                await self._sides.kill_server(STREAM)
                await asyncio.sleep(self._random.uniform(0, SERVER_AWAY_S_MAX))
            elif victim == "kafka":
                self.outcome.kafka_kills += 1
                await self._sides.kill_kafka()
                await asyncio.sleep(self._random.uniform(0, KAFKA_AWAY_S_MAX))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self.outcome.kills += 1
        after = await asyncio.to_thread(self._ends)
        self.outcome.kills_in_flight += before < after < self.outcome.published

    async def _until_written(self, before: int) -> None:
        async with asyncio.timeout(READY_S_MAX):
            while await asyncio.to_thread(self._ends) <= before:
                pass

    async def _finish(self) -> None:
        process, _ = await self._start("--stop-at-end")
        assert await process.wait() == 0, "the last way back did not end well"

    async def _start(self, *more: str) -> tuple[asyncio.subprocess.Process, Path]:
        self._lives += 1
        ready = self._folder / f"ready{self._lives}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream_bridge", "back", "--kafka", self._sides.bootstrap),
            *("--nats", ",".join(self._sides.urls), "--topic", TOPIC, "--stream", STREAM),
            *("--subject", "flights.{partition}.{key}", "--ready-file", str(ready)),
            *("--end-with-stdin", *more),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        return process, ready

    async def _publish(self, count: int) -> None:
        """Native messages whose payload is their number, which rises with the sequence."""
        async with self._sides.client() as client:
            jetstream = client.jetstream(publish_async_max_pending=2 * _AT_ONCE)
            first = self.outcome.published
            for start in range(first, first + count, _AT_ONCE):
                acks = [
                    await jetstream.publish_async(f"flights.{n % PARTITIONS}.N{n % 97}", b"%d" % n)
                    for n in range(start, start + _AT_ONCE)
                ]
                await asyncio.gather(*acks)
            self.outcome.published += count

    def _ends(self) -> int:
        """The sum of the partitions' ends: offsets, those of transaction marks included."""
        consumer = Consumer({"bootstrap.servers": self._sides.bootstrap, "group.id": "chaos"})
        try:
            places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
            for _ in range(ASKS_MAX):
                with contextlib.suppress(KafkaException):  # a broker may just have gone
                    return sum([consumer.get_watermark_offsets(place, 20)[1] for place in places])
            raise TimeoutError("Kafka does not tell the partitions' ends")
        finally:
            consumer.close()


def read_all(bootstrap: str, isolation: str) -> dict[int, list[int]]:
    """Per partition, the numbers in the topic's records, in order."""
    found: dict[int, list[int]] = {number: [] for number in range(PARTITIONS)}
    records = records_in_kafka(bootstrap, TOPIC, PARTITIONS, isolation=isolation)
    for partition, message in records:
        found[partition].append(int(message.value() or b""))
    return found


async def _until_there(path: Path) -> None:
    async with asyncio.timeout(READY_S_MAX):
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - bounded polling
            await asyncio.sleep(0.005)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--server-kills", type=int, default=10)
    parser.add_argument("--kafka-kills", type=int, default=0)
    parser.add_argument("--server", choices=[EMBEDDED, REAL, CLUSTER], default=REAL)
    parser.add_argument("--kafka", choices=[REAL_KAFKA, CLUSTER], default=REAL_KAFKA)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millstream-chaos-") as folder:
        chaos = Chaos(Path(folder), args.seed, server=args.server, kafka=args.kafka)
        outcome = asyncio.run(chaos.run(args.kills, args.server_kills, args.kafka_kills))
    kinds = {"server": args.server, "kafka": args.kafka, "seed": args.seed}
    head = {"schema": "millstream.chaos.back/1", **kinds}
    print(json.dumps(head | asdict(outcome)))
    return 0 if outcome.is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
