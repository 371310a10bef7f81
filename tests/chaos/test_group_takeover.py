"""Workers as processes, killed, stopped and woken; the server killed under them.

The short form of ``python -m tests.chaos.takeover`` and ``python -m tests.chaos.restart``.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from millstream_coordinator import KvSink
from tests.chaos.chain import Chain, decode, expected
from tests.chaos.group_cluster import KEYS, Cluster, cluster
from tests.chaos.restart import restart_under_load
from tests.chaos.takeover import PARTITIONS, WORKERS, Takeovers, measure
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

KILLS = 6
MESSAGES = 1500
pytestmark = pytest.mark.slow


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    if request.param == REAL:
        require.need("nats")
    with Server(str(request.param), tmp_path) as opened:
        yield opened


async def test_killed_workers_are_found_by_probes_and_replaced(server: Server) -> None:
    results = Takeovers()

    await measure(server.url, KILLS, 1, results)

    assert results.kills == KILLS
    assert len(results.moved) == KILLS * PARTITIONS // WORKERS
    # A busy machine may probe so late that silence is noticed first, but not each time.
    assert len(results.verdicts) == KILLS
    assert "no_responders" in results.verdicts


async def _chains(url: str, bucket: str) -> dict[str, Chain]:
    """What the workers' sink holds."""
    client = await nats.connect(url)
    try:
        sink = await KvSink.open(client, bucket)
        return {f"k{key}": decode(await sink.value(f"k{key}".encode())) for key in range(KEYS)}
    finally:
        await client.close()


def _expected(messages: int) -> dict[str, Chain]:
    numbers = range(messages)
    return {
        f"k{key}": expected((one + 1, b"%d" % one) for one in numbers if one % KEYS == key)
        for key in range(KEYS)
    }


def _num_effects(group: Cluster) -> int:
    return sum(len(seqs) for seqs in group.done.values())


async def test_a_worker_stopped_past_its_timeout_wakes_to_refusals_and_no_harm(
    server: Server,
) -> None:
    arguments = ("--handler-ms", "30", "--sink", "chains")
    async with cluster(server.url, "zombie", 4, *arguments) as group:
        for _ in range(3):
            await group.start()
        await group.publish(0, MESSAGES)
        await group.until_balanced()
        victim = group.running()[0]
        await group.until(lambda: len(victim.calls) > 20, 60, "the victim is at work")

        os.kill(victim.pid, signal.SIGSTOP)
        await group.until_view(
            lambda view: all(one.owner != victim.member for one in view.partitions.values()),
            60,
            "the partitions went to others",
        )
        os.kill(victim.pid, signal.SIGCONT)

        await group.until_balanced()
        await group.until(lambda: _num_effects(group) >= MESSAGES, 60, "everything has its effect")
        assert await _chains(server.url, "chains") == _expected(MESSAGES)
        await group.until(
            lambda: any(line.kind == "PartitionLost" for line in victim.lines), 60, "it was told"
        )


async def test_a_server_killed_and_restarted_moves_no_partition(server: Server) -> None:
    moved = await restart_under_load(server, restarts=2)

    assert moved == [0, 0]


async def test_a_worker_that_is_asked_to_end_gives_its_partitions_back(server: Server) -> None:
    async with cluster(server.url, "leave", 4) as group:
        first = await group.start()
        second = await group.start()
        await group.until_balanced()

        await group.dismiss(first, 60)

        view = await group.until_balanced()
        assert {one.owner for one in view.partitions.values()} == {second.member}
        assert first.member not in view.members
        assert not [line for line in second.lines if line.kind == "MemberDead"]
