"""How long a partition stands still when its worker is killed: ``python -m tests.chaos.takeover``.

Five workers, ten partitions, each with a backlog. A random worker (the leader like any other) gets
SIGKILL; for each partition it owned, the time from kill(2) having returned to the first handler
call at the new owner is taken. Then a new worker joins, the group balances, and the next one goes.

    python -m tests.chaos.takeover --kills 100 --server real
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from operator import attrgetter

from tests.chaos.group_cluster import Cluster, Worker, cluster, entries_at
from tests.helpers.servers import EMBEDDED, REAL, Server

PARTITIONS = 10
WORKERS = 5
BACKLOG = 800
"""Messages each partition has at least waiting when a worker is killed."""
ROUND = 5000
HANDLER_MS = 20
TOLD = ("MemberDead", "LeaderChanged", "PartitionAssigned", "Fenced")


@dataclass(slots=True)
class Takeovers:
    """What was measured, in seconds."""

    moved: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    """By what each victim was found dead: ``no_responders`` or ``silent``."""
    leader_kills: int = 0
    kills: int = 0
    is_verbose: bool = False
    hangs: bool = False
    """SIGSTOP in place of SIGKILL."""

    def percentile(self, share: float) -> float:
        ordered = sorted(self.moved)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def kill_one(group: Cluster, victim: Worker, results: Takeovers) -> None:
    """Kill a worker and wait until each partition it owned was entered elsewhere."""
    view = await group.view()
    epochs = {n: record.epoch for n, record in view.partitions.items()}
    lost = {n for n, record in view.partitions.items() if record.owner == victim.member}
    results.kills += 1
    results.leader_kills += view.leader is not None and view.leader.member == victim.member

    killed_at = await (group.hang(victim) if results.hangs else group.kill(victim))
    entered: dict[int, float] = {}
    others = [worker for worker in group.running() if worker is not victim]

    def is_taken_over() -> bool:
        entered.update(entries_at(others, lost, epochs, killed_at))
        return set(entered) == lost

    await group.until(is_taken_over, 60, f"partitions {lost} taken over from {victim.member}")
    results.moved += [at - killed_at for at in entered.values()]
    await group.until(lambda: bool(_verdicts(others, victim)), 60, f"{victim.member} found dead")
    results.verdicts.append(_verdicts(others, victim)[0])
    if results.hangs:
        await group.kill(victim)
    if results.is_verbose:
        was_leader = view.leader is not None and view.leader.member == victim.member
        print(f"kill {results.kills} of {victim.member}{' (leader)' if was_leader else ''}")
        for worker in group.running():
            for line in worker.lines:
                if line.at >= killed_at and line.kind in TOLD:
                    after_ms = (line.at - killed_at) * 1000
                    print(f"  {after_ms:6.0f} ms {worker.member}: {line.kind} {line.facts}")
        for partition, at in sorted(entered.items()):
            print(f"  {(at - killed_at) * 1000:6.0f} ms first call of partition {partition}")


def _verdicts(workers: list[Worker], victim: Worker) -> list[str]:
    dead = (line for one in workers for line in one.lines if line.kind == "MemberDead")
    facts = (
        dict(fact.split("=", 1) for fact in line.facts)
        for line in sorted(dead, key=attrgetter("at"))
    )
    return [one["reason"] for one in facts if one["member"] == victim.member]


async def measure(url: str, kills: int, seed: int, results: Takeovers) -> None:
    """Kill ``kills`` workers one after the other."""
    chance = random.Random(seed)
    async with cluster(url, "takeover", PARTITIONS, "--handler-ms", str(HANDLER_MS)) as group:
        published = ROUND
        await group.publish(0, published)
        for _ in range(WORKERS):
            await group.start()
        for _ in range(kills):
            await group.until_balanced()
            await group.until(
                lambda: all(worker.calls for worker in group.running()), 60, "all at work"
            )
            while min(group.backlogs(published)) < BACKLOG:
                await group.publish(published, ROUND)
                published += ROUND
            await asyncio.sleep(chance.uniform(0.3, 0.6))  # any phase of the heartbeat
            await kill_one(group, chance.choice(group.running()), results)
            await group.start()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--server", choices=(REAL, EMBEDDED), default=REAL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="what happened when, per kill")
    parser.add_argument("--hang", action="store_true", help="SIGSTOP in place of SIGKILL")
    given = parser.parse_args()
    results = Takeovers(is_verbose=given.verbose, hangs=given.hang)
    with tempfile.TemporaryDirectory() as store, Server(given.server, store) as server:
        asyncio.run(measure(server.url, given.kills, given.seed, results))
    milliseconds = [at * 1000 for at in results.moved]
    kind = "hangs" if given.hang else "kills"
    print(
        f"{given.server}: {results.kills} {kind} ({results.leader_kills} of the leader),"
        f" {len(results.moved)} partitions taken over;"
        f" p50 {statistics.median(milliseconds):.0f} ms,"
        f" p95 {results.percentile(0.95) * 1000:.0f} ms, max {max(milliseconds):.0f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
