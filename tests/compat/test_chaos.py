"""A dozen faults on each server of the field: killed workers, leaders, coordinators and servers."""

import random
from pathlib import Path

import pytest

from tests.chaos.faults import Kind
from tests.chaos.ground import Layout
from tests.chaos.group import run
from tests.chaos.target import OneServer
from tests.helpers.require import MissingError
from tests.helpers.versions import VERSIONS, VersionServer, binary

pytestmark = [pytest.mark.real_server, pytest.mark.slow]
KILLS = (
    *(Kind.KILL,) * 4,
    *(Kind.KILL_LEADER,) * 3,
    *(Kind.STOP,) * 2,
    *(Kind.SERVER,) * 2,
    Kind.KILL_COORDINATOR,
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("seed", "layout"), [(1, Layout.TOKEN), (2, Layout.WORK_QUEUE)])
async def test_a_dozen_kills_lose_and_disorder_nothing(
    version: str, seed: int, layout: Layout, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Chaos: a dozen kills, nothing lost, repeated or out of order"""
    if not any("compat" in str(one) for one in request.config.invocation_params.args):
        pytest.skip("ten runs of a minute each: make compat, or name tests/compat")
    try:
        binary(version)
    except MissingError as error:
        pytest.skip(str(error))
    faults = list(KILLS)
    random.Random(seed).shuffle(faults)

    with VersionServer(version, tmp_path) as server:
        outcome = await run(OneServer(server), seed, faults, layout=layout)

    assert not outcome.failure
    assert (outcome.lost, outcome.violations, outcome.wrong_keys) == (0, 0, [])
    assert outcome.effects == outcome.messages > 0
    assert sum(outcome.faults.values()) == len(KILLS)
    assert outcome.moved_by_restarts == 0
