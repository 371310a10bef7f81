"""The way back's client may hang where a broker is gone: it is left, and a new one goes on.

librdkafka's mock tells of the hang itself, but keeps no positions: that whoever is left loses and
repeats nothing is seen on a real Kafka.
"""

import asyncio
import ctypes
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from millstream_bridge import MockKafka
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.errors import SessionLost
from millstream_bridge.kafka import sink as kafka_sink
from millstream_bridge.kafka.sink import KafkaSink, Position
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import back, fill, natives, publish
from tests.bridge.topics import all_records
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

POSITIONS = {0: Position("FLIGHTS", "2026-01-01T00:00:00Z", 5)}


class TwoBrokers(MockKafka):
    """A topic on broker 1, where transactions are coordinated too; the group's is to be chosen."""

    def __init__(self, topic: str, name: str) -> None:
        super().__init__({topic: 1}, brokers=2)
        self._name = name.encode()
        self.set_leader(topic, 0, 1)
        self._coordinate(b"transaction", 1)
        self.coordinate_group(2)

    def coordinate_group(self, broker: int) -> None:
        self._coordinate(b"group", broker)

    def _coordinate(self, kind: bytes, broker: int) -> None:
        call = self._library.rd_kafka_mock_coordinator_set
        assert call(ctypes.c_void_p(self._cluster), kind, self._name, broker) == 0
        self._pause.wait(0.01)

    def end_broker(self, broker: int) -> None:
        call = self._library.rd_kafka_mock_broker_set_down
        assert call(ctypes.c_void_p(self._cluster), broker) == 0
        self._pause.wait(0.01)


@pytest.fixture
def brokers(topic: str) -> Iterator[TwoBrokers]:
    cluster = TwoBrokers(topic, f"millstream-back-{topic}")
    with cluster:
        yield cluster


async def test_a_client_that_hangs_is_left_and_the_next_one_goes_on(
    brokers: TwoBrokers, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = KafkaSink(brokers.bootstrap, topic, f"millstream-back-{topic}")
    try:
        async with asyncio.timeout(30):
            await sink.open([0])
            await sink.store([], POSITIONS)
            brokers.end_broker(2)
            monkeypatch.setattr(kafka_sink, "STORE_S", 1)
            with pytest.raises(SessionLost, match="has not ended it"):
                await sink.store([], POSITIONS)
            assert not sink.is_open

            monkeypatch.undo()
            brokers.coordinate_group(1)
            await sink.open([0])
            await sink.store([], POSITIONS)
            assert sink.is_open
    finally:
        await sink.close()


async def test_it_is_told_to_stop_while_its_client_hangs(
    server: Server, brokers: TwoBrokers, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_sink, "STORE_S", None)
    route = a_route(topic, shared=True)
    await move_all(brokers.bootstrap, server.url, route)
    bridge = BackBridge(kafka=brokers.bootstrap, nats=server.url, route=route)
    running = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.sessions > 0)
    brokers.end_broker(2)
    begun = threading.Event()
    store = KafkaSink._store

    def note(sink: KafkaSink, *transaction: Any) -> None:
        begun.set()
        store(sink, *transaction)

    monkeypatch.setattr(KafkaSink, "_store", note)
    await publish(server, range(5), partitions=1)
    await until(begun.is_set)

    bridge.stop()

    async with asyncio.timeout(30):
        report = await running
    assert (report.ended, report.records) == ("stopped", 0)


@pytest.mark.kafka
async def test_a_client_that_is_left_at_any_moment_loses_and_repeats_nothing(
    server: Server, a_real_kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on by itself meanwhile, up to its commit if nobody has fenced it off by then."""
    route = await fill(a_real_kafka, server, topic)
    patience = itertools.cycle([30, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015])
    store = KafkaSink.store
    given_up = 0

    async def store_or_give_up(sink: KafkaSink, *transaction: Any) -> None:
        nonlocal given_up
        monkeypatch.setattr(kafka_sink, "STORE_S", next(patience))
        try:
            await store(sink, *transaction)
        except SessionLost as lost:
            given_up += "has not ended it" in str(lost)
            raise

    monkeypatch.setattr(KafkaSink, "store", store_or_give_up)

    for first in range(0, 1_500, 100):
        await publish(server, range(first, first + 100))
        report = await back(a_real_kafka, server, route)
        assert report.ended == "end"

    returned = natives(await asyncio.to_thread(all_records, a_real_kafka, topic), route)
    assert sorted(int((it.value or b"").split()[1]) for it in returned) == [*range(1_500)]
    assert given_up > 0
