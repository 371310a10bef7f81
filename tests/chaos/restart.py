"""A server killed under a working group moves no partition: ``python -m tests.chaos.restart``.

Each time the server gets SIGKILL while every partition has a backlog, starts again on the same port
and store, and the workers come back and go on. Then no partition may have another owner or epoch
than before, and every message must have been handled.

    python -m tests.chaos.restart --restarts 10 --server real
"""

import argparse
import asyncio
import sys
import tempfile

from millstream_coordinator import GroupView
from tests.chaos.group_cluster import Cluster, cluster
from tests.helpers.servers import EMBEDDED, REAL, Server

PARTITIONS = 10
WORKERS = 5
ROUND = 2500


def _owners(view: GroupView) -> dict[int, tuple[int, str | None]]:
    return {n: (record.epoch, record.owner) for n, record in view.partitions.items()}


def _num_seen(group: Cluster) -> int:
    return sum(len(seqs) for seqs in group.entered.values())


async def restart_under_load(server: Server, restarts: int) -> list[int]:
    """Kill and restart ``server``; returns how many partitions moved each time."""
    moved = []
    async with cluster(server.url, "restart", PARTITIONS, "--handler-ms", "20") as group:
        for _ in range(WORKERS):
            await group.start()
        await group.until_balanced()
        published = 0
        for _ in range(restarts):
            await group.publish(published, ROUND)
            published += ROUND
            before = _owners(await group.until_balanced())
            seen = _num_seen(group)
            await group.until(lambda seen=seen: _num_seen(group) > seen + 100, 60, "work")  # type: ignore[misc]

            server.kill()
            await server.restart()

            await group.until(lambda: _num_seen(group) >= published, 120, "everything handled")  # noqa: B023
            after = _owners(await group.until_balanced())
            moved.append(sum(after[n] != before[n] for n in before))
    return moved


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--server", choices=(REAL, EMBEDDED), default=REAL)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, Server(given.server, store) as server:
        moved = asyncio.run(restart_under_load(server, given.restarts))
    print(f"{given.server}: {len(moved)} restarts, partitions moved each time: {moved}")
    return 1 if any(moved) else 0


if __name__ == "__main__":
    sys.exit(main())
