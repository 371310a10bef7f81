"""The short form of `tests.chaos.bridge_kill`: a few kills on each server and in each mode."""

from pathlib import Path

import pytest

from tests.chaos.bridge_kill import chaos
from tests.helpers.require import need
from tests.helpers.servers import EMBEDDED, REAL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
@pytest.mark.parametrize("kind", [EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
async def test_a_bridge_and_a_server_killed_at_random_lose_and_repeat_nothing(
    tmp_path: Path, kind: str, shared: bool
) -> None:
    if kind == REAL:
        need("nats")

    outcome = await chaos(kind, tmp_path, kills=4, server_kills=1, shared=shared, seed=7)

    assert outcome.is_exact, outcome.difference
    assert outcome.kills_without_backlog == 0
    assert outcome.kills_in_flight >= 1
