"""The short form of `tests.chaos.bridge_kill` on the embedded broker: a few kills in each mode.

On nats-server the storms of `test_bridge_storm` kill bridge and server too, two bridges at a time.
"""

from pathlib import Path

import pytest

from tests.chaos.bridge_kill import chaos
from tests.helpers.servers import EMBEDDED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_a_bridge_and_a_server_killed_at_random_lose_and_repeat_nothing(
    tmp_path: Path, shared: bool
) -> None:
    outcome = await chaos(EMBEDDED, tmp_path, kills=4, server_kills=1, shared=shared, seed=7)

    assert outcome.is_exact, outcome.difference
    assert outcome.kills_without_backlog == 0
    assert outcome.kills_in_flight >= 1
