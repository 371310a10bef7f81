"""What is no rate: the first record after a start, the delay of single ones, what costs most."""

import asyncio
import cProfile
import pstats
import re
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import nats
import uvloop
from confluent_kafka import Producer

from millstream_bridge import BackBridge, Bridge, Route, verify
from tests.benchmarks.bridge_ground import Figures, Options, a_route, ground_of, produce
from tests.benchmarks.bridge_rows import publish

TAIL_RECORDS, TAIL_PER_S = 20_000, 5_000
PARTITIONS = {"resume": 64, "tail": 4}
TOP = 5


async def single(options: Options, kind: str) -> Figures:
    """The first record after a start with 64 partitions, and the delay of records one by one."""
    with ground_of(options, kind, PARTITIONS) as ground:
        produce(ground.kafka, "resume", 64_000, PARTITIONS["resume"], options.size)
        ground.command("run", a_route("resume"), "--stop-at-end")
        produce(ground.kafka, "resume", 64_000, PARTITIONS["resume"], options.size)
        return {
            "first record": {"s": round(await _first_record_s(ground.kafka, ground.nats), 3)},
            "delay": await _delays_ms(
                ground.kafka, ground.nats, min(options.records, TAIL_RECORDS)
            ),
        }


async def profile(options: Options, kind: str) -> Figures:
    """The functions that cost most, as cProfile sees them."""
    records = options.records // 4
    topics = dict.fromkeys(("flights", "native"), options.partitions)
    with ground_of(options, kind, topics) as ground:
        produce(ground.kafka, "flights", records, options.partitions, options.size)
        kafka, nats_url, route = ground.kafka, ground.nats, Route(**a_route("flights"))
        bridge = Bridge(kafka=kafka, nats=nats_url, route=route)
        found = {
            "run": await asyncio.to_thread(_top, lambda: bridge.run(stop_at_end=True)),
            "verify": await asyncio.to_thread(
                _top, lambda: verify(kafka=kafka, nats=nats_url, route=route)
            ),
        }
        shared = a_route("native", shared=True)
        ground.command("run", shared, "--stop-at-end")  # makes the stream
        await publish(nats_url, "native", records, options)
        back = BackBridge(kafka=kafka, nats=nats_url, route=Route(**shared))
        found["back"] = await asyncio.to_thread(_top, lambda: back.run(stop_at_end=True))
        return found


def _top(start: Callable[[], Coroutine[Any, Any, object]]) -> Figures:
    """Shares in percent of the time of the threads that do this work, waiting apart."""
    profilers: list[cProfile.Profile] = []

    def begin(*_: object) -> None:
        profilers.append(cProfile.Profile())
        profilers[-1].enable()

    threading.setprofile(begin)  # what a new thread calls first
    try:
        thread = threading.Thread(target=lambda: uvloop.run(start()))
        thread.start()
        thread.join()
    finally:
        threading.setprofile(None)
    table = pstats.Stats(*profilers).get_stats_profile().func_profiles
    own = {name: it.tottime for name, it in table.items() if _WAITS.isdisjoint(_words(name))}
    whole = sum(own.values())
    most = sorted(own.items(), key=lambda it: -it[1])[:TOP]
    return {name: round(100 * took / whole) for name, took in most}


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name)


_WAITS = frozenset(
    {"run", "SimpleQueue", "consume", "flush", "poll", "_poll", "list_topics", "committed"}
    | {"commit_transaction", "init_transactions", "send_offsets_to_transaction"}
)
"""Words in the names of calls that mostly wait: the loop's, the queue's, the Kafka client's."""


async def _first_record_s(kafka: str, url: str) -> float:
    """From the start of a run's work to the first record it stores, positions to be read before."""
    bridge = Bridge(kafka=kafka, nats=url, route=Route(**a_route("resume")))
    started = time.perf_counter()
    running = asyncio.create_task(bridge.run())
    while not bridge.progress.records:  # noqa: ASYNC110 - bounded by the run
        await asyncio.sleep(0.002)
    took = time.perf_counter() - started
    bridge.stop()
    await running
    return took


async def _delays_ms(kafka: str, url: str, records: int) -> Figures:
    """From just before a record is given to the producer to its arrival at a subscriber."""
    client = await nats.connect(url)
    bridge = Bridge(kafka=kafka, nats=url, route=Route(**a_route("tail")))
    running = asyncio.create_task(bridge.run())
    delays: list[float] = []

    async def take(message: Any) -> None:
        delays.append((time.perf_counter_ns() - int(message.data)) / 1e6)

    await client.subscribe("tail.>", cb=take)
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 1})
    started = time.perf_counter()
    for n in range(records):
        producer.produce("tail", b"%d" % time.perf_counter_ns(), b"k%d" % n, partition=n % 4)
        if n % 50 == 0:
            producer.poll(0)
            await asyncio.sleep(max(0, started + n / TAIL_PER_S - time.perf_counter()))
    producer.flush(10)
    while len(delays) < records:  # noqa: ASYNC110 - all of them come
        await asyncio.sleep(0.01)
    bridge.stop()
    await running
    await client.close()
    delays.sort()
    return {f"p{n} ms": round(delays[len(delays) * n // 100], 1) for n in (50, 99)}
