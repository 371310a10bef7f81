"""Every test here runs twice: on the embedded broker and on the real nats-server.

The two processes live for the whole run; each test gets a connection and names of its own. Where
the servers must differ the test carries ``@pytest.mark.differs("embedded", "why")`` (or "real"): on
that server it is expected to fail, and it is an error if it does not (unless ``always=False`` says
that chance decides).
"""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import nats
import pytest
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext

from tests.conformance.client import Client
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server, ServerFailed

_numbers = itertools.count(1)


class OpenServer(Protocol):
    """Starts a server of the test's kind with a store and flags of its own."""

    def __call__(
        self, *, store_dir: Path | None = None, arguments: tuple[str, ...] = ()
    ) -> AbstractAsyncContextManager[Server]: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        'differs(server, reason, always=True): on "embedded" or "real" the test must fail, and why',
    )


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which server the test runs on; asked for only by the fixtures below."""
    chosen = str(request.param)
    if chosen == REAL:
        require.need("nats")
    for mark in request.node.iter_markers("differs"):
        server, reason = mark.args
        if server == chosen:
            strict = mark.kwargs.get("always", True)
            request.node.add_marker(pytest.mark.xfail(reason=reason, strict=strict))
    return chosen


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """The servers of the run by kind, started when first asked for."""
    servers: dict[str, Server] = {}

    def by_kind(kind: str) -> Server:
        if kind not in servers:
            servers[kind] = Server(kind, tmp_path_factory.mktemp(f"store-{kind}"))
        if not servers[kind].is_running:
            servers[kind].open()
        return servers[kind]

    yield by_kind
    for server in servers.values():
        server.close()


@pytest.fixture
def server(kind: str, shared_servers: Callable[[str], Server]) -> Iterator[Server]:
    """The run's server of this kind. A test that brings it down fails; the next gets a new one."""
    shared = shared_servers(kind)
    yield shared
    if not shared.is_running:
        raise ServerFailed(f"the test brought the {kind} server down", shared.log)


@pytest.fixture
def open_server(kind: str, tmp_path: Path) -> OpenServer:
    """For tests about restarts and limits: a server that is the test's alone."""

    @asynccontextmanager
    async def opened(
        *, store_dir: Path | None = None, arguments: tuple[str, ...] = ()
    ) -> AsyncIterator[Server]:
        with Server(kind, store_dir or tmp_path / "store", arguments=arguments) as server:
            yield server

    return opened


@pytest.fixture
def name() -> str:
    """A stream name (and first subject token) no other test uses."""
    return f"T{next(_numbers)}"


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A connection of the suite's own client; the streams it made go when the test ends."""
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(Client.open(server.port))
        yield opened
        if not server.is_running or not opened.made_streams:
            return
        cleaner = await stack.enter_async_context(Client.open(server.port))
        for stream in opened.made_streams:
            await cleaner.api(f"STREAM.DELETE.{stream}")


@pytest.fixture
async def nc(server: Server) -> AsyncIterator[NatsClient]:
    """A nats-py connection."""
    connection = await nats.connect(server.url, allow_reconnect=False)
    yield connection
    await connection.close()


@pytest.fixture
def js(nc: NatsClient) -> JetStreamContext:
    """nats-py's JetStream context."""
    return nc.jetstream()
