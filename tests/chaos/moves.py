"""How long a partition stands still when it moves by agreement: ``python -m tests.chaos.moves``.

A worker is asked to leave (SIGTERM), then another joins, and so on, while every partition has a
backlog. For each partition that moved: the time from the last handler call at the old owner to the
first at the new one, which is the rest of that call plus the move. For each that did not: the
longest time between two of its calls while the others moved, beside the same before anything moved.

    python -m tests.chaos.moves --changes 50 --server cluster --retention workqueue
"""

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from nats.js.api import RetentionPolicy

from millstream_coordinator import GroupView
from tests.chaos.group import percentile
from tests.chaos.group_cluster import Cluster
from tests.chaos.target import KINDS, Target, opened
from tests.helpers.servers import REAL

PARTITIONS = 10
WORKERS = 5
HANDLER_MS = 20
HEARTBEAT_TIMEOUT_S = 3.0
"""Nobody dies here; one that a busy machine keeps waiting must not pass for dead."""
BACKLOG = 300
ROUND = 5000
PATIENCE_S = 60.0


@dataclass(slots=True)
class Moves:
    """What was measured, in seconds, and what must hold whatever the time."""

    moved: list[float] = field(default_factory=list)
    gaps_before: list[float] = field(default_factory=list)
    """Longest time between two calls of a partition while nothing moved."""
    gaps_unmoved: list[float] = field(default_factory=list)
    """The same, of those that stayed, while others moved."""
    lost: int = 0
    """Partitions that were taken away, not given."""
    called_twice: int = 0
    """Messages of which two handler calls were made: a graceful move makes none."""


async def change(group: Cluster, is_leave: bool, chance: random.Random, moves: Moves) -> None:
    """One worker leaves or joins; waits until the group is whole again."""
    before = await group.until_balanced(PATIENCE_S)
    quiet_from = time.monotonic()
    await asyncio.sleep(1.0)  # what is normal
    if is_leave:
        leaver = chance.choice(group.running())
        began = await group.dismiss(leaver, PATIENCE_S)
    else:
        joiner = await group.start()
        await group.until(
            lambda: any(line.kind == "Joined" for line in joiner.lines), PATIENCE_S, "joined"
        )
        began = next(line.at for line in joiner.lines if line.kind == "Joined")
    after = await group.until_balanced(PATIENCE_S)
    changed = {n for n, one in after.partitions.items() if one.epoch != before.partitions[n].epoch}
    await group.until(
        lambda: all(_entered(group, n, after) is not None for n in changed),
        PATIENCE_S,
        f"{sorted(changed)} handled at their new owners",
    )
    ends = [_entered(group, n, after) or began for n in changed]
    for partition in range(group.partitions):
        calls = sorted(
            (at, epoch)
            for worker in group.workers
            for at, n, epoch, _ in worker.calls
            if n == partition and at >= quiet_from
        )
        if partition in changed:
            old = max(at for at, epoch in calls if epoch < after.partitions[partition].epoch)
            new = min(at for at, epoch in calls if epoch == after.partitions[partition].epoch)
            moves.moved.append(new - old)
        else:
            moves.gaps_unmoved.append(_longest(calls, began, max(ends, default=began)))
        moves.gaps_before.append(_longest(calls, quiet_from, quiet_from + 1.0))


def _entered(group: Cluster, partition: int, view: GroupView) -> float | None:
    epoch = view.partitions[partition].epoch
    calls = [
        at
        for worker in group.workers
        for at, n, of_epoch, _ in worker.calls
        if n == partition and of_epoch == epoch
    ]
    return min(calls, default=None)


def _longest(calls: list[tuple[float, int]], since: float, until: float) -> float:
    """The longest time between two calls, both of them around some of this span."""
    times = [at for at, _ in calls]
    spans = [
        later - earlier
        for earlier, later in itertools.pairwise(times)
        if later >= since and earlier <= until
    ]
    return max(spans, default=0.0)


async def measure(
    target: Target, changes: int, seed: int, retention: RetentionPolicy = RetentionPolicy.LIMITS
) -> Moves:
    """``changes`` of membership, a leave and a join in turn."""
    chance = random.Random(seed)
    moves = Moves()
    group = Cluster(
        target.url,
        "moves",
        PARTITIONS,
        *("--handler-ms", str(HANDLER_MS), "--heartbeat-timeout", str(HEARTBEAT_TIMEOUT_S)),
    )
    try:
        await target.until_ready(await group.connect())
        await group.open(replicas=target.replicas, retention=retention)
        for _ in range(WORKERS):
            await group.start()
        published = 0
        for number in range(changes):
            while min(group.backlogs(published)) < BACKLOG:
                await group.publish(published, ROUND)
                published += ROUND
            await change(group, number % 2 == 0, chance, moves)
        calls = sum(len(worker.calls) for worker in group.workers)
        moves.called_twice = calls - sum(len(seqs) for seqs in group.entered.values())
        moves.lost = sum(
            line.kind == "PartitionLost" for worker in group.workers for line in worker.lines
        )
    finally:
        await group.close()
    return moves


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--server", choices=KINDS, default=REAL)
    parser.add_argument("--retention", type=RetentionPolicy, default=RetentionPolicy.LIMITS)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, opened(given.server, Path(store)) as target:
        moves = asyncio.run(measure(target, given.changes, given.seed, given.retention))
    print(
        f"{given.server}, {given.retention.value}: {given.changes} changes,"
        f" {len(moves.moved)} partitions moved by agreement, handler {HANDLER_MS} ms;"
        f" {moves.lost} taken away, {moves.called_twice} messages handled twice"
    )
    for name, times in (
        ("standstill of a moved one, the running call included", moves.moved),
        ("longest pause of one that stayed", moves.gaps_unmoved),
        ("the same before anything moved", moves.gaps_before),
    ):
        print(
            f"  {name}: p50 {percentile(times, 0.5) * 1000:.0f},"
            f" p99 {percentile(times, 0.99) * 1000:.0f}, max {max(times) * 1000:.0f} ms"
        )
    return 1 if moves.lost or moves.called_twice else 0


if __name__ == "__main__":
    sys.exit(main())
