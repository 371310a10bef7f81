"""How fast a backfill is: mock Kafka → file stream on the real nats-server, each its own process.

    python -m tests.benchmarks.bridge [--records 200000] [--partitions 40] [--bytes 200] [--runs 3]

Prints one JSON line: records a second of `millstream bridge run` from its first session to the last
acknowledgement, its largest resident size and CPU time (start of Python included); the same with
user headers and for a shared route; of `verify`; and, in the same run, of nats-py's awaited
``js.publish`` of equal payloads.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nats
from confluent_kafka import Producer

from tests.helpers.servers import Server, real_server

AWAITED_RECORDS = 5_000


def start_kafka(folder: Path, topics: list[str], partitions: int) -> tuple[Any, str]:
    """The mock cluster in a process of its own; it ends when its standard input is closed."""
    ready = folder / "kafka.json"
    arguments = [part for topic in topics for part in ("--topic", f"{topic}:{partitions}")]
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


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All arms, one after the other, ``runs`` times; medians."""
    rates: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    cpu: dict[str, list[float]] = {}
    user_headers = [("trace-id", b"00-0af7651916cd43dd"), ("schema", b"7"), ("origin", b"eu")]
    for run in range(args.runs):
        topics = [f"plain{run}", f"headers{run}", f"shared{run}"]
        kafka, bootstrap = start_kafka(folder, topics, args.partitions)
        (folder / "kafka.json").unlink()
        try:
            async with real_server(folder / f"nats{run}") as server:
                for topic in topics:
                    headers = user_headers if topic.startswith("headers") else None
                    produce(bootstrap, topic, args, headers)
                for topic in topics:
                    more = ["--shared"] if topic.startswith("shared") else []
                    moved = bridge("run", bootstrap, server, topic, "--stop-at-end", *more)
                    assert moved["records"] == args.records, moved
                    name = topic.rstrip("0123456789")
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
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder:
        print(json.dumps(asyncio.run(measure(args, Path(folder)))))


if __name__ == "__main__":
    main()
