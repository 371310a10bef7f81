"""How fast a backfill is: mock Kafka → file stream on the real nats-server, each its own process.

    python -m tests.benchmarks.bridge [--records 400000] [--partitions 40] [--bytes 200] [--runs 3]
        [--store DIR] [--profile] [--peers]

Prints one JSON line: records a second of `millstream bridge run` from its first session to the last
acknowledgement, its largest resident size and CPU time (start of Python included), in each mode and
with user headers; of `verify`; how long after a start the first new record is stored with 64
partitions; the delay of single records at 5,000 a second; and, in the same run, nats-py's awaited
``js.publish`` of equal payloads. ``--peers`` adds the others, where they are there: mq-bridge by
``pip`` in the environment .cache/peers/mq-bridge, nats-kafka built into .cache/peers/bin.
``--profile`` names the five functions that cost most. ``--store``: where the server keeps its
streams; an atomic batch costs it three fsync, so a shared route is as fast as the disk is in that.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nats
import uvloop
from confluent_kafka import Producer

from millstream_bridge import Bridge, Route
from tests.helpers.servers import Server, real_server

AWAITED_RECORDS = 5_000
PEERS = Path(__file__).parents[2] / ".cache" / "peers"
PEER_SILENT_S = 20.0
TAIL_RECORDS, TAIL_PER_S = 20_000, 5_000
ARMS: dict[str, list[str]] = {"plain": [], "headers": [], "shared": ["--shared"], "dense": []}
MORE_TOPICS = ["resume:64", "tail:4"]


def start_kafka(folder: Path, topics: list[str], partitions: int) -> tuple[Any, str]:
    """The mock cluster in a process of its own; it ends when its standard input is closed."""
    ready = folder / "kafka.json"
    sized = [*(f"{topic}:{partitions}" for topic in topics), *MORE_TOPICS]
    arguments = [part for topic in sized for part in ("--topic", topic)]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "millstream_bridge", "kafka-mock", *arguments),
            *("--ready-file", str(ready), "--end-with-stdin"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(1_000):
        if ready.exists():
            return process, json.loads(ready.read_text())["kafka"]
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError("the mock Kafka did not start")


def produce(bootstrap: str, topic: str, args: argparse.Namespace, headers: Any) -> None:
    """Equal records, spread evenly over the partitions."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50})
    value = b"x" * args.bytes
    for n in range(args.records):
        while True:
            try:
                producer.produce(
                    topic,
                    value,
                    b"N%05d" % (n % 3_000),
                    partition=n % args.partitions,
                    headers=headers,
                )
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(60) == 0


def bridge(command: str, kafka: str, server: Server, topic: str, *more: str) -> dict[str, Any]:
    """One command in a process of its own; its JSON report and largest resident size."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", _RUN_AND_MEASURE),
            *(sys.executable, "-m", "millstream_bridge", command),
            *("--kafka", kafka, "--nats", server.url, "--topic", topic),
            *("--stream", topic.upper(), "--subject", f"{topic}.{{partition}}.{{key}}"),
            *("--json", *more),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
    *_, report, used = done.stdout.strip().splitlines()
    memory, cpu_s = used.split()
    return {
        **json.loads(report),
        "resident_mb": round(int(memory) / 1024),
        "cpu_s": float(cpu_s),
    }


def dense(kafka: str, server: Server, topic: str) -> dict[str, Any]:
    """The same for a dense route, which has no options of its own on the command line."""
    route = {
        "topic": topic,
        "stream": f"{topic.upper()}-{{partition}}",
        "subject": f"{topic}.{{partition}}.{{key}}",
        "mode": "dense",
    }
    told = {
        "kafka": kafka,
        "nats": server.url,
        "route": route,
        "guard": "full",
        "stand_back_s": 1.0,
        "stop_at_end": True,
    }
    with subprocess.Popen(
        [
            *(sys.executable, "-c", _RUN_AND_MEASURE),
            *(sys.executable, "-m", "tests.chaos.bridge_process", json.dumps(told)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        report, used = process.stdout.read().strip().splitlines()
    moved = json.loads(report)
    memory, cpu_s = used.split()
    return {
        **moved,
        "records_per_second": moved["records"] / moved["seconds"],
        "resident_mb": round(int(memory) / 1024),
        "cpu_s": float(cpu_s),
    }


_RUN_AND_MEASURE = (
    "import resource, subprocess, sys;"
    "code = subprocess.call(sys.argv[1:]);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime);"
    "sys.exit(code)"
)


async def awaited(url: str, size: int) -> float:
    """Messages a second of nats-py's publish, each awaited."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="AWAITED", subjects=["awaited.>"])
        started = time.perf_counter()
        for n in range(AWAITED_RECORDS):
            await stream.publish(f"awaited.{n % 10}.k{n % 3_000}", b"x" * size)
        return AWAITED_RECORDS / (time.perf_counter() - started)
    finally:
        await client.close()


