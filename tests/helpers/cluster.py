"""Three nats-server processes with JetStream as one cluster, whose leaders can be killed. ::

    with NatsCluster(tmp_path) as cluster:
        client = await nats.connect(cluster.urls)
        await cluster.until_ready(client)
        node = await cluster.leader_of(client, "ORDERS")
        node.kill()
        await node.restart()       # same name, ports and store

Routes are given, so every node knows from its start how many there are to be; their ports are
picked before the start, since each must be in all command lines. Nodes do not advertise each other:
a client that was given one address (a proxy's) stays with it.

What nats-server 2.15.1 does here: a first cluster has its meta leader some 5 s after the start; a
stream whose leader was killed answers nobody for 4 to 9 s (the election timeout of its raft group).
"""

import asyncio
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import nats.errors
from nats.aio.client import Client
from nats.js.errors import Error as JetStreamError, NotFoundError

from .servers import REAL, Server, ServerFailed

READY_TIMEOUT_S = 40.0
_POLL_S = 0.1


class NatsCluster:
    """Nodes ``n1``, ``n2`` … on 127.0.0.1; a context manager. ``store_dir`` stays afterwards."""

    def __init__(self, store_dir: Path | str, size: int = 3) -> None:
        ports = _free_ports(size)
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.nodes: dict[str, Server] = {}
        for number, port in enumerate(ports, 1):
            name = f"n{number}"
            arguments = (
                *("-n", name, "--cluster_name", "millstream-tests", "--no_advertise=true"),
                *("--cluster", f"nats://127.0.0.1:{port}", "--routes", routes),
            )
            self.nodes[name] = Server(REAL, Path(store_dir) / name, arguments=arguments)

    @property
    def urls(self) -> list[str]:
        """Every node's client URL, running or not; nodes keep theirs."""
        return [node.url for node in self.nodes.values()]

    @property
    def log(self) -> str:
        """What all nodes printed."""
        return "\n".join(f"--- {name}\n{node.log}" for name, node in self.nodes.items())

    def open(self) -> Self:
        """Start all nodes; they take clients, but see `until_ready`. Raises ServerFailed."""
        try:
            for node in self.nodes.values():
                node.open()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every node however it is."""
        for node in self.nodes.values():
            node.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def until_ready(self, client: Client) -> None:
        """Wait until JetStream answers: there is a meta leader. Raises ServerFailed."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                await client.jetstream(timeout=1).account_info()
            except (nats.errors.Error, JetStreamError):
                await asyncio.sleep(_POLL_S)
            else:
                return
        raise ServerFailed(f"no meta leader within {READY_TIMEOUT_S} s", self.log)

    async def leader_of(self, client: Client, stream: str) -> Server:
        """Wait until ``stream`` has a leader that runs, and return its node.

        Raises ServerFailed if there is none in time, NotFoundError without such a stream.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                info = await client.jetstream(timeout=1).stream_info(stream)
            except NotFoundError:
                raise
            except (nats.errors.Error, JetStreamError):
                info = None
            name = info.cluster.leader if info is not None and info.cluster is not None else None
            if name is not None and self.nodes[name].is_running:
                return self.nodes[name]
            await asyncio.sleep(_POLL_S)
        raise ServerFailed(f"stream {stream} has no leader within {READY_TIMEOUT_S} s", self.log)

    async def until_current(self, client: Client, stream: str) -> None:
        """Wait until every replica of ``stream`` has what its leader has. Raises ServerFailed."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                info = await client.jetstream(timeout=1).stream_info(stream)
            except (nats.errors.Error, JetStreamError):
                info = None
            if info is not None and info.cluster is not None and info.cluster.leader is not None:
                replicas = info.cluster.replicas or []
                if all(one.current and not one.offline for one in replicas):
                    return
            await asyncio.sleep(_POLL_S)
        raise ServerFailed(f"stream {stream} is not whole within {READY_TIMEOUT_S} s", self.log)

    async def clear(self, client: Client) -> None:
        """Delete every stream, however long it takes a node that was killed to be one of them.

        Raises ServerFailed.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            jetstream = client.jetstream()
            try:
                found = await jetstream.streams_info()
                for one in found:
                    await jetstream.delete_stream(str(one.config.name))
            except (nats.errors.Error, JetStreamError):
                await asyncio.sleep(_POLL_S)
                continue
            if not found:
                return
        raise ServerFailed(f"streams are left after {READY_TIMEOUT_S} s", self.log)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on now; all are held until all are known, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
