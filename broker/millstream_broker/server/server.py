"""A running server: the edge that owns sockets, clocks, chance and timers.

One loop round: reads go to the message core as they come (`ClientSocket`), outputs gather, and
once per round `_end_round` writes each of them and asks JetStream for its next deadline.
JetStream is a pure object: it gets messages through the account, ``advance(now)`` when its
deadline comes, and nothing else.

A `Broker` lives in the caller's loop; the command line and tests use the same object.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import string
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..auth.credentials import Credentials
from ..errors import ClientError, StartError, TooManyConnections
from ..message import Instant
from ..protocol import core as message_core, encoder
from ..protocol.core import Connection
from ..protocol.parser import Limits
from ..routing.account import Account
from .connection import ClientSocket
from .files import PublishedFiles
from .monitor import Monitor
from .options import API_LEVEL, VERSION, ServerOptions, python_version

if TYPE_CHECKING:
    from .jetstream import JetStreamDriver

logger = logging.getLogger("millstream.broker")

DRAIN_S = 0.5
"""Clients that do not take their last bytes in this time are cut off at the end."""
STALL_S = 0.005
_WILDCARD_HOSTS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound


class Broker:
    """A NATS server in the running loop. ``async with Broker(port=0) as broker: broker.url``.

    Port 0 or -1 takes a free one. JetStream without a ``store_dir`` keeps everything in memory,
    also streams that ask for file storage: nothing is left when it closes.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        jetstream: bool = False,
        store_dir: Path | str | None = None,
        options: ServerOptions | None = None,
    ) -> None:
        """``options`` replaces all other arguments."""
        self.options = options or ServerOptions(
            host=host,
            port=port,
            jetstream=jetstream,
            store_dir=None if store_dir is None else Path(store_dir),
        )
        self.server_id = "N" + _random_id(55)
        self.server_name = self.options.server_name or self.server_id
        self.credentials = Credentials(
            user=self.options.user, password=self.options.password, token=self.options.token
        )
        self.account = Account(random.randrange)
        self.started_wall_s = 0.0
        self.total_connections = 0
        self.slow_consumers = 0
        self.stale_connections = 0
        self._dirty: list[Connection] = []
        self._clients: dict[int, ClientSocket] = {}
        self._readers: list[ClientSocket] = []
        self._next_client_id = 0
        self._all_gone = asyncio.Event()
        self._round_is_due = False
        self._listener: asyncio.Server | None = None
        self._monitor: Monitor | None = None
        self._files = PublishedFiles()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._port = 0
        self.jetstream: JetStreamDriver | None = None

    # Life cycle

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the store, then the port. Raises StartError and leaves nothing behind."""
        self._loop = asyncio.get_running_loop()
        self.started_wall_s = time.time()
        try:
            if self.options.jetstream:
                self._start_jetstream()
            await self._listen()
            self._files.publish(self.options, self.describe())
            self._end_round()
        except BaseException:
            await self.close()
            raise
        logger.info(
            "Listening for client connections on %s:%d",
            self.options.host,
            self._port,
            extra={"event": "listening"},
        )
        logger.info("Server is ready", extra={"event": "ready"})

    async def _listen(self) -> None:
        options = self.options
        port = max(options.port, 0)
        # One address, so that a free port is one port: "localhost" may have two.
        host = "127.0.0.1" if options.host == "localhost" else options.host or None
        try:
            self._listener = await self.loop.create_server(
                lambda: ClientSocket(self), host, port, backlog=1024
            )
        except OSError as error:
            where = f"client port {options.host}:{port}"
            raise StartError(where, _reason(error)) from error
        self._port = self._listener.sockets[0].getsockname()[1]
        if options.monitor_port is not None:
            self._monitor = Monitor(self)
            await self._monitor.start(host, max(options.monitor_port, 0))

    async def close(self) -> None:
        """End everything in order: no new clients, JetStream, then the clients; bounded in time."""
        if self._listener is not None:
            self._listener.close()
        if self._monitor is not None:
            await self._monitor.close()
            self._monitor = None
        if self.jetstream is not None:
            self.jetstream.stop()
            self.jetstream = None
        if self._loop is not None:
            self._end_round()
        for client in list(self._clients.values()):
            client.close()
        if self._clients:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._all_gone.wait()
        for client in list(self._clients.values()):
            client.abort()
        if self._listener is not None:
            await self._listener.wait_closed()
            self._listener = None
        self._files.remove()

    # What others may ask

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it runs in."""
        assert self._loop is not None, "not started"
        return self._loop

    @property
    def port(self) -> int:
        """The client port in use."""
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{self._reachable_host()}:{self._port}"

    @property
    def monitor_url(self) -> str | None:
        """Where monitoring answers, if anywhere."""
        if self._monitor is None:
            return None
        return f"http://{self._reachable_host()}:{self._monitor.port}"

    @property
    def connection_count(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    @property
    def has_jetstream(self) -> bool:
        """Whether JetStream runs."""
        return self.jetstream is not None

    def _reachable_host(self) -> str:
        host = self.options.host
        if host in _WILDCARD_HOSTS:
            return "127.0.0.1"
        return f"[{host}]" if ":" in host else host

    def describe(self) -> dict[str, object]:
        """What the ready file says: process id and URLs."""
        monitor = self.monitor_url
        return {
            "pid": os.getpid(),
            "url": self.url,
            **({} if monitor is None else {"monitor_url": monitor}),
        }

    def info(self, client_id: int, client_ip: str, *, is_first: bool) -> bytes:
        """INFO for one client; the second one says what it was bound to."""
        options = self.options
        fields: dict[str, object] = {
            "server_id": self.server_id,
            "server_name": self.server_name,
            "version": VERSION,
            "proto": 1,
            "git_commit": "millstream",
            "go": python_version(),
            "host": options.host,
            "port": self._port,
            "headers": True,
            "max_payload": options.max_payload,
        }
        if self.credentials.is_required:
            fields["auth_required"] = True
        if self.has_jetstream:
            fields["jetstream"] = True
        fields["client_id"] = client_id
        fields["client_ip"] = client_ip
        if not is_first:
            fields["connect_info"] = True
            fields["remote_account"] = "$G"
        fields["api_lvl"] = API_LEVEL
        return encoder.info(fields)

    # What clients call

    def now(self) -> Instant:
        """Read both clocks."""
        return Instant(time.monotonic(), time.time_ns())

    def new_connection(self) -> Connection:
        """Make the message core's side of a client."""
        self._next_client_id += 1
        options = self.options
        return Connection(
            self.account,
            self._dirty,
            client_id=self._next_client_id,
            limits=Limits(options.max_control_line, options.max_payload),
            max_pending=options.max_pending,
        )

    def admit(self, client: ClientSocket) -> ClientError | None:
        """Take a client in, or say why not."""
        if len(self._clients) >= self.options.max_connections:
            return TooManyConnections()
        self.total_connections += 1
        self._clients[client.core.client_id] = client
        return None

    def forget(self, client: ClientSocket) -> None:
        """A client has gone."""
        self._clients.pop(client.core.client_id, None)
        if not self._clients:
            self._all_gone.set()
        self.end_round_soon(None)

    def end_round_soon(self, reader: ClientSocket | None) -> None:
        """Write outputs once this round's reads are through; ``reader`` sent some of them."""
        if reader is not None:
            self._readers.append(reader)
        if not self._round_is_due:
            self._round_is_due = True
            self.loop.call_soon(self._end_round)

    def _end_round(self) -> None:
        self._round_is_due = False
        is_crowded = False
        dirty = self._dirty
        while dirty:
            waiting = dirty.copy()
            dirty.clear()
            for connection in waiting:
                client = self._clients.get(connection.client_id)
                if client is None:
                    connection.chunks.clear()
                elif client.flush():
                    is_crowded = True
        if is_crowded:
            # A fast publisher waits a moment for the slowest reader, as nats-server has it.
            for reader in self._readers:
                reader.stall(STALL_S)
        self._readers.clear()
        if self.jetstream is not None:
            self.jetstream.schedule()

    def _start_jetstream(self) -> None:
        from ..jetstream.model import Identity  # noqa: PLC0415 - not needed without -js
        from .jetstream import JetStreamDriver  # noqa: PLC0415 - not needed without -js

        self.jetstream = JetStreamDriver(
            self.account,
            self.options,
            loop=self.loop,
            identity=Identity(server_id=self.server_id, server_name=self.server_name),
            now=self.now,
            flush=self._end_round,
        )


def core_name() -> str:
    """Which message core runs."""
    return message_core.NAME


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _random_id(length: int) -> str:
    letters = string.ascii_uppercase + "234567"
    return "".join(secrets.choice(letters) for _ in range(length))
