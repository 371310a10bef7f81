"""The port on a `MemoryServer`: what is under way takes a moment, and can be cut off."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from ..errors import StreamMissing
from ..model import MemberSettings
from ..partitioning.key import KeyRule
from ..ports import (
    Command,
    Disconnected,
    Failed,
    Failure,
    Happening,
    KeyChanged,
    Listen,
    Listener,
    Reconnected,
    Reply,
    Spawn,
    Watch,
    WatchCaughtUp,
)
from .client import MemoryClient

TICK_S = 1.0
"""As often as a server sends idle heartbeats."""


class Host(Protocol):
    """What a port asks of its server."""

    @property
    def streams(self) -> Mapping[str, object]:
        """The streams by name."""

    def attach(self, client: MemoryClient) -> None:
        """Take a client in."""

    def detach(self, client: MemoryClient) -> None:
        """Drop a client."""

    def execute(self, client: MemoryClient, command: Command) -> None:
        """Carry out a command of a client that is attached."""

    def delay_s(self) -> float | None:
        """How long the next thing is under way; None: no time at all."""

    def tick_if_due(self) -> None:
        """Do what is due by the clock."""


class _PortClient(MemoryClient):
    """A client whose connection is a `MemoryPort`."""

    port: "MemoryPort"

    def cut(self, duration_s: float) -> None:
        self.port.cut(duration_s)


class MemoryPort:
    """A `Port` on a `MemoryServer`, on the running loop and its clock."""

    def __init__(self, server: Host, settings: MemberSettings, rule: KeyRule | None) -> None:
        self._server = server
        self._client = _PortClient(settings, rule, self._send)
        self._client.port = self
        self._is_open = False
        self._is_connected = False
        self._connection = 0
        self._listens: Listen | None = None
        """A subscription, which a client makes again when it is back."""
        self._num_watches = 0
        """So many times it asked to watch."""
        self._outstanding: set[int] = set()
        self._up_at = 0.0
        self._down_at = 0.0

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Attach; raises StreamMissing."""
        config = self._client.settings.config
        for number in range(config.partitions if config.stream is not None else 0):
            name = (config.stream or "").replace("{partition}", str(number))
            if name not in self._server.streams:
                raise StreamMissing(name)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._is_open = self._is_connected = True
        self._server.attach(self._client)
        spawn(self._keep_time(), "clock")

    def execute(self, command: Command) -> None:
        """Carry the command out with the loop's next round, or after a moment."""
        id_: int | None = getattr(command, "id", None)
        if isinstance(command, Listen):
            self._listens = command
        if not self._is_connected:
            if id_ is not None:
                failed = Failed(id=id_, reason=Failure.DISCONNECTED)
                self._loop.call_soon(self._hand_over, failed, self._connection)
            return
        if id_ is not None:
            self._outstanding.add(id_)
        if isinstance(command, Watch):
            self._num_watches += 1
        self._up_at = self._arrange(self._up_at, self._execute, command)

    async def close(self) -> None:
        """Detach."""
        self._is_open = False
        self._server.detach(self._client)

    def cut(self, duration_s: float) -> None:
        """Lose the connection and what is under way; it is back after ``duration_s``."""
        if not self._is_connected or not self._is_open:
            return
        self._is_connected = False
        self._connection += 1
        self._num_watches = self._client.num_watches
        self._server.detach(self._client)
        failed, self._outstanding = sorted(self._outstanding), set()
        self._loop.call_soon(self._hand_over, Disconnected(), self._connection)
        for id_ in failed:
            lost = Failed(id=id_, reason=Failure.DISCONNECTED)
            self._loop.call_soon(self._hand_over, lost, self._connection)
        self._loop.call_later(duration_s, self._come_back)

    def _come_back(self) -> None:
        if self._is_open:
            self._is_connected = True
            self._server.attach(self._client)
            if self._listens is not None:
                self._server.execute(self._client, self._listens)
            self._hand_over(Reconnected(), self._connection)

    def _arrange(self, not_before: float, action: Callable[..., None], event: object) -> float:
        """Let something happen after the moment it is under way, in order; returns when."""
        delay_s = self._server.delay_s()
        if delay_s is None:
            self._loop.call_soon(action, event, self._connection)
            return not_before
        at = max(not_before, self._loop.time() + delay_s)
        self._loop.call_at(at, action, event, self._connection)
        return at

    def _execute(self, command: Command, connection: int) -> None:
        if self._is_open and self._is_connected and connection == self._connection:
            self._server.execute(self._client, command)

    def _send(self, event: Happening | Reply) -> None:
        action: Callable[..., None] = self._hand_over
        if isinstance(event, KeyChanged | WatchCaughtUp):
            action = partial(self._hand_over_watched, self._client.num_watches)
        self._down_at = self._arrange(self._down_at, action, event)

    def _hand_over_watched(
        self, watch: int, event: KeyChanged | WatchCaughtUp, connection: int
    ) -> None:
        if watch == self._num_watches:
            self._hand_over(event, connection)

    def _hand_over(self, event: Happening | Reply, connection: int) -> None:
        if self._is_open and connection == self._connection:
            self._outstanding.discard(getattr(event, "id", 0))
            self._listener(event)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._server.tick_if_due()
