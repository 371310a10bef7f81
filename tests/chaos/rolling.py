"""A rolling restart of members with names of their own: ``python -m tests.chaos.rolling``.

One worker after the other is ended (SIGTERM, as a deployment does it, or SIGKILL) and started again
under its name, within the grace the group gives such members. No partition may have another owner
afterwards, and everything must be handled. The standstill of each partition of the restarted worker
is told: it is mostly the time a Python process needs to start.

    python -m tests.chaos.rolling --server real --signal SIGTERM
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from millstream_coordinator import GroupView
from tests.chaos.group import percentile
from tests.chaos.group_cluster import Cluster, entries_at
from tests.chaos.target import KINDS, Target, opened
from tests.helpers.servers import REAL

PARTITIONS = 8
WORKERS = 4
GRACE_S = 15.0
ROUND = 2000
PATIENCE_S = 60.0


@dataclass(slots=True)
class Rolling:
    """What came of it."""

    restarts: int = 0
    moved: int = 0
    """Partitions with another owner than before."""
    moves_seen: list[str] = field(default_factory=list)
    """What the members told of partitions that went to somebody else on the way."""
    standstills: list[float] = field(default_factory=list)
    unhandled: int = 0


async def roll(target: Target, sent: signal.Signals, restarts: int = WORKERS) -> Rolling:
    """Restart so many workers, each once."""
    result = Rolling()
    arguments = ("--handler-ms", "10", "--static-grace", str(GRACE_S))
    group = Cluster(target.url, "rolling", PARTITIONS, *arguments)
    try:
        await target.until_ready(await group.connect())
        await group.open(replicas=target.replicas)
        names = [f"static-{number}" for number in range(WORKERS)]
        for name in names:
            await group.start(name)
        whole = await group.until_balanced(PATIENCE_S)
        published = 0
        for name in names[:restarts]:
            before = await group.until_balanced(PATIENCE_S)
            await group.publish(published, ROUND)
            published += ROUND
            (worker,) = [one for one in group.running() if one.member == name]
            mine = {n for n, one in before.partitions.items() if one.owner == name}
            if sent is signal.SIGKILL:
                since = await group.kill(worker)
            else:
                since = await group.dismiss(worker, PATIENCE_S)
            again = await group.start(name)
            epochs = {n: one.epoch for n, one in before.partitions.items()}
            await group.until(
                lambda: set(entries_at(group.workers, mine, epochs, since)) == mine,  # noqa: B023
                PATIENCE_S,
                f"{sorted(mine)} of {name} at work again",
            )
            await group.until(
                lambda: any(line.kind == "Joined" for line in again.lines),  # noqa: B023
                PATIENCE_S,
                f"{name} joined again",
            )
            after = await group.until_balanced(PATIENCE_S)
            result.restarts += 1
            result.moved += sum(
                one.owner != before.partitions[n].owner for n, one in after.partitions.items()
            )
            entered = entries_at(group.workers, mine, epochs, since)
            result.standstills += [at - since for at in entered.values()]
        result.moves_seen = [
            " ".join(line.facts)
            for worker in group.workers
            for line in worker.lines
            if line.kind == "PartitionMoved" and _is_to_another(line.facts, whole)
        ]
        await group.until(
            lambda: max(group.backlogs(published)) <= 0, PATIENCE_S, "everything handled"
        )
        result.unhandled = sum(group.backlogs(published))
    finally:
        await group.close()
    return result


def _is_to_another(facts: tuple[str, ...], whole: GroupView) -> bool:
    """Whether a partition went from one member to another after the group was first whole."""
    said = dict(fact.split("=", 1) for fact in facts)
    is_later = int(said["epoch"]) > whole.partitions[int(said["partition"])].epoch
    is_other = "None" not in (said["owner"], said["previous"]) and said["owner"] != said["previous"]
    return is_later and is_other


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=KINDS, default=REAL)
    parser.add_argument("--signal", choices=("SIGTERM", "SIGKILL"), default="SIGTERM")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, opened(given.server, Path(store)) as target:
        result = asyncio.run(roll(target, signal.Signals[given.signal]))
    print(
        f"{given.server}: {result.restarts} members restarted by {given.signal},"
        f" {result.moved} partitions with another owner, {len(set(result.moves_seen))} moves seen,"
        f" {result.unhandled} messages unhandled; standstill"
        f" p50 {percentile(result.standstills, 0.5) * 1000:.0f},"
        f" max {max(result.standstills) * 1000:.0f} ms"
    )
    return 1 if result.moved or result.moves_seen or result.unhandled else 0


if __name__ == "__main__":
    sys.exit(main())
