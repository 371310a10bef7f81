"""Where bridges are measured: a mock Kafka, a NATS server, and commands, each its own process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.benchmarks.measure import cpu_seconds
from tests.helpers.servers import Server

Figures = dict[str, Any]
Headers = list[tuple[str, str | bytes | None]]

EMPTY = "empty"
"""A topic of one partition that every `mock_kafka` has."""

_RUN_AND_MEASURE = (
    "import resource, subprocess, sys;"
    "code = subprocess.call(sys.argv[1:]);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime);"
    "sys.exit(code)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured; ``store``: the folder for the server's streams."""

    records: int
    partitions: int
    size: int
    sizes: Sequence[int]
    store: Path


@contextmanager
def mock_kafka(folder: Path, topics: Mapping[str, int]) -> Iterator[str]:
    """The bootstrap address of a mock cluster that has topics of so many partitions."""
    ready = folder / "kafka.json"
    ready.unlink(missing_ok=True)
    named = {EMPTY: 1, **topics}
    arguments = [part for name, n in named.items() for part in ("--topic", f"{name}:{n}")]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "millstream_bridge", "kafka-mock", *arguments),
            *("--ready-file", str(ready), "--end-with-stdin"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        while not ready.exists():
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError("the mock Kafka did not start")
        yield json.loads(ready.read_text())["kafka"]


def kept(partitions: int, size: int) -> int:
    """How many records of a size are surely in a topic: the mock drops what is over 5 MB."""
    return partitions * (4_000_000 // (size + 32))


def produce(
    bootstrap: str,
    topic: str,
    records: int,
    partitions: int,
    size: int,
    headers: Headers | None = None,
) -> None:
    """Records of ``size`` bytes and 3,000 keys, spread evenly over the partitions."""
    assert records <= kept(partitions, size)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50})
    value = b"x" * size
    for n in range(records):
        key = b"N%05d" % (n % 3_000)
        while True:
            try:
                producer.produce(topic, value, key, partition=n % partitions, headers=headers)
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(120) == 0


def a_route(topic: str, **more: object) -> Figures:
    """A route as a project file has it; of mode dense with a stream for each partition."""
    stream = topic.upper()
    if more.get("mode") == "dense":
        stream += "-{partition}"
    subject = f"{topic}.{{partition}}.{{key}}"
    return {"topic": topic, "stream": stream, "subject": subject, **more}


@contextmanager
def ground_of(options: Options, kind: str, topics: Mapping[str, int]) -> Iterator["Ground"]:
    """A fresh server of a kind, and a Kafka that has these topics."""
    with (
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder,
        tempfile.TemporaryDirectory(dir=options.store) as store,
        mock_kafka(Path(folder), topics) as kafka,
        Server(kind, store) as server,
    ):
        yield Ground(kafka, server.url, [server.pid], Path(folder))


@dataclass(frozen=True)
class Ground:
    """Addresses of both sides, and the processes of the NATS servers (none: not measured)."""

    kafka: str
    nats: str
    server_pids: Sequence[int]
    folder: Path

    def command(self, name: str, route: Mapping[str, Any], *more: str) -> Figures:
        """A command's report, and ``cpu_s``, ``server_cpu_s``, ``resident_mb``."""
        before = self.server_cpu_s()
        done = subprocess.run(
            self.arguments(name, route, "--json", *more),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stdout}{done.stderr}")
        *_, report, used = done.stdout.strip().splitlines()
        [told] = json.loads(report)["routes"]
        return {**told, "server_cpu_s": self.server_cpu_s() - before, **used_of(used)}

    def arguments(self, name: str, route: Mapping[str, Any], *more: str) -> list[str]:
        """The command line of a command on one route; its last line is for `used_of`."""
        project = self.folder / f"{route['topic']}.toml"
        fields = "".join(f"{key} = {json.dumps(value)}\n" for key, value in route.items())
        sides = f'[kafka]\nbootstrap = "{self.kafka}"\n[nats]\nurl = "{self.nats}"\n'
        project.write_text(f"{sides}[[route]]\n{fields}")
        bridge = ("-m", "millstream_bridge", name, "--project", str(project))
        return [sys.executable, "-c", _RUN_AND_MEASURE, sys.executable, *bridge, *more]

    def figures(self, records: int, per_s: float, measured: Mapping[str, Any]) -> Figures:
        """What a command came to, per record; without what its start costs."""
        cpu_s = measured["cpu_s"] - self.start_cpu_s * measured.get("processes", 1)
        return {
            "per_s": round(per_s),
            "cpu_us": round(cpu_s / records * 1e6, 2),
            "server_us": round(measured["server_cpu_s"] / records * 1e6, 2),
            "peak_mb": measured["resident_mb"],
        }

    @cached_property
    def start_cpu_s(self) -> float:
        """What it costs to start Python and a bridge that has nothing to do."""
        started = self.command("run", a_route(EMPTY), "--stop-at-end")
        return float(started["cpu_s"])

    def server_cpu_s(self) -> float:
        """Processor time the servers have had."""
        return sum(map(cpu_seconds, self.server_pids))


def used_of(line: str) -> Figures:
    """What the last line of a measured command says."""
    memory, cpu_s = line.split()
    return {"resident_mb": round(int(memory) / 1024), "cpu_s": float(cpu_s)}
