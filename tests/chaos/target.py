"""What a chaos run is aimed at: the embedded broker, nats-server, or three of them as a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from nats.aio.client import Client

from tests.helpers.cluster import NatsCluster
from tests.helpers.servers import EMBEDDED, REAL, Server

CLUSTER = "cluster"
KINDS = (EMBEDDED, REAL, CLUSTER)


class Target(Protocol):
    """Servers that can be killed and come back."""

    replicas: int

    @property
    def url(self) -> str:
        """All of its URLs, separated by commas."""

    @property
    def log(self) -> str:
        """What its servers printed."""

    async def until_ready(self, client: Client) -> None:
        """Wait until JetStream answers."""

    async def victim(self, client: Client, stream: str) -> Server:
        """The server to kill if ``stream`` is to suffer."""

    async def restart(self, server: Server, client: Client, stream: str) -> None:
        """Start a killed server again, and wait until ``stream`` is whole."""


class OneServer:
    """A server that is in no cluster."""

    replicas = 1

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def log(self) -> str:
        return self._server.log

    async def until_ready(self, client: Client) -> None:
        """It is, once it takes clients."""

    async def victim(self, client: Client, stream: str) -> Server:
        return self._server

    async def restart(self, server: Server, client: Client, stream: str) -> None:
        await server.restart()


class _Cluster:
    replicas = 3

    def __init__(self, cluster: NatsCluster) -> None:
        self._cluster = cluster

    @property
    def url(self) -> str:
        return ",".join(self._cluster.urls)

    @property
    def log(self) -> str:
        return self._cluster.log

    async def until_ready(self, client: Client) -> None:
        await self._cluster.until_ready(client)

    async def victim(self, client: Client, stream: str) -> Server:
        return await self._cluster.leader_of(client, stream)

    async def restart(self, server: Server, client: Client, stream: str) -> None:
        await server.restart()
        await self._cluster.until_current(client, stream)


@contextmanager
def opened(kind: str, store: Path) -> Iterator[Target]:
    """Servers of one kind, which end with the block."""
    if kind == CLUSTER:
        with NatsCluster(store) as cluster:
            yield _Cluster(cluster)
    else:
        with Server(kind, store) as server:
            yield OneServer(server)
