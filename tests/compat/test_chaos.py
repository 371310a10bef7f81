"""A dozen faults on each server of the field: killed workers, leaders, coordinators and servers."""

import random
from pathlib import Path

import pytest
from nats.aio.client import Client

from tests.chaos.faults import Kind
from tests.chaos.group import run
from tests.helpers.require import MissingError
from tests.helpers.servers import Server
from tests.helpers.versions import VERSIONS, VersionServer, binary

pytestmark = [pytest.mark.real_server, pytest.mark.slow]
KILLS = (
    *(Kind.KILL,) * 4,
    *(Kind.KILL_LEADER,) * 3,
    *(Kind.STOP,) * 2,
    *(Kind.SERVER,) * 2,
    Kind.KILL_COORDINATOR,
)


class OneServer:
    """A server of one version as what a chaos run is aimed at."""

    replicas = 1

    def __init__(self, server: VersionServer) -> None:
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
        del client, stream
        return self._server

    async def restart(self, server: Server, client: Client, stream: str) -> None:
        del client, stream
        await server.restart()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_a_dozen_kills_lose_and_disorder_nothing(
    version: str, retention: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Chaos: a dozen kills, nothing lost, repeated or out of order"""
    if not any("compat" in str(one) for one in request.config.invocation_params.args):
        pytest.skip("ten runs of a minute each: make compat, or name tests/compat")
    try:
        binary(version)
    except MissingError as error:
        pytest.skip(str(error))
    seed = 1 if retention == "limits" else 2
    faults = list(KILLS)
    random.Random(seed).shuffle(faults)

    with VersionServer(version, tmp_path) as server:
        outcome = await run(OneServer(server), seed, faults)

    assert not outcome.failure
    assert (outcome.lost, outcome.violations, outcome.wrong_keys) == (0, 0, [])
    assert outcome.effects == outcome.messages > 0
    assert sum(outcome.faults.values()) == len(KILLS)
    assert outcome.moved_by_restarts == 0
