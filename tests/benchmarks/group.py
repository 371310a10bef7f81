"""The coordinator beside its peers: ``python -m tests.benchmarks.group``.

    --server real|embedded|both   what the consumers are connected to
    --pairs N                     runs of each, in turn; the medians are printed
    --only TEXT                   sections whose name contains this
    --short                       few messages: shows that it works
    --json FILE                   write the figures there, too

Throughput: one partition, a stream filled before, one consumer process at a time; the rate is the
wall clock's from the first message handled to the last, and the processor time is the consumer's.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats

from millstream_coordinator import Candidate, assign, moved_partitions
from tests.benchmarks import peers
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

PAYLOAD_BYTES = 128
KEYS = 1000
TIMEOUT_S = 600
IDLE_S = 10.0
Figures = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One consumer process on one prefilled stream."""

    name: str
    kind: str
    messages: int
    arguments: Mapping[str, object]

    def measure(self, url: str, stream: str, number: int, *more: str) -> dict[str, Any]:
        """What the process printed. Raises RuntimeError with what it said if it failed."""
        options = {"stream": stream, "name": f"{self.kind}{number}", "messages": self.messages}
        command = [sys.executable, "-m", "tests.benchmarks.group_load", self.kind, url, *more]
        for key, value in {**options, **self.arguments}.items():
            command += [f"--{key}", str(value)]
        return _line_of(command, self.name)


def _line_of(command: list[str], name: str) -> dict[str, Any]:
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def fill(
    url: str, stream: str, subject: str, messages: int, keys: int = KEYS, partitions: int = 1
) -> None:
    """Publish to ``subject`` and return when all of it is stored.

    ``{key}`` and ``{partition}`` in it are replaced.
    """
    client = await nats.connect(url)
    context = client.jetstream()
    subjects = [subject.replace("{key}", "*").replace("{partition}", "*")]
    await context.add_stream(name=stream, subjects=subjects, max_consumers=10_000)
    for number in range(messages):
        to = subject.replace("{key}", f"k{number % keys}")
        await client.publish(
            to.replace("{partition}", str(number % partitions)), b"x" * PAYLOAD_BYTES
        )
        if number % 10_000 == 9_999:
            await client.flush()
    await client.flush()
    while (await context.stream_info(stream)).state.messages < messages:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await client.close()


@contextmanager
def filled(kind: str, messages: int) -> Iterator[Server]:
    """A server with a stream BENCH, subjects ``bench.0.<key>``."""
    with (
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as store,
        Server(kind, store) as server,
    ):
        asyncio.run(fill(server.url, "BENCH", "bench.0.{key}", messages))
        yield server


# ---- sections ------------------------------------------------------------------------------------


def throughput(options: argparse.Namespace, kind: str) -> Figures:
    """No-op handler, one partition: a group, a plain standing pull, the same with MAP = 1."""
    many, few = (2_000, 500) if options.short else (100_000, 20_000)
    runs = [
        Run(name="plain pull, MAP 1000", kind="plain", messages=many, arguments={}),
        Run(name="group, MAP 1000", kind="group", messages=many, arguments={}),
        Run(
            name="plain pull, MAP 1",
            kind="plain",
            messages=few,
            arguments={"max-ack-pending": 1},
        ),
        Run(name="group, MAP 256 (default)", kind="group", messages=many, arguments=_DEFAULT),
        Run(name="group, MAP 1 (strict)", kind="group", messages=few, arguments=_STRICT),
    ]
    with filled(kind, many) as server:
        found = _in_turn(runs, server.url, "BENCH", options.pairs)
        if (peer := _natsio(server, few, 0.0)) is not None:
            found["natsio-pcgroups, no-op"] = peer
    plain, ours = found["plain pull, MAP 1000"], found["group, MAP 1000"]
    return {
        **found,
        "group / plain pull": round(ours["per_s"] / plain["per_s"], 2),
        "group / MAP 1": round(ours["per_s"] / found["plain pull, MAP 1"]["per_s"], 1),
    }


_DEFAULT = {"max-ack-pending": 256}
_STRICT = {"max-ack-pending": 1}


def lanes(options: argparse.Namespace, kind: str) -> Figures:
    """A handler of 5 ms, one partition: 100 lanes beside one message after the other."""
    many, few = (1_000, 50) if options.short else (20_000, 500)
    arguments: Mapping[str, object] = {"handler-ms": 5, "max-lanes": 100}
    runs = [
        Run(name="serial", kind="plain", messages=few, arguments={"handler-ms": 5}),
        Run(name="group, 100 lanes", kind="group", messages=many, arguments=arguments),
    ]
    with filled(kind, many) as server:
        found = _in_turn(runs, server.url, "BENCH", options.pairs)
        if (peer := _natsio(server, few, 5.0)) is not None:
            found["natsio-pcgroups, 5 ms"] = peer
    ratio = found["group, 100 lanes"]["per_s"] / found["serial"]["per_s"]
    return {**found, "group / serial": round(ratio, 1)}


