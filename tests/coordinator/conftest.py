"""Live tests of the coordinator run on each server in turn; names are their own, servers shared."""

import itertools
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client

from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

_numbers = itertools.count(1)


@pytest.fixture(
    scope="module", params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of its own for the module, so that what one module breaks no other sees."""
    kind = str(request.param)
    if kind == REAL:
        require.need("nats")
    with Server(kind, tmp_path_factory.mktemp(f"store-{kind}")) as opened:
        yield opened


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A connection to it."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
def name() -> str:
    """A name no other test of this run uses, legal for buckets, streams and groups."""
    return f"t{next(_numbers)}"
