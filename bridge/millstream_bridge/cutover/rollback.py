"""The way home: a Kafka group is set to where a coordinator group has got to.

1. The route's streams are read, while the group may still be at work. Messages that were published
   straight to NATS must be in Kafka: with ``bring_back`` a way back begins now to bring them there,
   else one must be running.
2. The coordinator group must have **no members**: `wait_s` is how long to wait for the last to
   leave. A member that leaves writes down what it has handled; one that was killed did not, and its
   group has to run and stop once more. From here on nobody reads, and what is left is short: what
   was published since is read and brought back.
3. Per partition, what is handled is a floor and ranges beyond it. The offsets of what was brought
   back are read from the topic.
4. Each partition's place is computed (`places`): the first offset that is not handled. Records that
   Kafka has and the forward bridge has not moved are not handled, too.
5. If every place is exact and the Kafka group is empty, its offsets are set and read back.

Steps 1 to 4 change nothing in either group; they are the dry run, in which nothing is brought back
either. What was brought back before a refusal stays in Kafka, once and marked. What was moved stays
in the stream, and the coordinator group where it stands: should the team change its mind again, a
cut-over moves it on.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from millstream_coordinator.operation.target import side_by_side

from ..back.runner import BackBridge
from ..errors import Unreachable
from ..jetstream.target import NatsTarget
from ..kafka.admin import KafkaGroup
from ..kafka.sink import STORE_S
from ..model import Route
from .cutover import (
    NOT_ALL,
    MayApply,
    Sides,
    WhenRead,
    alone,
    at_once,
    first_of,
    is_empty,
    open_sides,
    why_not_empty,
)
from .places import Edge, in_topic, letter_obstacle, removed_obstacle, replay_obstacle
from .proof import CutProof, PartitionCut
from .returns import Returns, read_on
from .takeover import Handled, Progress

_LOOK_S = 0.2
_LOOK_BACK_S = 0.02
_HANDLE_IT = "let the group handle it first"
_UNSURE = "and whether it was handled is not known: let the group handle one more first"
_NEVER = 1 << 64
_READ_AHEAD = 1_000
"""So many offsets of the topic are left to be read when the group has left."""


async def roll_back(
    *,
    kafka: str,
    nats: str | NatsTarget,
    route: Route,
    kafka_group: str,
    group: str,
    apply: bool = False,
    wait_s: float = 0.0,
    timeout_s: float = 60.0,
    bring_back: bool = False,
    is_stopped: bool = False,
    key_rule: str | None = None,
    kafka_options: Mapping[str, str] | None = None,
    when_read: WhenRead = at_once,
    may_apply: MayApply = alone,
    on_event: Callable[[str], None] = lambda text: None,
) -> CutProof:
    """Work out where ``kafka_group`` has to go on, and with ``apply`` write it, if it is exact.

    ``timeout_s`` bounds the wait for a running way back; the one that ``bring_back`` begins may
    take as long to get further, and no less than a transaction. ``is_stopped`` is the caller's word
    that nobody reads in the Kafka group's name, for a Kafka that cannot tell. ``when_read`` is
    awaited when what takes long is done, with whether the move is refused already; where it gives
    false, nothing is waited for any more, the end of the coordinator group's members least of all.
    ``may_apply`` is with the proof, before anything is written, and has to agree. Unreachable,
    ConfigurationError, CannotReturn.
    """
    async with open_sides(
        kafka=kafka,
        nats=nats,
        route=route,
        group=group,
        key_rule=key_rule,
        kafka_options=kafka_options,
    ) as sides:
        bridge = BackBridge(kafka=kafka, nats=nats, route=route, kafka_options=kafka_options)
        work = _RollBack(sides, kafka_group, is_stopped=is_stopped, timeout_s=timeout_s)
        return await work.run(
            apply=apply,
            wait_s=wait_s,
            bridge=bridge if bring_back and apply else None,
            when_read=when_read,
            may_apply=may_apply,
            on_event=on_event,
        )


class _WayBack:
    """The way back at work beside a rollback; runs from here to `end`."""

    def __init__(self, bridge: BackBridge, sides: Sides, patience_s: float) -> None:
        self._bridge, self._index, self._patience_s = bridge, sides.index, patience_s
        self._kafka = sides.admin.bootstrap
        self._reached: list[int] = []
        self._further_at = time.monotonic()
        self._work = asyncio.create_task(bridge.run(), name=bridge.name)

    async def has_brought(self, ends: Mapping[str, int]) -> bool:
        """Whether each stream's messages up to a sequence are in Kafka; raises what ended it.

        One that is gone from the stream meanwhile never comes, and is not waited for. Unreachable:
        it gets no further.
        """
        if self._work.done():
            self._work.result()
        positions = list(self._bridge.progress.positions.values())
        if not positions:  # it begins, which takes as long as it takes, or ends it
            self._further_at = time.monotonic()
            return False
        for it in positions:
            end = ends.get(it.stream, 0)
            if it.next_seq <= end and await self._index.has_between(it.stream, it.next_seq, end):
                self._look_further([it.next_seq for it in positions])
                return False
        self._further_at = time.monotonic()
        return True

    def _look_further(self, reached: list[int]) -> None:
        """Unreachable: it has reached no more than this for too long."""
        now = time.monotonic()
        if reached != self._reached:
            self._reached, self._further_at = reached, now
        if now - self._further_at > self._patience_s:
            raise Unreachable(
                "Kafka",
                self._kafka,
                f"the way back has got no further for {self._patience_s:g} s; the Kafka group was"
                " not moved",
            )

    async def until_brought(self, ends: Mapping[str, int]) -> None:
        """Wait for that, as long as it gets further."""
        self._further_at = time.monotonic()
        while not await self.has_brought(ends):  # noqa: ASYNC110 - ends with the way back, too
            await asyncio.sleep(_LOOK_BACK_S)

    async def end(self) -> None:
        """Let the transaction under way end; an error of the way back is of no interest now."""
        self._bridge.stop()
        await asyncio.wait({self._work})
        if not self._work.cancelled():
            self._work.exception()


class _RollBack:
    def __init__(
        self, sides: Sides, kafka_group: str, *, is_stopped: bool, timeout_s: float
    ) -> None:
        self._sides = sides
        self._kafka_group = kafka_group
        self._is_stopped = is_stopped
        self._patience_s = timeout_s
        """How long others are waited for: not at all once it is refused."""
        self._returns: dict[int, Returns] = {}
        self._left_at: float | None = None
        """Since when the group is seen without members."""
        self._is_refused = False
        """By something that no waiting changes."""

    async def run(
        self,
        *,
        apply: bool,
        wait_s: float,
        bridge: BackBridge | None,
        when_read: WhenRead,
        may_apply: MayApply,
        on_event: Callable[[str], None],
    ) -> CutProof:
        started = time.monotonic()
        sides = self._sides
        await sides.index.extend()
        found = await sides.kafka_group(self._kafka_group)
        self._is_refused = not is_empty(found, is_stopped=self._is_stopped)
        way_back: _WayBack | None = None
        if bridge is not None and not self._is_refused and await self._may_bring(wait_s):
            on_event("bringing back what was published straight to NATS")
            way_back = _WayBack(bridge, sides, max(self._patience_s, STORE_S))
        try:
            progress, goes_on = await self._until_left(wait_s, way_back, when_read, on_event)
            found = await sides.kafka_group(self._kafka_group)
            obstacles = list(progress.obstacles)
            if not is_empty(found, is_stopped=self._is_stopped):
                obstacles.append(why_not_empty(found))
            await sides.index.extend()
            if way_back is not None and goes_on and not obstacles:
                await way_back.until_brought(sides.index.natives_end)
        finally:
            if way_back is not None:
                await way_back.end()
        if obstacles or not goes_on:
            self._patience_s = 0.0
        cuts = await self._cuts_when_back(progress.handled, found, on_event)
        is_in_the_way = bool(obstacles) or any(it.obstacle for it in cuts)
        if is_in_the_way and not goes_on and not self._is_refused:
            obstacles.insert(0, NOT_ALL)
        proof = CutProof(
            what="rollback",
            topic=sides.route.topic,
            kafka_group=self._kafka_group,
            kafka_group_state=found.state,
            group=sides.takeover.group,
            partitions=cuts,
            obstacles=tuple(obstacles),
            made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        if apply and await may_apply(proof) and proof.is_exact:
            places = {it.partition: it.offset for it in cuts}
            await sides.admin.set_positions(self._kafka_group, sides.route.topic, places)
            proof = await self._read_back(proof, progress)
            standstill_s = time.monotonic() - (self._left_at or started)
            proof = replace(proof, standstill_s=standstill_s)
        return replace(proof, seconds=time.monotonic() - started)

    async def _may_bring(self, wait_s: float) -> bool:
        """Whether the group is, or may come to be, such that what is brought back is of use."""
        progress = await self._sides.takeover.progress()
        return not progress.obstacles or (wait_s > 0 and not progress.is_lasting)

    async def _until_left(
        self,
        wait_s: float,
        way_back: _WayBack | None,
        when_read: WhenRead,
        on_event: Callable[[str], None],
    ) -> tuple[Progress, bool]:
        """The group's progress once it has no members; ``wait_s`` counts from when that is told.

        It is told once what had been published straight to NATS before is in Kafka, and read there.
        Where something that lasts is in the way, here or in another topic, nothing is waited for:
        the second result is false.
        """
        sides = self._sides
        before = sides.index.natives_end  # not what is published since: that may never end
        deadline: float | None = None
        is_told = False
        while True:
            progress = await sides.takeover.progress()
            if progress.obstacles:
                self._left_at = None
            elif self._left_at is None:
                self._left_at = time.monotonic()
            if progress.is_lasting or (progress.obstacles and wait_s <= 0):
                self._is_refused = True
            if self._is_refused:
                if deadline is None:
                    await when_read(True)
                return progress, False
            if not progress.obstacles and deadline is not None:
                return progress, True
            is_brought = way_back is None or await way_back.has_brought(before)
            await self._read_ahead(progress.handled)
            if deadline is None and is_brought:
                if not await when_read(False):
                    return progress, False
                deadline = time.monotonic() + wait_s
                continue  # who came, or left, meanwhile counts
            if deadline is not None and not is_told:
                on_event(f"all but the last step is done; {progress.obstacles[0]}")
                is_told = True
            if deadline is not None and time.monotonic() >= deadline:
                return progress, True
            await asyncio.sleep(_LOOK_S)
            await sides.index.extend()

    async def _read_ahead(self, handled: Mapping[int, Handled]) -> None:
        """Read the topic on to its end of now, if that is much: nobody then waits for it.

        A Kafka that is away meanwhile, or elects a leader, costs no more than this reading.
        """
        try:
            await self._read_much(handled)
        except Unreachable:
            self._returns.clear()  # one may have been read half, and noted what it read

    async def _read_much(self, handled: Mapping[int, Handled]) -> None:
        sides = self._sides
        await sides.look()
        for number, progress in handled.items():
            if number not in self._returns:
                natives = sides.index.partitions[number].natives_edge(*progress)
                await self._look_from(number, progress, natives)
        left = sum(sides.marks[p].high - it.read_to for p, it in self._returns.items())
        if left > _READ_AHEAD:
            await read_on(sides.source, sides.route.name, self._returns, sides.marks)

    async def _look_from(
        self, number: int, progress: Handled, natives: tuple[int | None, int | None]
    ) -> Returns:
        """A partition's returns, to be read from below the edge of what is handled on.

        So all are read that are not handled, also of messages that are gone from the stream: a
        message came to Kafka after what was in the stream before it.
        """
        partition, low = self._sides.index.partitions[number], self._sides.marks[number].low
        found = await self._sides.index.moved(number)
        moved = low if found is None else found.offset
        near = [progress.floor, *(seq for seq in natives if seq is not None)]
        begin = max(low, min([moved, *(partition.offset_before(seq) for seq in near)]))
        returns = self._returns.get(number)
        if returns is None or begin < returns.begin:  # the group was set back meanwhile
            returns = self._returns[number] = Returns(partition.stream, begin, moved)
        returns.own_from = moved
        return returns

    async def _cuts_when_back(
        self,
        handled: Mapping[int, Handled],
        found: KafkaGroup,
        on_event: Callable[[str], None],
    ) -> list[PartitionCut]:
        """The places, computed again while messages are still on their way back."""
        deadline = time.monotonic() + self._patience_s
        is_told = False
        while True:
            cuts, is_waiting = await self._cuts(handled, found)
            if not is_waiting or time.monotonic() >= deadline:
                return cuts
            if not is_told:
                on_event("waiting for the way back to have written everything to Kafka")
                is_told = True
            await asyncio.sleep(_LOOK_S)

    async def _cuts(
        self, handled: Mapping[int, Handled], found: KafkaGroup
    ) -> tuple[list[PartitionCut], bool]:
        """Each partition's place, and whether one lacks a message that is not back in Kafka."""
        sides = self._sides
        brought = await sides.way_back_seqs()  # before the topic's ends: those then hold all of it
        late = await sides.settle(self._patience_s)
        numbers = sorted(handled)
        edges = await side_by_side(self._edge(number, handled[number]) for number in numbers)
        records = dict(zip(numbers, edges, strict=True))
        returns: dict[int, Returns] = {}
        for number in numbers:
            progress = handled[number]
            natives = sides.index.partitions[number].natives_edge(*progress)
            returns[number] = await self._look_from(number, progress, natives)
        await read_on(sides.source, sides.route.name, returns, sides.marks)
        committed = found.of_topic(sides.route.topic)
        cuts, is_waiting = [], False
        for number, edge in records.items():
            back, mark = returns[number].back, sides.marks[number]
            natives = self._natives_edge(number, handled[number], back, brought.get(number, 0))
            last, first = (None if seq is None else (seq, back.get(seq)) for seq in natives)
            is_waiting |= any(it is not None and it[1] is None for it in (last, first))
            own = returns[number].first_own
            place = in_topic(edge, Edge(last, first), mark.high if own is None else own)
            others = await self._others(number, edge, place.at, handled[number])
            cuts.append(
                PartitionCut(
                    partition=number,
                    stream=sides.index.partitions[number].stream,
                    low=mark.low,
                    high=mark.high,
                    offset=place.at,
                    next_seq=handled[number].floor + 1,
                    records=edge,
                    natives=Edge(last, first),
                    before=committed.get(number),
                    obstacle=first_of([late, place.obstacle, *others, _lost(place.at, mark.low)]),
                )
            )
        return cuts, is_waiting

    async def _edge(self, number: int, progress: Handled) -> Edge:
        """The edge of a partition's records."""
        return await self._sides.index.edge_at_seq(
            number, progress.has, progress.floor, progress.end
        )

    def _natives_edge(
        self, number: int, progress: Handled, back: Mapping[int, int], brought: int
    ) -> tuple[int | None, int | None]:
        """The edge of native messages, those included that are in Kafka only by now.

        A handled one that the way back is past, and Kafka has not, is not waited for: the topic's
        limits have removed it, or it was passed over.
        """
        last, first = self._sides.index.partitions[number].natives_edge(*progress)
        if last is not None and last < brought and last not in back:
            last = None
        had = [last or 0, *(seq for seq in back if progress.has(seq))]
        to_come = [first or _NEVER, *(seq for seq in back if not progress.has(seq))]
        return max(had) or None, None if min(to_come) == _NEVER else min(to_come)

    async def _others(
        self, number: int, records: Edge, offset: int, progress: Handled
    ) -> list[str | None]:
        """What else is in the way: messages out of their order, and such as are gone."""
        partition, group = self._sides.index.partitions[number], self._sides.takeover.group
        others = [
            replay_obstacle(seq, at, is_handled=progress.has(seq), is_behind=at >= offset)
            for seq, at in partition.replays
        ]
        others += [
            letter_obstacle(seq, _HANDLE_IT)
            for seq, of in partition.letters
            if of == group and not progress.has(seq)
        ]
        gone = await self._first_unsure(number, records, progress.floor)
        if gone is not None:
            others.append(removed_obstacle(gone, _UNSURE))
        return others

    async def _first_unsure(self, number: int, records: Edge, floor: int) -> int | None:
        """The first record that is no longer in the stream, if not all such are surely handled.

        They are if none was removed behind the floor. What tells so is the first open record, or
        else the newest that was moved; that is asked for now, when the open records have been read.
        Where limits alone remove messages, the oldest first, a message up to the floor that is
        still there tells it, too. One that was handled beyond the floor does not.
        """
        sides, index = self._sides, self._sides.index
        moved = await index.moved(number)
        before = 0 if moved is None else moved.seq
        if records.first is not None:
            before = records.first[0] - 1
        if floor >= before:
            return None
        at_floor = await index.edge_at_seq(number, lambda seq: seq <= floor, floor, floor)
        left = None if at_floor.first is None else at_floor.first[1]
        if sides.route.tombstone_ttl_s is None:
            stream = index.partitions[number].stream
            beside = index.partitions[number].newest_beside(floor)
            if at_floor.last is not None or not index.facts[stream].drops_oldest:
                return None
            if beside and await index.removed_none_behind(number, beside):
                return None
            return await sides.first_removed(number, 0, left)
        start = 0 if at_floor.last is None else (at_floor.last[1] or 0) + 1
        end = records.first[1] if records.first else moved and moved.offset
        return await sides.first_removed(number, start, left, end)

    async def _read_back(self, proof: CutProof, progress: Progress) -> CutProof:
        """What Kafka says of the group now, and whether the other group was used meanwhile."""
        sides = self._sides
        now = await sides.kafka_group(self._kafka_group)
        after = now.of_topic(sides.route.topic)
        cuts = [cut.read_back(cut.offset, after.get(cut.partition)) for cut in proof.partitions]
        again = await sides.takeover.progress()
        obstacles = list(proof.obstacles)
        if again != progress:
            obstacles.append(
                f"group {sides.takeover.group} was at work again meanwhile: what it handled since"
                " comes again in Kafka"
            )
        return replace(proof, partitions=cuts, obstacles=tuple(obstacles), applied=True)


def _lost(offset: int, low: int) -> str | None:
    if offset >= low:
        return None
    return (
        f"the group would go on at offset {offset}, and Kafka's log begins at {low}: what is"
        " between is only in the stream"
    )