def profile(options: argparse.Namespace, kind: str) -> Figures:
    """Where a worker's time goes: the five functions with the most of their own, by cProfile."""
    many = 2_000 if options.short else 100_000
    waiting: Mapping[str, object] = {"handler-ms": 5, "max-lanes": 100}
    runs = [
        Run(name="no-op handler", kind="group", messages=many, arguments={}),
        Run(name="100 lanes, 5 ms", kind="group", messages=many // 5, arguments=waiting),
    ]
    with filled(kind, many) as server:
        return {
            run.name: ", ".join(run.measure(server.url, "BENCH", number, "--profile")["profile"])
            for number, run in enumerate(runs)
        }


SUBJECTS = ("idle.{partition}.{key}", "bench.{partition}.{key}")


def memory(options: argparse.Namespace, kind: str) -> Figures:
    """A worker that owns 1,000 partitions, without messages and with 100,000 keys in its lanes."""
    partitions, keys = (10, 100) if options.short else (1_000, 100_000)
    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as store,
        Server(kind, store) as server,
    ):
        for number, held in enumerate((0, keys)):
            asyncio.run(
                fill(server.url, f"BENCH{number}", SUBJECTS[number], held, keys, partitions)
            )
            arguments = {"partitions": partitions, "key-rule": SUBJECTS[number]}
            run = Run(name=f"{held} held", kind="hold", messages=held, arguments=arguments)
            line = run.measure(server.url, f"BENCH{number}", number)
            found[f"{held:,} in hand"] = f"{line['peak_bytes'] / 1e6:,.0f} MB resident at most"
    return found


def _natsio(server: Server, messages: int, handler_ms: float) -> dict[str, float] | None:
    # It pins its consumers to one client, which the embedded broker has not.
    python = peers.natsio_python() if server.kind == REAL else None
    if python is None:
        return None
    asyncio.run(fill(server.url, "PCG", "0.pcg.{key}", messages))
    program = str(peers.FOLDER / "natsio_pcgroups.py")
    command = [str(python), program, server.url, "PCG", "peer", str(messages), str(handler_ms)]
    return _figures([_line_of(command, "natsio-pcgroups")])


def kafka(options: argparse.Namespace, _: str) -> Figures:
    """The same handlers in a Kafka group on real Apache Kafka, one partition."""
    from tests.helpers.kafka import real_kafka

    if reason := require.missing("kafka"):
        return {"not run": reason}
    many, few = (2_000, 50) if options.short else (100_000, 500)
    runs = [
        Run(name="Kafka group, no-op", kind="kafka", messages=many, arguments={}),
        Run(name="Kafka group, 5 ms", kind="kafka", messages=few, arguments={"handler-ms": 5}),
    ]
    with real_kafka() as node:
        node.create_topic("bench", 1)
        value = b"x" * PAYLOAD_BYTES
        node.produce("bench", [{"key": f"k{n % KEYS}", "value": value} for n in range(many)])
        return dict(_in_turn(runs, node.bootstrap, "bench", options.pairs))


def moves(options: argparse.Namespace, _: str) -> Figures:
    """Partitions that change owner though the one before is still there: ours and pcgroups'."""
    chance = random.Random(1)
    questions: list[dict[str, object]] = []
    for _number in range(20 if options.short else 1_000):
        names = [f"m{n}" for n in range(chance.randint(2, 12))]
        memberships = [sorted(chance.sample(names, chance.randint(1, len(names))))]
        memberships += [_one_more_or_less(memberships[-1], names, chance) for _ in range(5)]
        questions.append({"partitions": chance.randint(12, 60), "memberships": memberships})
    ours = sum(_our_moves(question) for question in questions)
    theirs = peers.pcgroups_moves(questions)
    found: Figures = {"ours, partitions moved": ours}
    if theirs is not None:
        found["pcgroups, partitions moved"] = sum(map(sum, theirs))
        found["pcgroups / ours"] = round(sum(map(sum, theirs)) / ours, 2)
    return found


def _one_more_or_less(members: list[str], names: list[str], chance: random.Random) -> list[str]:
    absent = [name for name in names if name not in members]
    if absent and (len(members) == 1 or chance.random() < 0.5):
        return sorted([*members, chance.choice(absent)])
    if len(members) == 1:
        return members
    return sorted(chance.sample(members, len(members) - 1))


def _our_moves(question: Mapping[str, object]) -> int:
    partitions, memberships = question["partitions"], question["memberships"]
    assert isinstance(partitions, int)
    assert isinstance(memberships, list)
    owners: dict[int, str] = {}
    moved = 0
    for members in memberships:
        after = assign([Candidate(member=name) for name in members], partitions, owners)
        before = {number: name for number, name in owners.items() if name in members}
        moved += len(moved_partitions(before, after))
        owners = after
    return moved


