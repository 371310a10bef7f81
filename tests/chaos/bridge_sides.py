"""The two sides of a bridge in a storm: NATS and Kafka, one node of each or three, and their kills.

``cluster`` is three nodes with three replicas of everything, and then it is a leader that is
killed: that of a stream, or of one of the topic's partitions.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nats
from nats.aio.client import Client

from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import MOCK, REAL as REAL_KAFKA, Kafka, KafkaNode, mock_kafka
from tests.helpers.kafka_cluster import KafkaCluster
from tests.helpers.servers import Server

CLUSTER = "cluster"
PAUSE_S_MAX = 0.6
LEADERLESS_S_MAX = 6.0


class Sides:
    """Both, with a topic; made by `open`. ``chance`` chooses who is killed and for how long."""

    def __init__(self, folder: Path, topic: str, partitions: int, chance: random.Random) -> None:
        self._folder = folder
        self.topic, self.partitions = topic, partitions
        self._random = chance
        self.bootstrap = ""
        self._node: KafkaNode | None = None
        self._brokers: KafkaCluster | None = None
        self._servers: list[Server] = []
        self._cluster: NatsCluster | None = None

    @property
    def urls(self) -> list[str]:
        """Every NATS server, running or not."""
        return [server.url for server in self._servers]

    @property
    def replicas(self) -> int:
        """How many a stream is to have."""
        return len(self._servers)

    async def open(self, nats: str, kafka: str, stack: AsyncExitStack) -> None:
        """Start everything; the stack ends it."""
        await self._open_kafka(kafka, stack)
        if nats == CLUSTER:
            self._cluster = stack.enter_context(NatsCluster(self._folder / "nats"))
            self._servers = list(self._cluster.nodes.values())
            async with self.client() as client:
                await self._cluster.until_ready(client)
        else:
            self._servers = [stack.enter_context(Server(nats, self._folder / "nats"))]

    async def _open_kafka(self, kind: str, stack: AsyncExitStack) -> None:
        if kind == CLUSTER:
            self._brokers = await asyncio.to_thread(KafkaCluster, self._folder)
            stack.callback(self._brokers.close)
            await asyncio.to_thread(self._brokers.open)
            self.bootstrap = self._brokers.bootstrap
            await asyncio.to_thread(self._brokers.create_topic, self.topic, self.partitions)
            return
        if kind == MOCK:
            kafka = stack.enter_context(mock_kafka())
        else:
            (self._folder / "kafka").mkdir()
            self._node = await asyncio.to_thread(KafkaNode, self._folder / "kafka")
            stack.callback(self._node.kill)
            await asyncio.to_thread(self._node.start)
            kafka = Kafka(kind=REAL_KAFKA, bootstrap=self._node.bootstrap)
        self.bootstrap = kafka.bootstrap
        await asyncio.to_thread(kafka.create_topic, self.topic, self.partitions)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection that bears with faults."""

        async def unheard(_: Exception) -> None:
            return None

        client = await nats.connect(
            self.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=unheard
        )
        try:
            yield client
        finally:
            with contextlib.suppress(Exception):
                await client.close()

    async def kill_server(self, stream: str) -> None:
        """Kill the NATS server, or the stream's leader, and start it again after a pause."""
        server = self._servers[0]
        if self._cluster is not None:
            async with self.client() as client:
                server = await self._cluster.leader_of(client, stream)
        server.kill()
        await asyncio.sleep(self._random.uniform(0, PAUSE_S_MAX))
        await server.restart()
        if self._cluster is not None:
            async with self.client() as client:
                await self._cluster.until_current(client, stream)

    async def kill_kafka(self) -> None:
        """Kill Kafka, or a partition's leader, and start it again after a pause."""
        if self._brokers is not None:
            partition = self._random.randrange(self.partitions)
            leader = await asyncio.to_thread(self._brokers.leader, self.topic, partition)
            leader.kill()
            await asyncio.sleep(self._random.uniform(0, LEADERLESS_S_MAX))
            leader.start()
            await asyncio.to_thread(self._brokers.await_whole, self.topic)
            return
        assert self._node is not None
        await asyncio.to_thread(self._node.kill)
        await asyncio.sleep(self._random.uniform(0, PAUSE_S_MAX))
        await asyncio.to_thread(self._node.start)
