"""A migration rehearsed from end to end, there and back, on the flights: nothing missed or twice.

    python -m tests.chaos.rehearsal [--kafka real] [--server real] [--limit 10000] [--year]

A producer and a Kafka consumer group are at work on the topic ``flights``. Then, all of it by the
commands a team would type: ``assess``, ``plan`` (the file is edited as a person would), ``run``,
``verify``, ``cutover`` of the group while the producer stays on Kafka; the producer moves behind
the ``barrier`` and publishes straight to NATS; ``rollback`` takes the group home, and the producer
goes back to Kafka. The bridge runs all the while. ``--year`` takes all 336,776 flights of the year
(`make flights` fetches them) instead of the 10,452 that are packaged.

Both the Kafka group's member and the coordinator group's worker write into one **book**: each
aircraft's track (`millstream.demo.tracks`), which is wrong as soon as one leg is lost, repeated or
out of order. In the end it must be what a loop over the file computes, each leg must have been
handled once, and ``verify`` must find both sides equal. Prints one JSON line; exit code 1 if not.

On librdkafka's mock cluster the state of a group cannot be asked for, so it is stopped first; and
its reader does not join the group, because the mock takes no offsets for one that ever had members.
What else the mock lacks (fencing, hiding what was aborted) no step of this rehearsal needs.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nats
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from millstream.demo.flights import PACKAGED, Flight, read_flights
from millstream.demo.tracks import Track, follow
from millstream_coordinator import Group, Message, Publisher
from tests.chaos.flights import computed
from tests.chaos.flights_data import FILE, fetched
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, Kafka, mock_kafka, real_kafka
from tests.helpers.servers import EMBEDDED, REAL, Server

TOPIC, STREAM, GROUP = "flights", "FLIGHTS", "follow"
SUBJECT = "flights.{partition}.{key}"
PARTITIONS = 6
PATIENCE_S = 180.0
BACKLOG_MAX = 1_000
"""The producer waits while the group is so far behind."""
SLOW_MAX = 2_000
"""So many flights the producer takes its time with, while the group is cut over."""
_LOOK_S = 0.02
_CHUNK, _FEW = 50, 10


@dataclass(slots=True)
class Rehearsal:
    """What came of it. Times in seconds: from the old reader's stop to the new one's first leg."""

    kafka: str
    server: str
    flights: int
    handled: int = 0
    missed: int = 0
    repeated: int = 0
    wrong_aircraft: int = 0
    by_kafka: int = 0
    by_nats: int = 0
    cutover_pause_s: float = 0.0
    cutover_standstill_s: float = 0.0
    rollback_pause_s: float = 0.0
    rollback_standstill_s: float = 0.0
    brought_back: int = 0
    verified: list[bool] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return (
            self.handled == self.flights
            and not (self.missed or self.repeated or self.wrong_aircraft)
            and self.verified == [True, True]
        )


class Book:
    """Where both kinds of reader write what they handled; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tracks: dict[str, Track] = {}
        self.numbers: Counter[int] = Counter()
        self.handled = {"kafka": 0, "nats": 0}
        self._who = ""
        self._first_at: dict[str, float] = {}

    def note(self, who: str, key: bytes | None, number: int, value: bytes) -> None:
        """One leg, by its number in the file."""
        with self._lock:
            self.numbers[number] += 1
            self.handled[who] += 1
            if who != self._who:
                self._who = who
                self._first_at[who] = time.monotonic()
            if key is not None:
                name = key.decode()
                self.tracks[name] = follow(self.tracks.get(name, Track()), 0, number, value)

    async def first_at(self, who: str, work: "asyncio.Task[None] | None" = None) -> float:
        """When the newest run of legs handled by one kind of reader began; waits for it."""

        def is_there() -> bool:
            if work is not None and work.done():
                work.result()
            return self._who == who

        await _until(is_there)
        return self._first_at[who]

    @property
    def count(self) -> int:
        return self.numbers.total()