def scale(options: argparse.Namespace, _: str) -> Figures:
    """Assignment of 10,000 partitions over 500 members after one of them went."""
    partitions, members = (100, 5) if options.short else (10_000, 500)
    candidates = [Candidate(member=f"m{number:03}") for number in range(members)]
    owners = assign(candidates, partitions, {})
    times = []
    for _run in range(5):
        begin = time.perf_counter()
        assign(candidates[1:], partitions, owners)
        times.append((time.perf_counter() - begin) * 1000)
    return {"ms, median of 5": round(statistics.median(times), 1)}


def crowd(options: argparse.Namespace, _: str) -> Figures:
    """A group of 1,000 partitions and 100 members (one process): its start, and what it costs idle.

    Messages are what nats-server counts for all its clients, heartbeats of pulls included.
    """
    if reason := require.missing("nats"):
        return {"not run": reason}
    shapes = [(20, 2)] if options.short else [(1_000, 1), (10, 5), (1_000, 100)]
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as store:
        monitor = _free_port()
        with Server(REAL, store, arguments=["-m", str(monitor)]) as server:
            asyncio.run(_add_stream(server.url))
            for partitions, members in shapes:
                label = f"{partitions} partitions, {members} members"
                found[label] = _crowd(server.url, monitor, partitions, members, options.short)
    return found


def _crowd(url: str, monitor: int, partitions: int, members: int, is_short: bool) -> str:
    program = [sys.executable, "-m", "tests.benchmarks.group_crowd"]
    with subprocess.Popen(
        [*program, url, "BENCH", f"crowd{members}", str(partitions), str(members)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise RuntimeError("the crowd ended before it served everything")
        start_s = float(said)
        pause = threading.Event()
        pause.wait(0.2 if is_short else IDLE_S / 2)
        before = _messages(monitor)
        pause.wait(0.2 if is_short else IDLE_S)
        after = _messages(monitor)
        process.stdin.close()
    seconds = after[0] - before[0]
    rates = [(later - sooner) / seconds for later, sooner in zip(after, before, strict=True)]
    return f"served after {start_s:.2f} s; idle {rates[1]:,.0f} /s in, {rates[2]:,.0f} /s out"


def _messages(monitor: int) -> tuple[float, int, int]:
    """When, and how many messages went in and out of the server so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/varz") as answer:
        counted = json.load(answer)
    return time.monotonic(), counted["in_msgs"], counted["out_msgs"]


async def _add_stream(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="BENCH", subjects=["bench.>"], max_consumers=10_000)
    await client.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


# ---- putting it together -------------------------------------------------------------------------


def _in_turn(runs: Sequence[Run], url: str, stream: str, pairs: int) -> dict[str, dict[str, float]]:
    lines: dict[str, list[dict[str, float]]] = {run.name: [] for run in runs}
    for number in range(pairs):
        for place, run in enumerate(runs if number % 2 == 0 else reversed(runs)):
            lines[run.name].append(run.measure(url, stream, number * len(runs) + place))
    return {name: _figures(found) for name, found in lines.items()}


def _figures(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    def median(figure: Callable[[Mapping[str, float]], float]) -> float:
        return statistics.median(figure(line) for line in lines)

    return {
        "per_s": round(median(lambda line: line["messages"] / line["wall_s"])),
        "cpu_us": round(median(lambda line: line["cpu_s"] / line["messages"] * 1e6), 1),
        "peak_mb": round(median(lambda line: line["peak_bytes"] / 1e6)),
    }


SECTIONS: dict[str, Callable[[argparse.Namespace, str], Figures]] = {
    "throughput": throughput,
    "lanes": lanes,
    "profile": profile,
    "memory": memory,
    "kafka": kafka,
    "moves": moves,
    "scale": scale,
    "crowd": crowd,
}
ON_A_SERVER = {"throughput", "lanes", "profile", "memory"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.group", description=__doc__)
    parser.add_argument("--server", choices=(EMBEDDED, REAL, "both"), default="both")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.short:
        options.pairs = 1
    kinds = [EMBEDDED, REAL] if options.server == "both" else [options.server]
    document: Figures = {"schema": "millstream.benchmarks.group/1"}
    for name, section in SECTIONS.items():
        if options.only not in name:
            continue
        where = kinds if name in ON_A_SERVER else [""]
        for kind in where:
            title = f"{name} ({kind})" if kind else name
            sys.stdout.write(f"\n{title}: {(section.__doc__ or '').strip()}\n")
            found = section(options, kind)
            document[title] = found
            for label, figure in found.items():
                sys.stdout.write(f"  {label:<32} {_text(figure)}\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _text(figure: object) -> str:
    if not isinstance(figure, dict):
        return str(figure)
    parts = [f"{figure['per_s']:>9,.0f} /s", f"{figure['cpu_us']:>8.1f} µs CPU"]
    if figure["peak_mb"]:
        parts.append(f"{figure['peak_mb']:>6,.0f} MB")
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
