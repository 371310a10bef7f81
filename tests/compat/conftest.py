"""Each test runs on every server of the field that is in the cache."""

from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client

from tests.helpers.require import MissingError
from tests.helpers.versions import VERSIONS, VersionServer, binary


@pytest.fixture(scope="module", params=VERSIONS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VersionServer]:
    """One server for the module; skipped with the reason where it was not fetched."""
    version = str(request.param)
    try:
        binary(version)
    except MissingError as error:
        pytest.skip(str(error))
    with VersionServer(version, tmp_path_factory.mktemp(f"store-{version}")) as opened:
        yield opened


@pytest.fixture
async def client(server: VersionServer) -> AsyncIterator[Client]:
    """A connection to it."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for stream and group that no other test of the module has."""
    return f"t{abs(hash(request.node.nodeid)) % 10**8}"