class KafkaMember:
    """The old service: a member of the Kafka group, in a thread; commits what it has handled."""

    def __init__(self, kafka: Kafka, book: Book) -> None:
        self._kafka, self._book = kafka, book
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kafka member")
        self._thread.start()

    async def stop(self) -> None:
        """Finish, commit, leave the group."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._kafka.bootstrap,
                "group.id": GROUP,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
            }
        )
        try:
            if self._kafka.kind == MOCK:
                consumer.assign([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])
            else:
                consumer.subscribe([TOPIC])
            while not self._stopping.is_set():
                messages = consumer.consume(_CHUNK, 0.1)
                for message in messages:
                    assert message.error() is None, message.error()
                    headers: dict[str, Any] = dict(message.headers() or ())
                    number = int(headers["Flight-Number"])
                    self._book.note("kafka", message.key(), number, message.value() or b"")
                if messages:
                    consumer.commit(asynchronous=False)
        finally:
            consumer.close()


class Flow:
    """The producer: flights in the file's order, to Kafka or to NATS, never far ahead."""

    def __init__(self, kafka: Kafka, server: Server, flights: Sequence[Flight], book: Book) -> None:
        self._kafka, self._server, self._flights, self._book = kafka, server, flights, book
        self.sent = 0

    async def to_kafka(self, until: int, *, pause_s: float = 0.0) -> None:
        """Go on to flight ``until``, all acknowledged by Kafka; slower with a pause."""
        producer = Producer({"bootstrap.servers": self._kafka.bootstrap, "linger.ms": 5})
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failed.append(error)

        while self.sent < until:
            for flight in self._next(min(until, self.sent + _FEW) if pause_s else until):
                producer.produce(
                    TOPIC,
                    key=flight.key,
                    value=flight.value,
                    timestamp=flight.timestamp_ms,
                    headers=[*flight.headers, ("Flight-Number", b"%d" % self.sent)],
                    on_delivery=note,
                )
                self.sent += 1
            assert await asyncio.to_thread(producer.flush, 60) == 0
            await self._keep_pace()
            await asyncio.sleep(pause_s)
        assert not failed, failed[0]

    async def to_nats(self, until: int) -> None:
        """The same, straight to NATS: same keys, same partitions."""
        client = await nats.connect(self._server.url)
        try:
            async with Publisher(
                client, SUBJECT, partitions=PARTITIONS, partitioner="crc32", stream=STREAM
            ) as publisher:
                while self.sent < until:
                    for flight in self._next(until):
                        headers = {"Flight-Number": str(self.sent)}
                        await publisher.send(flight.key, flight.value, headers=headers)
                        self.sent += 1
                    await publisher.flush()
                    await self._keep_pace()
        finally:
            await client.close()

    def _next(self, until: int) -> Sequence[Flight]:
        return self._flights[self.sent : min(until, self.sent + _CHUNK)]

    async def _keep_pace(self) -> None:
        while self.sent - self._book.count > BACKLOG_MAX:  # noqa: ASYNC110 - bounded by the group
            await asyncio.sleep(_LOOK_S)


