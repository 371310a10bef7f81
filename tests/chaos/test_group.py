"""A group under fire keeps order and loses nothing; without its fence it does not.

The short form of ``python -m tests.chaos.group``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import Kind
from tests.chaos.ground import Layout
from tests.chaos.group import run, run_pullers
from tests.chaos.group_worker import PLAIN
from tests.chaos.target import CLUSTER, Target, opened
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL

pytestmark = pytest.mark.slow
_REAL = (
    pytest.param(REAL, marks=pytest.mark.real_server),
    pytest.param(CLUSTER, marks=pytest.mark.real_server),
)


@pytest.fixture(params=[EMBEDDED, *_REAL])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    kind = str(request.param)
    if kind != EMBEDDED:
        require.need("nats")
    with opened(kind, tmp_path) as servers:
        yield servers


async def test_every_effect_is_there_once_and_in_order_whatever_is_done_to_the_group(
    target: Target,
) -> None:
    faults = [
        *(Kind.KILL_LEADER, Kind.STOP, Kind.RESIZE, Kind.SERVER),
        *(Kind.CUT, Kind.BUCKET, Kind.STALL),
    ]

    outcome = await run(target, 1, faults)

    assert outcome.is_right, outcome
    assert outcome.messages == outcome.effects > 0
    assert outcome.moved_by_restarts == 0
    assert outcome.stale > 0  # else no zombie put the fence to the test


@pytest.mark.parametrize(
    ("target", "layout"),
    [
        (EMBEDDED, Layout.STREAMS),
        pytest.param(REAL, Layout.SOURCED, marks=pytest.mark.real_server),
        pytest.param(REAL, Layout.WORK_QUEUE, marks=pytest.mark.real_server),
    ],
    indirect=["target"],
)
async def test_so_it_is_in_every_layout(target: Target, layout: Layout) -> None:
    faults = [Kind.STOP, Kind.SERVER, Kind.KILL_LEADER]

    outcome = await run(target, 1, faults, layout=layout)

    assert outcome.is_right, outcome
    assert outcome.messages == outcome.effects > 0
    assert outcome.moved_by_restarts == 0


@pytest.mark.parametrize("target", [EMBEDDED], indirect=True)
async def test_without_the_fence_the_same_faults_do_harm(target: Target) -> None:
    outcome = await run(target, 1, [Kind.STOP] * 3, sink_kind=PLAIN)

    assert outcome.violations > 0


@pytest.mark.parametrize("target", [EMBEDDED], indirect=True)
async def test_two_pullers_of_one_message_at_a_time_are_no_group(target: Target) -> None:
    outcome = await run_pullers(target, 1, 3)

    assert outcome.violations > 0
