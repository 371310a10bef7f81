"""One embedded broker for all tests of the command line, and a client on it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from tests.helpers.servers import EMBEDDED, Server


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store: Path = tmp_path_factory.mktemp("store")
    with Server(EMBEDDED, store) as server:
        yield server


@pytest.fixture
async def client(broker: Server) -> AsyncIterator[Client]:
    connection = await nats.connect(broker.url)
    try:
        yield connection
    finally:
        await connection.close()
