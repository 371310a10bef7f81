"""How long a group of many partitions needs to start: ``python -m tests.chaos.scale``.

Four members join a group with 1,000 partitions of which each has one message; the clock runs from
the first member's start in an empty group (its process is up and connected) to the last partition's
first handler call.

    python -m tests.chaos.scale --server cluster --retention workqueue
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from nats.js.api import RetentionPolicy

from tests.chaos.group_cluster import Cluster
from tests.chaos.moves import HEARTBEAT_TIMEOUT_S
from tests.chaos.target import KINDS, Target, opened
from tests.helpers.servers import REAL

PATIENCE_S = 120.0


async def start(
    target: Target, partitions: int, members: int, retention: RetentionPolicy
) -> tuple[float, float, int, int]:
    """Seconds until every partition was served and until the group was whole; times a partition
    was assigned, which is more than there are when members came later than the others; calls.
    """
    arguments = ("--handler-ms", "0", "--max-lanes", "64")
    quiet = ("--heartbeat-timeout", str(HEARTBEAT_TIMEOUT_S))
    group = Cluster(target.url, "scale", partitions, *arguments, *quiet)
    try:
        client = await group.connect()
        await target.until_ready(client)
        await group.open(replicas=target.replicas, retention=retention)
        jetstream = client.jetstream(timeout=10)
        for first in range(0, partitions, 200):
            numbers = range(first, min(first + 200, partitions))
            await asyncio.gather(*(jetstream.publish(f"flights.{n}.k", b"") for n in numbers))
        for _ in range(members):
            await group.start()
        await group.until(
            lambda: all(_joined_at(group)), PATIENCE_S, f"all {members} members joined"
        )
        joined_at = min(at for at in _joined_at(group) if at is not None)
        await group.until(
            lambda: len(group.entered) == partitions, PATIENCE_S, "every partition served"
        )
        first_calls: dict[int, float] = {}
        for worker in group.workers:
            for at, partition, _, _ in worker.calls:
                first_calls[partition] = min(at, first_calls.get(partition, at))
        await group.until_balanced(PATIENCE_S)
        whole_s = time.monotonic() - joined_at
        calls = sum(len(worker.calls) for worker in group.workers)
        assigned = sum(
            line.kind == "PartitionAssigned" for worker in group.workers for line in worker.lines
        )
        return max(first_calls.values()) - joined_at, whole_s, assigned, calls
    finally:
        await group.close()


def _joined_at(group: Cluster) -> list[float | None]:
    return [
        next((line.at for line in worker.lines if line.kind == "Joined"), None)
        for worker in group.workers
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--server", choices=KINDS, default=REAL)
    parser.add_argument("--retention", type=RetentionPolicy, default=RetentionPolicy.LIMITS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, opened(given.server, Path(store)) as target:
        served_s, whole_s, assigned, calls = asyncio.run(
            start(target, given.partitions, given.members, given.retention)
        )
    print(
        f"{given.server}, {given.retention.value}: {given.partitions} partitions of"
        f" {given.members} members served {served_s:.2f} s after the first member joined,"
        f" whole after {whole_s:.2f} s ({assigned} assignments, {calls} calls)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
