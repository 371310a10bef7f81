"""Moves by agreement, restarts that move nothing, and flights followed by workers that come and go.

The short forms of ``python -m tests.chaos.moves``, ``rolling``, ``scale`` and ``flights``.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js.api import RetentionPolicy

from millstream.demo.flights import read_flights
from tests.chaos import flights
from tests.chaos.moves import measure
from tests.chaos.rolling import roll
from tests.chaos.scale import start
from tests.chaos.target import Target, opened
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL

pytestmark = pytest.mark.slow
embedded = pytest.mark.parametrize("target", [EMBEDDED], indirect=True)
real = pytest.mark.parametrize(
    "target", [pytest.param(REAL, marks=pytest.mark.real_server)], indirect=True
)


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    kind = str(request.param)
    if kind != EMBEDDED:
        require.need("nats")
    with opened(kind, tmp_path) as servers:
        yield servers


@real
async def test_a_move_by_agreement_takes_nothing_away_and_handles_nothing_twice(
    target: Target,
) -> None:
    moves = await measure(target, 3, 1)

    assert moves.moved
    assert moves.lost == 0
    assert moves.called_twice == 0


@embedded
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
async def test_a_rolling_restart_of_members_with_names_moves_nothing(
    target: Target, sent: signal.Signals
) -> None:
    result = await roll(target, sent, restarts=2)

    assert result.moved == 0
    assert result.moves_seen == []
    assert result.unhandled == 0


@real
async def test_a_group_of_many_partitions_comes_up_and_handles_each_once(target: Target) -> None:
    *_, calls = await start(target, 200, 3, RetentionPolicy.LIMITS)

    assert calls == 200


@embedded
async def test_followed_aircraft_are_where_the_file_says_whoever_came_and_went(
    target: Target,
) -> None:
    year = await flights.run(target, read_flights(limit=6000), 1, pause_s=0.3)

    assert year.is_right, year
    assert year.changes > 0
    assert year.resized_to is not None
