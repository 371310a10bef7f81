"""Rates, by way of writing, numbers of records, partitions, processes and replicas, direction."""

import asyncio
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nats

from millstream_bridge import Route, barrier
from millstream_bridge.jetstream.connection import Connection
from tests.benchmarks.bridge_ground import (
    Figures,
    Ground,
    Headers,
    Options,
    a_route,
    ground_of,
    kept,
    mock_kafka,
    produce,
    used_of,
)
from tests.helpers.cluster import NatsCluster

ARMS: Mapping[str, dict[str, Any]] = {
    "chain": {},
    "headers": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense"},
}
HEADERS: Headers = [
    ("trace-id", b"00-0af7651916cd43dd"),
    ("schema", b"7"),
    ("origin", b"eu"),
]
PARTITIONS = (1, 8, 64)
PROCESSES = (2, 4)
REPLICAS = 3
_ON_NODES = 8
_TOGETHER_S = 600
_STORED_S = 60


async def rates(options: Options, kind: str) -> Figures:
    """Each way to write, with user headers too, and the proof of each."""
    with ground_of(options, kind, dict.fromkeys(ARMS, options.partitions)) as ground:
        found: Figures = {}
        for name, more in ARMS.items():
            headers = HEADERS if name == "headers" else None
            what = options.records, options.partitions, options.size
            produce(ground.kafka, name, *what, headers)
            found[name] = moved(ground, a_route(name, **more), options.records)
            found[f"verify {name}"] = proven(ground, a_route(name, **more), options.records)
        return found


async def sizes(options: Options, kind: str) -> Figures:
    """A record costs the same in a small topic and in a large one."""
    found: Figures = {}
    for records in options.sizes:
        needed = -(-records // kept(1, options.size))
        count = max(options.partitions, needed)
        with ground_of(options, kind, {"flights": count}) as ground:
            produce(ground.kafka, "flights", records, count, options.size)
            found[f"{records:,}"] = moved(ground, a_route("flights"), records)
            found[f"verify {records:,}"] = proven(ground, a_route("flights"), records)
    return found


async def partitions(options: Options, kind: str) -> Figures:
    """And in few partitions as in many."""
    topics = {f"p{count}": count for count in PARTITIONS}
    with ground_of(options, kind, topics) as ground:
        found: Figures = {}
        for topic, count in topics.items():
            records = min(options.records // 2, kept(count, options.size))
            produce(ground.kafka, topic, records, count, options.size)
            found[f"{count}"] = moved(ground, a_route(topic), records)
            found[f"verify {count}"] = proven(ground, a_route(topic), records)
        return found


async def back(options: Options, kind: str) -> Figures:
    """The other direction: native messages to Kafka, in transactions."""
    with ground_of(options, kind, {"flights": options.partitions}) as ground:
        route = a_route("flights", shared=True)
        ground.command("run", route, "--stop-at-end")  # makes the stream
        await publish(ground.nats, "flights", options.records, options)
        returned = ground.command("back", route, "--stop-at-end")
        assert returned["records"] == options.records, returned
        per_s = returned["records_per_second"]
        return {"back": ground.figures(options.records, per_s, returned)}


async def processes(options: Options, kind: str) -> Figures:
    """Several processes on one topic, measured from the first record stored: some join later."""
    arms = {f"{mode}{count}": (mode, count) for mode in ("shared", "dense") for count in PROCESSES}
    found: Figures = {}
    for name, (mode, count) in arms.items():
        with ground_of(options, kind, {name: options.partitions}) as ground:
            produce(ground.kafka, name, options.records, options.partitions, options.size)
            route = a_route(name, **ARMS[mode])
            found[f"{mode}, {count}"] = await _together(ground, route, options, count)
    return found


async def cluster(options: Options, _: str) -> Figures:
    """A stream of three replicas on three nodes, all on this machine."""
    arms = ("shared", "dense")
    count = min(options.partitions, _ON_NODES)  # a dense route's streams are a Raft group each
    records = min(options.records // 4, kept(count, options.size))
    found: Figures = {}
    with (
        tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder,
        tempfile.TemporaryDirectory(dir=options.store) as store,
        mock_kafka(Path(folder), dict.fromkeys(arms, count)) as kafka,
        NatsCluster(store) as nodes,
    ):
        client = await nats.connect(nodes.urls)
        await nodes.until_ready(client)
        await client.close()
        pids = [node.pid for node in nodes.nodes.values()]
        ground = Ground(kafka, ",".join(nodes.urls), pids, Path(folder))
        for name in arms:
            produce(kafka, name, records, count, options.size)
            route = a_route(name, replicas=REPLICAS, **ARMS[name])
            found[name] = moved(ground, route, records)
            found[f"verify {name}"] = proven(ground, route, records)
    return found


def moved(ground: Ground, route: Mapping[str, Any], records: int) -> Figures:
    """All that is in Kafka, to a stream."""
    run = ground.command("run", route, "--stop-at-end")
    assert run["records"] == records, run
    return ground.figures(records, run["records_per_second"], run)


def proven(ground: Ground, route: Mapping[str, Any], records: int) -> Figures:
    """The proof that all of it is there."""
    proof = ground.command("verify", route)
    assert proof["equal"], proof
    assert proof["records"] == records, proof
    return ground.figures(records, records / proof["seconds"], proof)


async def publish(url: str, topic: str, records: int, options: Options) -> None:
    """Native messages of 3,000 keys for a topic's route, as fast as they go; all are stored.

    A server that has ten thousand waiting drops more, so every thousandth is waited for.
    """
    connection = await Connection.open(url, name="native")
    value = b"x" * options.size
    try:
        for first in range(0, records, 1_000):
            last = min(first + 1_000, records) - 1
            subjects = [
                f"{topic}.{n % options.partitions}.N{n % 3_000:05}" for n in range(first, last + 1)
            ]
            connection.write(
                b"".join(
                    b"PUB %b %d\r\n%b\r\n" % (it.encode(), len(value), value)
                    for it in subjects[:-1]
                )
            )
            await connection.request(subjects[-1], value, timeout_s=_STORED_S)
    finally:
        await connection.close()


async def _together(
    ground: Ground, route: Mapping[str, Any], options: Options, count: int
) -> Figures:
    """What so many processes of one group do with a topic that is full."""
    before = ground.server_cpu_s()
    arguments = ground.arguments("run", route, "--group", "bridges", "--end-with-stdin")
    started = [
        await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE)
        for _ in range(count)
    ]
    client = await nats.connect(ground.nats)
    try:
        stored = 0
        async with asyncio.timeout(_TOGETHER_S):
            while not stored:
                await asyncio.sleep(0.01)
                stored = await _stored(client, route)
            first, since = stored, time.perf_counter()
            while stored < options.records:
                await asyncio.sleep(0.05)
                stored = await _stored(client, route)
        await barrier(kafka=ground.kafka, nats=ground.nats, route=Route(**route))
        took = time.perf_counter() - since
    finally:
        await client.close()
        told = [(await process.communicate(b""))[0] for process in started]  # ends their input
    used = [used_of(it.decode().strip().splitlines()[-1]) for it in told]
    measured = {
        "cpu_s": sum(it["cpu_s"] for it in used),
        "resident_mb": max(it["resident_mb"] for it in used),
        "server_cpu_s": ground.server_cpu_s() - before,
        "processes": count,
    }
    return ground.figures(options.records, (options.records - first) / took, measured)


async def _stored(client: Any, route: Mapping[str, Any]) -> int:
    streams = await client.jetstream().streams_info()
    own = route["stream"].split("{")[0]
    return sum(it.state.messages for it in streams if it.config.name.startswith(own))
