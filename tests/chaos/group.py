"""A group under fire keeps its promises: ``python -m tests.chaos.group``.

Workers as processes, each behind a proxy of its own, with a fenced sink in a bucket; a coordinator
of its own beside them; a producer that keeps a backlog in every partition; and faults in an order
chosen by the seed (`faults.py`). Seeds take turns with the layouts (`ground.py`). What the sink
holds in the end is compared with what the stream took, key by key, by a chain that knows nothing of
the sink's fence (`chain.py`).

    python -m tests.chaos.group --faults 200 --seeds 10 --server cluster
    python -m tests.chaos.group --control unfenced     # no check of epoch and sequence
    python -m tests.chaos.group --control pullers      # MaxAckPending=1, two pullers, no group

The two control arms must show violations: else the faults would not find one in the group either.
Exit code 1 if what must hold did not, or if the run had no power to tell.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.errors import KeyNotFoundError

from tests.chaos.chain import decode, expected
from tests.chaos.faults import HEARTBEAT_TIMEOUT_S, PATIENCE_S, SINK, TAKEOVER_GROUPS, Faults, Kind
from tests.chaos.feed import Feed
from tests.chaos.ground import Ground, Layout
from tests.chaos.group_cluster import TEXT_MAX, Cluster
from tests.chaos.group_worker import FENCED, PLAIN
from tests.chaos.target import KINDS, Target, opened
from tests.helpers.servers import EMBEDDED

PARTITIONS = 8
KEYS = 32
WORKERS = 4
HANDLER_MS = 40
LANES = 6
ZOMBIES_MIN = 20
KILLED_P95_S = 0.5
UNFENCED = "unfenced"
IMPOSSIBLE = {Layout.STREAMS: {Kind.RESIZE}}
"""Faults that a layout does not allow."""
PULLERS = "pullers"


@dataclass(slots=True)
class Outcome:
    """What became of one seed."""

    faults: dict[str, int] = field(default_factory=dict)
    takeovers: dict[str, list[float]] = field(default_factory=dict)
    moved_by_restarts: int = 0
    restarts: int = 0
    leaders_hit: int = 0
    stops_past_timeout: int = 0
    stale: int = 0
    """Effects of replaced owners that the sink refused."""
    repeats: int = 0
    """Effects refused because they were there."""
    messages: int = 0
    effects: int = 0
    lost: int = 0
    violations: int = 0
    """Effects that were repeated or out of order, as the chains counted them."""
    wrong_keys: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def is_right(self) -> bool:
        return not (self.lost or self.violations or self.wrong_keys or self.failure)


def layout_of(seed: int) -> Layout:
    """The layout that a seed works on if nobody asks for another."""
    return list(Layout)[(seed - 1) % len(Layout)]


def schedule(count: int, chance: random.Random, layout: Layout) -> list[Kind]:
    """``count`` faults: every kind once where there is room, the rest by chance, in any order."""
    kinds = [kind for kind in Kind if kind not in IMPOSSIBLE.get(layout, ())]
    faults = kinds[:] if count >= len(kinds) else [Kind.STOP]
    faults += chance.choices(kinds, k=count - len(faults))
    chance.shuffle(faults)
    return faults


@asynccontextmanager
async def under_load(
    target: Target, layout: Layout, sink_kind: str
) -> AsyncIterator[tuple[Cluster, Feed, Client]]:
    """A whole group at work, with a producer and a coordinator beside it."""
    ground = Ground(layout, "chaos", PARTITIONS, KEYS, target.replicas)
    group = Cluster(
        target.url,
        ground.group,
        PARTITIONS,
        *("--handler-ms", str(HANDLER_MS), "--max-lanes", str(LANES)),
        *("--sink", SINK, "--sink-kind", sink_kind),
        rule=ground.rule,
        stream=ground.stream,
        is_proxied=True,
    )
    feeding: asyncio.Task[None] | None = None
    try:
        client = await group.connect()
        await target.until_ready(client)
        await ground.make(client)
        await client.jetstream(timeout=10).create_key_value(
            KeyValueConfig(bucket=SINK, replicas=target.replicas)
        )
        feed = Feed(client, group, ground)
        await group.start_coordinator()
        for _ in range(WORKERS):
            await group.start()
        feeding = asyncio.create_task(feed.run(), name="feed")
        yield group, feed, client
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.wait((feeding,))
        await group.close()


async def run(
    target: Target,
    seed: int,
    faults: Sequence[Kind],
    *,
    layout: Layout | None = None,
    sink_kind: str = FENCED,
    trace: bool = False,
) -> Outcome:
    """One seed. What goes wrong is in the outcome, never raised."""
    chance = random.Random(seed)
    outcome = Outcome()
    async with under_load(target, layout or layout_of(seed), sink_kind) as (group, feed, client):
        doing = Faults(group, target, feed, client, chance)
        began = time.monotonic()
        now = "start"
        try:
            for kind in faults:
                began, now = time.monotonic(), str(kind)
                await doing.strike(kind)
                if trace:
                    print(f"  {kind} {time.monotonic() - began:.1f} s", flush=True)
            now = "end"
            async with feed.hold:
                await group.until(
                    lambda: all(feed.backlog(one) <= 0 for one in range(PARTITIONS)),
                    PATIENCE_S,
                    "every message has its effect",
                )
                await _compare(client, feed, outcome)
        except (AssertionError, TimeoutError, OSError) as error:
            outcome.failure = f"{now}: {type(error).__name__}: {error}"
            print(*group.story(began), *await feed.where(), sep="\n", flush=True)
        tally = doing.tally
        outcome.faults = dict(tally.faults)
        outcome.takeovers = dict(tally.takeovers)
        outcome.moved_by_restarts = tally.moved_by_restarts
        outcome.restarts = tally.restarts
        outcome.leaders_hit = tally.leaders_hit
        outcome.stops_past_timeout = tally.stops_past_timeout
        for worker in group.workers:
            outcome.stale += sum(one[1] == "stale" for one in worker.effects)
            outcome.repeats += sum(one[1] == "repeat" for one in worker.effects)
    return outcome


async def _compare(client: Client, feed: Feed, outcome: Outcome) -> None:
    """Hold what the sink has against what the stream took."""
    store = await client.jetstream(timeout=10).key_value(SINK)
    for key, messages in sorted(feed.messages.items()):
        try:
            chain = decode((await store.get(key)).value)
        except KeyNotFoundError:
            chain = decode(None)
        right = expected(messages)
        outcome.messages += right.count
        outcome.effects += chain.count
        outcome.lost += max(0, right.count - (chain.count - chain.violations))
        outcome.violations += chain.violations
        if chain != right:
            outcome.wrong_keys.append(key)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(server: str, outcomes: Sequence[Outcome]) -> bool:
    """Print all figures; whether everything held and the run had the power to tell."""
    kinds: dict[str, int] = {}
    takeovers: dict[str, list[float]] = {}
    for one in outcomes:
        for kind, count in one.faults.items():
            kinds[kind] = kinds.get(kind, 0) + count
        for name, times in one.takeovers.items():
            takeovers.setdefault(name, []).extend(times)
    stale = sum(one.stale for one in outcomes)
    moved = sum(one.moved_by_restarts for one in outcomes)
    print(f"{server}: {sum(kinds.values())} faults over {len(outcomes)} seeds")
    print("  " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    print(f"  of the leader: {sum(one.leaders_hit for one in outcomes)}")
    print(
        f"  messages {sum(one.messages for one in outcomes)},"
        f" effects {sum(one.effects for one in outcomes)},"
        f" lost {sum(one.lost for one in outcomes)},"
        f" violations {sum(one.violations for one in outcomes)}"
    )
    print(
        f"  refused: {stale} effects of replaced owners,"
        f" {sum(one.repeats for one in outcomes)} repeats"
    )
    print(f"  moved by {sum(one.restarts for one in outcomes)} server restarts: {moved}")
    is_held = all(one.is_right for one in outcomes) and not moved
    for name in sorted(set(TAKEOVER_GROUPS.values()) & takeovers.keys()):
        times = takeovers[name]
        print(
            f"  {name}: {len(times)} partitions entered elsewhere after"
            f" p50 {percentile(times, 0.5) * 1000:.0f}, p95 {percentile(times, 0.95) * 1000:.0f},"
            f" max {max(times) * 1000:.0f} ms"
        )
    for name, bound_s, share in (
        ("killed", KILLED_P95_S, 0.95),
        ("hung", HEARTBEAT_TIMEOUT_S + 0.5, 1.0),
        ("cut off", HEARTBEAT_TIMEOUT_S + 0.5, 1.0),
    ):
        times = takeovers.get(name, [])
        if times and percentile(times, share) > bound_s:
            print(f"  LATE: {name} is over {bound_s} s")
            is_held = False
    for one in outcomes:
        if one.failure or one.wrong_keys:
            print(f"  WRONG: keys {one.wrong_keys} {one.failure}")
    has_power = stale >= ZOMBIES_MIN and all(one.stops_past_timeout for one in outcomes)
    if not has_power:
        print(f"  NO POWER: {stale} stale effects, {ZOMBIES_MIN} wanted; each seed needs a stop")
    return is_held and has_power


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=200, help="over all seeds")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--server", choices=KINDS, default=EMBEDDED)
    parser.add_argument("--layout", type=Layout, choices=list(Layout))
    parser.add_argument("--control", choices=(UNFENCED, PULLERS))
    parser.add_argument("--only", type=Kind, choices=list(Kind), action="append")
    parser.add_argument("--trace", action="store_true", help="print each fault as it ends")
    return parser.parse_args()


def main() -> int:
    """Run the seeds, each on servers of its own."""
    given = _arguments()
    outcomes = []
    for seed in range(given.seed, given.seed + given.seeds):
        count = given.faults // given.seeds
        layout = given.layout or layout_of(seed)
        if given.control == PULLERS:
            layout = Layout.TOKEN
        faults = schedule(count, random.Random(seed), layout)
        if given.only:
            faults = random.Random(seed).choices(given.only, k=count)
        elif given.control:
            faults = [Kind.STOP] * count
        with tempfile.TemporaryDirectory() as store, opened(given.server, Path(store)) as target:
            if given.control == PULLERS:
                outcome = asyncio.run(run_pullers(target, seed, count))
            else:
                sink_kind = PLAIN if given.control == UNFENCED else FENCED
                work = run(
                    target, seed, faults, layout=layout, sink_kind=sink_kind, trace=given.trace
                )
                outcome = asyncio.run(work)
        outcomes.append(outcome)
        said = "held" if outcome.is_right else f"violated {outcome.failure}"[:TEXT_MAX]
        print(f"seed {seed}, {layout}: {said}", flush=True)
    if given.control:
        violations = sum(one.violations for one in outcomes)
        print(f"{given.server}, control arm {given.control}: {violations} violations, as it must")
        return 0 if violations else 1
    return 0 if report(given.server, outcomes) else 1


async def run_pullers(target: Target, seed: int, stops: int) -> Outcome:
    """The control arm without a group: two processes pull one message at a time and stop."""
    chance = random.Random(seed)
    outcome = Outcome()
    ground = Ground(Layout.TOKEN, "pullers", PARTITIONS, KEYS, target.replicas)
    group = Cluster(
        target.url,
        ground.group,
        PARTITIONS,
        *("--handler-ms", str(HANDLER_MS), "--sink", SINK),
        module="tests.chaos.puller",
        rule=ground.rule,
        is_proxied=True,
    )
    feeding: asyncio.Task[None] | None = None
    try:
        client = await group.connect()
        await target.until_ready(client)
        await ground.make(client)
        await client.jetstream(timeout=10).create_key_value(
            KeyValueConfig(bucket=SINK, replicas=target.replicas)
        )
        feed = Feed(client, group, ground)
        feeding = asyncio.create_task(feed.run(), name="feed")
        workers = [await group.start() for _ in range(2)]
        for _ in range(stops):
            since = {worker.member: len(worker.calls) for worker in workers}
            await group.until(
                lambda: all(len(worker.calls) > since[worker.member] + 10 for worker in workers),  # noqa: B023
                PATIENCE_S,
                "both at work",
            )
            victim = chance.choice(workers)
            await group.hang(victim)
            await asyncio.sleep(chance.uniform(1.3, 3.0))
            group.wake(victim)
            outcome.stops_past_timeout += 1
        async with feed.hold:
            await group.until(
                lambda: all(feed.backlog(one) <= 0 for one in range(PARTITIONS)),
                PATIENCE_S,
                "every message has its effect",
            )
            await _compare(client, feed, outcome)
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.wait((feeding,))
        await group.close()
    return outcome


if __name__ == "__main__":
    sys.exit(main())
