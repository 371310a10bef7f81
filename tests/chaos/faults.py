"""Faults against a working group, one at a time, each checked to have hit what it meant to.

Before a fault the group is whole and every partition of the victim has a backlog; after it the
group is whole again. What a fault must do besides is in `Faults`' methods, one per `Kind`.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from nats.aio.client import Client

from millstream_coordinator import GroupView
from millstream_coordinator.naming import bucket
from millstream_coordinator.operation import admin, target as operated
from tests.chaos.feed import Feed
from tests.chaos.ground import Layout
from tests.chaos.group_cluster import Cluster, Worker, entries_at
from tests.chaos.target import Target

HEARTBEAT_TIMEOUT_S = 1.0
"""The group's default, which the workers use."""
LATE_S = 2.0
"""A takeover that took longer is told at length."""
HANGING_S = 1.0
ASKING_S = 0.1
"""After so long each handler call has asked its sink."""
BACKLOG_MIN = 20
PATIENCE_S = 60.0
SINK = "chains"


class Kind(StrEnum):
    """What is done to the group."""

    KILL = "kill"
    KILL_LEADER = "kill-leader"
    KILL_COORDINATOR = "kill-coordinator"
    STOP = "stop"
    """SIGSTOP for longer than the heartbeat timeout, then SIGCONT."""
    STOP_LEADER = "stop-leader"
    STOP_BRIEFLY = "stop-briefly"
    CUT = "cut"
    CUT_BRIEFLY = "cut-briefly"
    """What every lane has asked meanwhile is lost with the connection."""
    STALL = "stall"
    MUTE = "mute"
    """What the worker sends does not arrive."""
    DEAF = "deaf"
    """What is sent to the worker does not arrive."""
    DELAY = "delay"
    TOGETHER = "together"
    """The leader is killed while another worker hangs."""
    LEAVE = "leave"
    SERVER = "server"
    """SIGKILL and restart; on a cluster of the node that leads a stream."""
    BUCKET = "bucket"
    """The group's bucket is deleted."""
    RESIZE = "resize"
    """Every partition is split in two, or merged; the leader may die or an owner hang meanwhile."""


TAKEOVER_GROUPS = {
    Kind.KILL: "killed",
    Kind.KILL_LEADER: "killed",
    Kind.STOP: "hung",
    Kind.STOP_LEADER: "hung",
    Kind.CUT: "cut off",
    Kind.STALL: "cut off",
    Kind.MUTE: "cut off",
    Kind.DEAF: "cut off",
    Kind.TOGETHER: "two at once",
}