class Stage:
    """Both sides, the project file, and the commands."""

    def __init__(self, kafka: Kafka, server: Server, folder: Path) -> None:
        self.kafka, self.server = kafka, server
        self._folder = folder
        self.project = folder / "millstream.toml"
        self.can_tell = kafka.kind == REAL_KAFKA

    async def command(self, *words: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Run a command to its end; its report."""
        process = await self.start(*words)
        _, error = await process.communicate()
        assert process.returncode in codes, f"{words}: {process.returncode}: {error.decode()}"
        return self.report(words[0])

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command that writes its report to a file of its name."""
        report = ["--report", str(self._report(words[0]))] if words[0] != "barrier" else []
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream_bridge", *words, *report),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    def report(self, name: str) -> dict[str, Any]:
        path = self._report(name)
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    async def plan(self) -> None:
        """``assess`` and ``plan``, and what a person would change in the file."""
        sides = ("--kafka", self.kafka.bootstrap)
        assessed = await self.command("assess", *sides, "--topics", TOPIC)
        assert [it["topic"] for it in assessed["topics"]] == [TOPIC]
        nats_url = ("--nats", self.server.url)
        await self.command("plan", *sides, *nats_url, "--topics", TOPIC, "--out", str(self.project))
        lines = self.project.read_text().splitlines()
        place = next(n for n, line in enumerate(lines) if line.startswith("subject = "))
        lines[place] = f'subject = "{SUBJECT}"\nshared = true    # producers will move'
        kept = "\n".join(lines)
        if "\n[[group]]" in kept:
            kept = kept[: kept.index("\n[[group]]") + 1]
        group = f'[[group]]\nkafka = "{GROUP}"\ngroup = "{GROUP}"\nroutes = ["{TOPIC}"]\n'
        self.project.write_text(f"{kept}\n{group}")

    @asynccontextmanager
    async def running(self) -> Any:
        """The bridge, at work until the block ends."""
        ready = self._folder / "ready"
        words = ("run", "--project", str(self.project), "--ready-file", str(ready))
        process = await self.start(*words, "--end-with-stdin")
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not ready.exists():
                    assert process.returncode is None
                    await asyncio.sleep(_LOOK_S)
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.communicate()

    async def verify(self) -> bool:
        """Everything stored, and both sides equal."""
        await self.command("barrier", "--project", str(self.project))
        report = await self.command("verify", "--project", str(self.project), codes=(0, 1))
        return all(route["equal"] for route in report["routes"])

    async def switch(
        self, command: str, leave: Callable[[], Any], *more: str
    ) -> tuple[dict[str, Any], float]:
        """``cutover`` or ``rollback`` while the old reader still works; it leaves when all waits.

        The report, and when the old reader was told to leave.
        """
        words = (command, "--project", str(self.project), "--yes", *more)
        if not self.can_tell:
            left_at = time.monotonic()
            await leave()
            report = await self.command(*words, "--group-is-stopped")
            return report["routes"][0], left_at
        process = await self.start(*words, "--wait", str(PATIENCE_S))
        assert process.stderr is not None
        told = b""
        while line := await process.stderr.readline():
            told += line
            if b"all but the last step is done" in line:
                break
        left_at = time.monotonic()
        await leave()
        _, rest = await process.communicate()
        report = self.report(command)
        assert process.returncode == 0, (told + rest).decode() + json.dumps(report)
        return report["routes"][0], left_at

    def _report(self, name: str) -> Path:
        return self._folder / f"{name}.json"


async def rehearse(
    kafka: Kafka, server: Server, folder: Path, flights: Sequence[Flight]
) -> Rehearsal:
    """All acts of it, one after the other."""
    began = time.monotonic()
    result = Rehearsal(kafka=kafka.kind, server=server.kind, flights=len(flights))
    total = len(flights)
    acts = [int(total * share) for share in (0.2, 0.4, 0.55, 0.7, 0.85)]
    book = Book()
    stage = Stage(kafka, server, folder)
    flow = Flow(kafka, server, flights, book)
    kafka.create_topic(TOPIC, PARTITIONS, {"retention.ms": "-1"})  # the flights are of 2013
    member = KafkaMember(kafka, book)
    try:
        await flow.to_kafka(acts[0])
        await stage.plan()
        async with stage.running():
            await flow.to_kafka(acts[1])
            result.verified.append(await stage.verify())

            between = min((acts[1] + acts[2]) // 2, acts[1] + SLOW_MAX)
            slow = asyncio.create_task(flow.to_kafka(between, pause_s=0.1), name="producer")
            cut, left_at = await stage.switch("cutover", member.stop)
            worker = _worker(server, book)
            working = asyncio.create_task(worker.run(), name="worker")
            await slow
            await flow.to_kafka(acts[2])
            result.cutover_pause_s = await book.first_at("nats", working) - left_at
            result.cutover_standstill_s = cut["standstill_s"]

            await stage.command("barrier", "--project", str(stage.project))
            await flow.to_nats(acts[4])

            async def leave() -> None:
                await worker.stop()
                await working

            home, left_at = await stage.switch("rollback", leave, "--bring-back")
            member = KafkaMember(kafka, book)
            await flow.to_kafka(total)
            await _until(lambda: book.count >= total)
            result.rollback_pause_s = await book.first_at("kafka") - left_at
            result.rollback_standstill_s = home["standstill_s"]
            result.verified.append(await stage.verify())
        result.brought_back = acts[4] - acts[2]
    finally:
        await member.stop()
    _judge(book, flights, result)
    result.seconds = time.monotonic() - began
    return result


def _worker(server: Server, book: Book) -> Group:
    """The new service: the same handling, on the coordinator."""
    group = Group(server.url, stream=STREAM, name=GROUP, partitions=PARTITIONS)

    @group.handler(key=SUBJECT)
    async def handle(message: Message) -> None:
        book.note("nats", message.key, int(message.headers["Flight-Number"]), message.data)

    return group


async def _until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110 - bounded polling
            await asyncio.sleep(_LOOK_S)


def _judge(book: Book, flights: Sequence[Flight], result: Rehearsal) -> None:
    tracks, _ = computed(flights)
    result.handled = book.count
    result.by_kafka, result.by_nats = book.handled["kafka"], book.handled["nats"]
    result.missed = len(flights) - len(book.numbers)
    result.repeated = book.count - len(book.numbers)
    names = tracks.keys() | book.tracks.keys()
    result.wrong_aircraft = sum(tracks.get(name) != book.tracks.get(name) for name in names)


def main() -> int:
    """Read the command line, rehearse, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", choices=[MOCK, REAL_KAFKA], default=REAL_KAFKA)
    parser.add_argument("--server", choices=[EMBEDDED, REAL], default=REAL)
    parser.add_argument("--limit", type=int, default=None, help="only the first so many flights")
    parser.add_argument("--year", action="store_true", help="of the whole year's")
    args = parser.parse_args()
    if args.year and not fetched():
        print(f"{FILE} is not there; make flights fetches it", file=sys.stderr)
        return 3
    flights = read_flights(FILE if args.year else PACKAGED, limit=args.limit)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        kafka = stack.enter_context(mock_kafka() if args.kafka == MOCK else real_kafka())
        server = stack.enter_context(Server(args.server, folder / "nats"))
        result = asyncio.run(rehearse(kafka, server, folder, flights))
    print(json.dumps({"schema": "millstream.rehearsal/1", **asdict(result)}))
    return 0 if result.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
