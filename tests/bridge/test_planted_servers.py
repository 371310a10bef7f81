"""Planted differences on servers: one in each partition of a topic, found by one proof."""

import random
from collections.abc import Sequence

from millstream_bridge import Record, verify
from millstream_bridge.moving.chain import ChainPublisher
from tests.bridge.moves import a_route, move_all, some_records
from tests.bridge.planted import PLANTS
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS, EACH = 27, 20


class Planter(ChainPublisher):
    """Plants a difference into each partition, of every kind in turn, once all has been read."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._held: list[Record] = []
        self.planted: dict[int, int] = {}

    async def send(self, records: Sequence[Record]) -> None:
        self._held += records
        if len(self._held) < PARTITIONS * EACH:
            return
        for p in range(PARTITIONS):
            own = [it for it in self._held if it.kafka_partition == p]
            kind = list(PLANTS)[p % len(PLANTS)]
            spoiled, _, self.planted[p] = PLANTS[kind](own, random.Random(p))
            await super().send(spoiled)


async def test_a_difference_in_every_partition_is_found_in_every_one(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, some_records(PARTITIONS * EACH, PARTITIONS))
    made: list[Planter] = []

    def make(*arguments: object) -> Planter:
        made.append(Planter(*arguments))
        return made[-1]

    await move_all(mock.bootstrap, nats_server.url, a_route(topic), make_publisher=make)
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))

    found = {p: it.difference.offset for p, it in proof.partitions.items() if it.difference}
    assert len(made[-1].planted) == PARTITIONS
    assert found == made[-1].planted


async def test_where_nothing_is_planted_every_partition_is_equal(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, some_records(PARTITIONS * EACH, PARTITIONS))

    await move_all(mock.bootstrap, nats_server.url, a_route(topic))
    proof = await verify(kafka=mock.bootstrap, nats=nats_server.url, route=a_route(topic))

    assert proof.equal, proof.difference
    assert proof.records == PARTITIONS * EACH