@dataclass(slots=True)
class Tally:
    """What the faults of a run did."""

    faults: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    takeovers: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from a fault to the first call of each partition elsewhere, by what it was."""
    moved_by_restarts: int = 0
    restarts: int = 0
    leaders_hit: int = 0
    stops_past_timeout: int = 0


class Faults:
    """Does them. ``Missed`` says that one did not hit what it meant to."""

    class Missed(AssertionError):
        """A fault did not do what it was to do, so what follows from it proves nothing."""

    def __init__(
        self, group: Cluster, target: Target, feed: Feed, client: Client, chance: random.Random
    ) -> None:
        self._group = group
        self._target = target
        self._feed = feed
        self._client = client
        self._chance = chance
        self.tally = Tally()
        self._does: dict[Kind, Callable[[Kind], Awaitable[None]]] = {
            Kind.KILL: self._kill,
            Kind.KILL_LEADER: self._kill,
            Kind.KILL_COORDINATOR: self._kill_coordinator,
            Kind.STOP: self._stop,
            Kind.STOP_LEADER: self._stop,
            Kind.STOP_BRIEFLY: self._stop_briefly,
            Kind.CUT: self._cut_off,
            Kind.STALL: self._cut_off,
            Kind.MUTE: self._cut_off,
            Kind.DEAF: self._cut_off,
            Kind.CUT_BRIEFLY: self._cut_briefly,
            Kind.DELAY: self._delay,
            Kind.TOGETHER: self._together,
            Kind.LEAVE: self._leave,
            Kind.SERVER: self._server,
            Kind.BUCKET: self._bucket,
            Kind.RESIZE: self._resize,
        }

    async def strike(self, kind: Kind) -> None:
        """One fault, from a whole group to a whole group again. Raises AssertionError."""
        await self.until_whole()
        await self._does[kind](kind)
        self.tally.faults[kind] += 1
        await self.until_whole()

    async def until_whole(self) -> GroupView:
        """Every partition has one owner that runs, every worker its share, and no call hangs.

        A call that a fault left waiting for its sink holds a lane for as long as the client waits;
        what comes to that worker next would be late for that alone.
        """
        await self._group.until_balanced(PATIENCE_S)
        await self._group.until(
            lambda: all(
                since > time.monotonic() - HANGING_S
                for worker in self._group.running()
                for since in worker.running.values()
            ),
            PATIENCE_S,
            "no handler call hangs",
        )
        return await self._group.until_balanced(PATIENCE_S)

    async def _until_settled(self) -> dict[int, tuple[int, str | None]]:
        """Owners and epochs once they stay the same: what moves afterwards has another cause."""
        deadline = time.monotonic() + PATIENCE_S
        owners = _owners(await self.until_whole())
        while time.monotonic() < deadline:
            await asyncio.sleep(HEARTBEAT_TIMEOUT_S)
            before, owners = owners, _owners(await self.until_whole())
            if owners == before:
                return owners
        raise AssertionError(f"the group did not come to rest within {PATIENCE_S} s")

    # ---- victims ----

    async def _victim(self, kind: Kind) -> tuple[Worker, GroupView]:
        """A worker, the leading one if that is meant, whose partitions all have a backlog."""
        view = await self._group.view()
        workers = self._group.running()
        victim = self._chance.choice(workers)
        if kind in (Kind.KILL_LEADER, Kind.STOP_LEADER, Kind.TOGETHER):
            victim = await self._leading_worker()
            view = await self._group.view()
        await self._until_backlog(_owned(view, victim))
        if view.leader is not None and view.leader.member == victim.member:
            self.tally.leaders_hit += 1
        return victim, view

    async def _leading_worker(self) -> Worker:
        """The worker that leads; coordinators that lead are killed until one of them does."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            leader = (await self._group.view()).leader
            for worker in self._group.running():
                if leader is not None and leader.member == worker.member:
                    return worker
            for coordinator in self._group.coordinators:
                if (
                    leader is not None
                    and leader.member == coordinator.member
                    and coordinator.is_running
                ):
                    await self._group.kill(coordinator)
                    await self._group.start_coordinator()
            await asyncio.sleep(0.1)
        raise self.Missed(f"no worker leads within {PATIENCE_S} s")

    async def _until_backlog(self, partitions: Iterable[int]) -> None:
        first = {one % self._group.partitions for one in partitions}
        await self._group.until(
            lambda: all(self._feed.backlog(one) >= BACKLOG_MIN for one in first),
            PATIENCE_S,
            f"a backlog in {partitions}",
        )

    async def _until_taken_over(
        self, kind: Kind, victims: list[Worker], view: GroupView, since: float
    ) -> None:
        """Wait until others entered each of the victims' partitions, and note how long it took."""
        lost = {number for victim in victims for number in _owned(view, victim)}
        epochs = {number: record.epoch for number, record in view.partitions.items()}
        others = [one for one in self._group.workers if one not in victims]
        entered: dict[int, float] = {}

        def is_taken_over() -> bool:
            entered.update(entries_at(others, lost, epochs, since))
            return set(entered) == lost

        names = " and ".join(victim.member for victim in victims)
        what = f"{kind}: {sorted(lost)} of {names} taken over"
        try:
            await self._group.until(is_taken_over, LATE_S, what)
        except AssertionError:
            print(f"  late: {what}", *await self._feed.where(), sep="\n")
            await self._group.until(is_taken_over, PATIENCE_S, what)
        times = {number: at - since for number, at in entered.items()}
        self.tally.takeovers[TAKEOVER_GROUPS[kind]] += times.values()
        if max(times.values(), default=0.0) > LATE_S:
            print(f"  late: {times}", *self._group.story(since), sep="\n")

    # ---- what is done ----

    async def _kill(self, kind: Kind) -> None:
        victim, view = await self._victim(kind)
        since = await self._group.kill(victim)
        if victim.process.returncode != -signal.SIGKILL:
            raise self.Missed(f"{victim.member} ended with {victim.process.returncode}")
        await self._until_taken_over(kind, [victim], view, since)
        await self._group.start()

    async def _kill_coordinator(self, kind: Kind) -> None:
        running = [one for one in self._group.coordinators if one.is_running]
        victim = self._chance.choice(running)
        view = await self._group.until_view(
            lambda view: victim.member in view.members, PATIENCE_S, f"{victim.member} is a member"
        )
        if view.leader is not None and view.leader.member == victim.member:
            self.tally.leaders_hit += 1
        await self._until_backlog(range(self._group.partitions))
        await self._group.kill(victim)
        if victim.process.returncode != -signal.SIGKILL:
            raise self.Missed(f"{victim.member} ended with {victim.process.returncode}")
        await self._group.until_view(
            lambda view: (
                victim.member not in view.members
                and view.leader is not None
                and view.leader.member != victim.member
            ),
            PATIENCE_S,
            f"{victim.member} is given up and somebody leads",
        )
        await self._group.start_coordinator()

    async def _stop(self, kind: Kind) -> None:
        victim, view = await self._victim(kind)
        lasts_s = HEARTBEAT_TIMEOUT_S * self._chance.uniform(1.3, 3.0)
        since = await self._group.hang(victim)
        try:
            await self._until_taken_over(kind, [victim], view, since)
            await asyncio.sleep(max(0.0, since + lasts_s - time.monotonic()))
        finally:
            self._group.wake(victim)
        self.tally.stops_past_timeout += 1

    async def _stop_briefly(self, kind: Kind) -> None:
        victim, _ = await self._victim(kind)
        await self._group.hang(victim)
        await asyncio.sleep(HEARTBEAT_TIMEOUT_S * self._chance.uniform(0.2, 0.9))
        self._group.wake(victim)

    async def _cut_off(self, kind: Kind) -> None:
        victim, view = await self._victim(kind)
        proxy = victim.proxy
        assert proxy is not None
        if proxy.num_open < 1:
            raise self.Missed(f"{victim.member} had no connection to cut")
        since = time.monotonic()
        match kind:
            case Kind.CUT:
                proxy.cut()
            case Kind.STALL:
                proxy.stall()
            case Kind.MUTE:
                proxy.stall(down=False)
            case _:
                proxy.stall(up=False)
        try:
            await self._until_taken_over(kind, [victim], view, since)
            lasts_s = HEARTBEAT_TIMEOUT_S * self._chance.uniform(1.3, 3.0)
            await asyncio.sleep(max(0.0, since + lasts_s - time.monotonic()))
            if kind is Kind.CUT and not proxy.num_refused:
                raise self.Missed(f"{victim.member} never tried to come back")
        finally:
            proxy.release()

    async def _cut_briefly(self, kind: Kind) -> None:
        victim, _ = await self._victim(kind)
        assert victim.proxy is not None
        if victim.proxy.num_open < 1:
            raise self.Missed(f"{victim.member} had no connection to cut")
        victim.proxy.stall()
        await asyncio.sleep(ASKING_S)
        victim.proxy.cut()
        await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        victim.proxy.release()

    async def _delay(self, kind: Kind) -> None:
        victim, _ = await self._victim(kind)
        assert victim.proxy is not None
        victim.proxy.delay(self._chance.uniform(0.02, 0.2))
        await asyncio.sleep(self._chance.uniform(0.5, 2.0))
        victim.proxy.release()

    async def _together(self, kind: Kind) -> None:
        leader, view = await self._victim(kind)
        hung = self._chance.choice([one for one in self._group.running() if one is not leader])
        await self._until_backlog(_owned(view, hung))
        since = await self._group.hang(hung)
        try:
            await self._group.kill(leader)
            await self._until_taken_over(kind, [leader, hung], view, since)
        finally:
            self._group.wake(hung)
        self.tally.stops_past_timeout += 1
        await self._group.start()

    async def _leave(self, kind: Kind) -> None:
        victim, _ = await self._victim(kind)
        await self._group.dismiss(victim, PATIENCE_S)
        await self._group.start()

    async def _server(self, kind: Kind) -> None:
        ground = self._feed.ground
        one = self._chance.choice(ground.streams)
        stream = self._chance.choice((one, f"KV_{bucket(self._group.name)}", f"KV_{SINK}"))
        await self._until_backlog(range(self._group.partitions))
        # A queue that is empty when its server is killed forgets how far it was sourced.
        is_held = ground.layout is not Layout.SOURCED
        async with self._feed.hold if is_held else contextlib.nullcontext():
            before = await self._until_settled()
            acked = dict(self._feed.acked)
            server = await self._target.victim(self._client, stream)
            pid = server.pid
            since = time.monotonic()
            server.kill()
            if server.is_running:
                raise self.Missed(f"server {pid} lives")
            await asyncio.sleep(self._chance.uniform(0.0, 2.0))
            await self._target.restart(server, self._client, stream)
            if server.pid == pid:
                raise self.Missed(f"server {pid} was not restarted")
        await self._group.until(
            lambda: all(len(self._group.done[one]) >= count for one, count in acked.items()),
            PATIENCE_S,
            f"all that was there before the server of {stream} was killed is handled",
        )
        after = _owners(await self.until_whole())
        self.tally.restarts += 1
        moved = sum(after[n] != before[n] for n in before)
        self.tally.moved_by_restarts += moved
        if moved:
            print(f"  {moved} moved when the server of {stream} was killed")
            print(*self._group.story(since), sep="\n")

    async def _bucket(self, kind: Kind) -> None:
        await self._until_backlog(range(self._group.partitions))
        before = await self.until_whole()
        jetstream = self._client.jetstream(timeout=PATIENCE_S)
        stream = f"KV_{bucket(self._group.name)}"
        created = (await jetstream.stream_info(stream)).created
        await jetstream.delete_stream(stream)
        after = await self.until_whole()
        if (await jetstream.stream_info(stream)).created == created:
            raise self.Missed("the bucket was not deleted")
        for number, record in before.partitions.items():
            if number in after.partitions and after.partitions[number].epoch <= record.epoch:
                raise AssertionError(
                    f"epoch {after.partitions[number].epoch} of partition {number} in the new"
                    f" bucket is not above {record.epoch}"
                )

    async def _resize(self, kind: Kind) -> None:
        await self._until_backlog(range(self._group.partitions))
        before = (await self.until_whole()).config.active
        wanted = self._group.partitions * (2 if before == self._group.partitions else 1)
        await admin.resize(operated.Target(self._client, self._group.name), wanted)
        await asyncio.sleep(self._chance.uniform(0.0, 0.1))
        hung: Worker | None = None
        match self._chance.randrange(3):
            case 0:
                await self._kill_leader_if_worker()
            case 1:
                hung = self._chance.choice(self._group.running())
                await self._group.hang(hung)
            case _:
                pass
        try:
            await self._group.until_view(
                lambda view: view.config.active == wanted and view.config.resize_to is None,
                PATIENCE_S,
                f"{wanted} partitions in place of {before}",
            )
        finally:
            if hung is not None:
                self._group.wake(hung)

    async def _kill_leader_if_worker(self) -> None:
        leader = (await self._group.view()).leader
        for worker in self._group.running():
            if leader is not None and leader.member == worker.member:
                await self._group.kill(worker)
                await self._group.start()
                self.tally.leaders_hit += 1


def _owned(view: GroupView, worker: Worker) -> list[int]:
    return [number for number, one in view.partitions.items() if one.owner == worker.member]


def _owners(view: GroupView) -> dict[int, tuple[int, str | None]]:
    return {number: (one.epoch, one.owner) for number, one in view.partitions.items()}