async def peer(command: list[str], url: str, stream: str, records: int) -> float | None:
    """Messages a second that another bridge stores, from its first on; None if it stops short."""
    client = await nats.connect(url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        await client.jetstream().add_stream(name=stream, subjects=[f"{stream}.>"])
        began = stored = 0
        since = seen = time.perf_counter()
        while stored < records and time.perf_counter() - seen < PEER_SILENT_S:
            await asyncio.sleep(0.02)
            now = (await client.jetstream().stream_info(stream)).state.messages
            if now != stored:
                seen = time.perf_counter()
                if not stored:
                    began, since = now, seen
                stored = now
        return (stored - began) / (seen - since) if stored >= records else None
    finally:
        process.kill()
        await process.wait()
        await client.close()


def peer_commands(kafka: str, topic: str, url: str, folder: Path) -> dict[str, list[str]]:
    """How the others are started, those that are there; each has a stream of its name."""
    found = {}
    python = PEERS / "mq-bridge" / "bin" / "python"
    if python.exists():
        script = Path(__file__).parent / "peers" / "mq_bridge_move.py"
        found["mq_bridge"] = [str(python), str(script), kafka, topic, url, "mq_bridge"]
    nats_kafka = PEERS / "bin" / "nats-kafka"
    if nats_kafka.exists():
        config = folder / "nats-kafka.conf"
        config.write_text(
            f'nats: {{ servers: ["{url}"] }}\njetstream: {{ }}\n'
            f'connect: [{{ type: "KafkaToJetStream", id: "k", brokers: ["{kafka}"],'
            f' topic: "{topic}", groupid: "nk", subject: "nats_kafka.all" }}]\n'
        )
        found["nats_kafka"] = [str(nats_kafka), "-c", str(config)]
    return found


async def first_record_s(kafka: str, server: Server, topic: str) -> float:
    """From the start of a run's work to the first record it stores, positions to be read before."""
    connection = await nats.connect(server.url)
    await connection.close()
    route = Route(topic=topic, stream=topic.upper(), subject=f"{topic}.{{partition}}.{{key}}")
    one = Bridge(kafka=kafka, nats=server.url, route=route)
    started = time.perf_counter()
    running = asyncio.create_task(one.run(), name="bridge")
    while not one.progress.records:  # noqa: ASYNC110 - bounded by the run
        await asyncio.sleep(0.002)
    took = time.perf_counter() - started
    one.stop()
    await running
    return took


async def tail_ms(kafka: str, server: Server) -> dict[str, float]:
    """Delay from a record's timestamp to its message in a subscriber, at 5,000 a second."""
    route = Route(topic="tail", stream="TAIL", subject="tail.{partition}.{key}")
    one = Bridge(kafka=kafka, nats=server.url, route=route)
    client = await nats.connect(server.url)
    delays: list[float] = []

    async def take(message: Any) -> None:
        delays.append((time.time() - float(message.data)) * 1e3)

    await client.subscribe("tail.>", cb=take)
    running = asyncio.create_task(one.run(), name="bridge")
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 1})
    started = time.perf_counter()
    for n in range(TAIL_RECORDS):
        producer.produce("tail", b"%.6f" % time.time(), b"k%d" % (n % 100), partition=n % 4)
        if n % 50 == 49:
            producer.poll(0)
            await asyncio.sleep(max(0, started + n / TAIL_PER_S - time.perf_counter()))
    producer.flush(10)
    while len(delays) < TAIL_RECORDS:  # noqa: ASYNC110 - all of them come
        await asyncio.sleep(0.01)
    one.stop()
    await running
    await client.close()
    delays.sort()
    return {
        "p50": round(delays[len(delays) // 2], 1),
        "p99": round(delays[len(delays) * 99 // 100], 1),
    }


def profile(kafka: str, server: Server, topic: str) -> list[str]:
    """The functions with the most time of their own in a backfill, waiting apart."""
    route = Route(topic=topic, stream="PROFILED", subject="profiled.{partition}.{key}")
    profiler = cProfile.Profile()
    profiler.enable()
    uvloop.run(Bridge(kafka=kafka, nats=server.url, route=route).run(stop_at_end=True))
    profiler.disable()
    table = pstats.Stats(profiler).get_stats_profile().func_profiles
    rows = sorted(table.items(), key=lambda row: -row[1].tottime)
    return [
        f"{name} {row.tottime:.2f} s"
        for name, row in rows
        if name not in ("run", "run_until_complete")
    ][:5]


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All arms, one after the other, ``runs`` times; medians."""
    store = args.store
    once: dict[str, Any] = {}
    rates: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    cpu: dict[str, list[float]] = {}
    user_headers = [("trace-id", b"00-0af7651916cd43dd"), ("schema", b"7"), ("origin", b"eu")]
    for run in range(args.runs):
        topics = [f"{arm}{run}" for arm in ARMS]
        kafka, bootstrap = start_kafka(folder, topics, args.partitions)
        (folder / "kafka.json").unlink()
        try:
            async with real_server(store / f"nats{run}") as server:
                for topic in topics:
                    headers = user_headers if topic.startswith("headers") else None
                    produce(bootstrap, topic, args, headers)
                for topic in topics:
                    name = topic.rstrip("0123456789")
                    if name == "dense":
                        moved = dense(bootstrap, server, topic)
                    else:
                        more = ["--stop-at-end", *ARMS[name]]
                        moved = bridge("run", bootstrap, server, topic, *more)
                    assert moved["records"] == args.records, moved
                    rates.setdefault(name, []).append(moved["records_per_second"])
                    cpu.setdefault(name, []).append(moved["cpu_s"] / args.records * 1e6)
                    memory[name] = max(memory.get(name, 0), moved["resident_mb"])
                proof = bridge("verify", bootstrap, server, topics[0])
                assert proof["equal"], proof
                cpu.setdefault("verify", []).append(proof["cpu_s"] / args.records * 1e6)
                rates.setdefault("verify", []).append(proof["records"] / proof["seconds"])
                rates.setdefault("nats_py_awaited", []).append(
                    await awaited(server.url, args.bytes)
                )
                if args.peers:
                    commands = peer_commands(bootstrap, topics[0], server.url, folder)
                    for name, command in commands.items():
                        rate = await peer(command, server.url, name, args.peer_records)
                        if rate is not None:
                            rates.setdefault(name, []).append(rate)
                if run == 0:
                    once = await measure_once(args, bootstrap, server, topics[0])
        finally:
            kafka.stdin.close()
            kafka.wait()
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    return {
        "schema": "millstream.bench.bridge/1",
        "records": args.records,
        "bytes": args.bytes,
        "records_per_second": medians,
        "bridge_cpu_us_per_record": {
            name: round(statistics.median(values), 2) for name, values in cpu.items()
        },
        "times_awaited": round(medians["plain"] / medians["nats_py_awaited"], 1),
        "resident_mb": memory,
        **once,
    }


async def measure_once(
    args: argparse.Namespace, kafka: str, server: Server, topic: str
) -> dict[str, Any]:
    """What is no rate, and the profile."""
    some = argparse.Namespace(records=64_000, partitions=64, bytes=args.bytes)
    produce(kafka, "resume", some, None)
    bridge("run", kafka, server, "resume", "--stop-at-end")
    produce(kafka, "resume", some, None)
    found: dict[str, Any] = {
        "first_record_s": round(await first_record_s(kafka, server, "resume"), 3),
        "tail_ms": await tail_ms(kafka, server),
    }
    if args.profile:
        found["profile"] = await asyncio.to_thread(profile, kafka, server, topic)
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--peer-records", type=int, default=50_000)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder,
        tempfile.TemporaryDirectory(prefix="millstream-bench-", dir=args.store) as store,
    ):
        args.store = Path(store)
        print(json.dumps(uvloop.run(measure(args, Path(folder)))))


if __name__ == "__main__":
    main()
