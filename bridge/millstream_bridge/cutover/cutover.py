"""A Kafka group's place given to a coordinator group: looked at, computed, proven, then written.

1. The route's streams are read once (`index`), while the Kafka group may still be at work. One that
   a dense route does not have yet, of a partition that was just added, is waited for: workers need
   it, and the forward bridge makes it. Where that, or the coordinator group, refuses it already,
   nobody is told to stop.
2. The group must be **empty**: `wait_s` is how long to wait for its last member to leave. From here
   on nobody reads, and everything is short.
3. Its committed offsets are read, all at once. A partition without one stands where the group's
   ``auto.offset.reset`` would have put it, which Kafka does not know: it is asked for, unless the
   partition never had a record.
4. The forward bridge must have stored all below those offsets; that is waited for.
5. What was stored since step 1 is read, and each partition's place computed (`places`). If messages
   were published straight to NATS and the way back wrote some to Kafka, those the group has had
   there are found by reading Kafka from its offsets on.
6. If every place is exact and the coordinator group has no members, its positions are written,
   read back, and the Kafka group looked at again: still empty, still at the same offsets.

Steps 1 to 5 change nothing; they are the dry run. Any obstacle refuses the whole: half a group on
each side would be two groups.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from millstream_coordinator.operation.target import side_by_side

from ..back.runner import way_back_name
from ..errors import ConnectionLost, Unreachable
from ..jetstream.connection import Connection
from ..jetstream.target import NatsTarget
from ..kafka.admin import KafkaAdmin, KafkaGroup
from ..kafka.reading import records_between
from ..kafka.source import KafkaSource
from ..model import Record, Route, Watermarks, counted
from ..moving.barrier import until_stored
from ..records.mapping import Mapping as RouteMapping
from ..records.origin import without_returned
from .index import Partition, StreamIndex
from .places import (
    Edge,
    absent_obstacle,
    in_stream,
    letter_obstacle,
    removed_obstacle,
    replay_obstacle,
    return_obstacle,
)
from .proof import CutProof, PartitionCut
from .returns import Returns, read_on
from .takeover import Handled, TakeOver, group_connection

Uncommitted = Literal["earliest", "latest"]
WhenRead = Callable[[bool], Awaitable[bool]]
MayApply = Callable[[CutProof], Awaitable[bool]]
_LOOK_S = 0.2
UNKNOWN = "Unknown"
NOT_ALL = "another topic of the Kafka group is refused already, so nothing was waited for"
_HANDLE_AND_DELETE = "handle it by other means and delete it (`nats stream rmm`)"
_CATCH_UP = "before the group handled it: let it catch up in Kafka first"


@dataclass(slots=True)
class Sides:
    """Both sides of one route, open."""

    route: Route
    mapping: RouteMapping
    admin: KafkaAdmin
    source: KafkaSource
    connection: Connection
    takeover: TakeOver
    index: StreamIndex
    marks: dict[int, Watermarks]

    async def kafka_group(self, name: str) -> KafkaGroup:
        """A Kafka group with its positions in the route's topic."""
        return await self.admin.group(name, [(self.route.topic, p) for p in sorted(self.marks)])

    async def look(self) -> None:
        """Note the topic's ends of now, as one who reads what is committed.

        Of all partitions at once: at a client that is reading, each would wait for a fetch to end.
        """
        found = await self.admin.watermarks({self.route.topic: len(self.marks)})
        self.marks = found[self.route.topic]

    async def settle(self, timeout_s: float) -> str | None:
        """Note the topic's ends once all that is written now can be read; why not, in a line.

        A transaction that was committed a moment ago, the way back's last for one, is not to be
        read yet in every partition; what it wrote must not pass for not there.
        """
        topic = {self.route.topic: len(self.marks)}
        written = await self.admin.watermarks(topic, is_committed=False)
        deadline = time.monotonic() + timeout_s
        while True:
            await self.look()
            late = [
                p for p, mark in written[self.route.topic].items() if self.marks[p].high < mark.high
            ]
            if not late:
                return None
            if time.monotonic() >= deadline:
                return f"partition {late[0]} has a transaction that is still open: wait for its end"
            await asyncio.sleep(_LOOK_S)

    async def first_removed(
        self, number: int, start: int, left: int | None, end: int | None = None
    ) -> int | None:
        """The first record from offset ``start`` on that Kafka has and the stream has no longer.

        ``left`` is the first that is still there; None: none is. Where tombstones have a lifetime
        of their own, some up to ``end`` may be gone behind it, too; nothing else can be, as limits
        remove the oldest. A record that is only marked, as parked or skipped, never was there, and
        where each subject keeps its newest only, one that has a newer one is not missed.
        """
        moved = await self.index.moved(number)
        first = (moved.offset if moved else 0) if left is None else left
        bounds = Watermarks(max(start, self.marks[number].low), max(first, end or 0))
        drops_oldest = self.index.facts[self.index.partitions[number].stream].drops_oldest
        behind: list[Record] = []
        async for batch in records_between(self.source, {number: bounds}):
            for record in without_returned(batch, self.route.name):
                if record.value is not None and (record.offset >= first or not drops_oldest):
                    continue
                if record.offset > first:
                    behind.append(record)
                elif record.offset < first and await self._is_missed(record):
                    return record.offset
        if not behind:
            return None
        there = await self.index.tombstones_left(number, first, bounds.high)
        for record in behind:
            if record.offset not in there and await self._is_missed(record):
                return record.offset
        return None

    async def _is_missed(self, record: Record) -> bool:
        """Whether nothing stands for a record that is not in the stream."""
        if self.route.max_msgs_per_subject is not None and await self.index.is_superseded(record):
            return False
        return not await self.index.is_marked(record.kafka_partition, record.offset)

    async def way_back_seqs(self) -> dict[int, int]:
        """Per partition, below it every message published straight to NATS is in Kafka.

        0: there is no way back, or Kafka has forgotten where it stands. Where Kafka does not tell
        the state of a group, it is as if there were none.
        """
        slots = {n: n if self.route.mode == "dense" else 0 for n in self.marks}
        places = [(self.route.topic, slot) for slot in sorted(set(slots.values()))]
        found = (await self.admin.group(way_back_name(self.route), places)).of_topic(
            self.route.topic
        )
        return {number: found.get(slot, 0) for number, slot in slots.items()}


@asynccontextmanager
async def open_sides(
    *,
    kafka: str,
    nats: str | NatsTarget,
    route: Route,
    group: str,
    key_rule: str | None,
    kafka_options: Mapping[str, str] | None,
) -> AsyncIterator[Sides]:
    """Both sides of a route, open, and the stream not read yet. Unreachable, ConfigurationError."""
    target = NatsTarget.of(nats)
    mapping = RouteMapping(route)
    admin = KafkaAdmin(kafka, options=kafka_options)
    source = KafkaSource(kafka, route.topic, options=dict(kafka_options or {}))
    connection: Connection | None = None
    try:
        marks = await source.watermarks()
        connection = await Connection.open(target, name=f"millstream cutover {route.name}")
        async with group_connection(target) as client:
            takeover = TakeOver(
                client, target.jetstream_prefix, route, group, len(marks), key_rule=key_rule
            )
            index = StreamIndex(connection, mapping, sorted(marks))
            yield Sides(route, mapping, admin, source, connection, takeover, index, marks)
    except ConnectionLost as lost:
        raise Unreachable("JetStream", str(target), str(lost)) from lost
    finally:
        await source.close()
        await admin.close()
        if connection is not None:
            await connection.close()


async def at_once(is_refused: bool) -> bool:
    """No other move is waited for."""
    return not is_refused


async def alone(proof: CutProof) -> bool:
    """No other move has a say."""
    return proof.is_exact


async def cut_over(
    *,
    kafka: str,
    nats: str | NatsTarget,
    route: Route,
    kafka_group: str,
    group: str,
    apply: bool = False,
    wait_s: float = 0.0,
    timeout_s: float = 60.0,
    uncommitted: Uncommitted | None = None,
    is_stopped: bool = False,
    key_rule: str | None = None,
    kafka_options: Mapping[str, str] | None = None,
    when_read: WhenRead = at_once,
    may_apply: MayApply = alone,
    on_event: Callable[[str], None] = lambda text: None,
) -> CutProof:
    """Work out where ``group`` has to begin, and with ``apply`` write it, if it is exact.

    ``timeout_s`` bounds each wait for the forward bridge. ``is_stopped`` is the caller's word that
    nobody reads in the Kafka group's name, for a Kafka that cannot tell (the mock cluster).
    ``when_read`` is awaited when what takes long is done, with whether the move is refused already;
    where it gives false, nothing is waited for any more, the end of the Kafka group's members least
    of all. ``may_apply`` is with the proof, before anything is written, and has to agree.
    ``on_event`` is told what is being waited for. Unreachable, ConfigurationError, OutOfOrder.
    """
    async with open_sides(
        kafka=kafka,
        nats=nats,
        route=route,
        group=group,
        key_rule=key_rule,
        kafka_options=kafka_options,
    ) as sides:
        work = _CutOver(sides, kafka_group, uncommitted, is_stopped=is_stopped, timeout_s=timeout_s)
        return await work.run(
            apply=apply,
            wait_s=wait_s,
            when_read=when_read,
            may_apply=may_apply,
            on_event=on_event,
        )


class _CutOver:
    def __init__(
        self,
        sides: Sides,
        kafka_group: str,
        uncommitted: Uncommitted | None,
        *,
        is_stopped: bool,
        timeout_s: float,
    ) -> None:
        self._sides = sides
        self._kafka_group = kafka_group
        self._uncommitted = uncommitted
        self._is_stopped = is_stopped
        self._patience_s = timeout_s
        """How long others are waited for: not at all once it is refused."""
        self._obstacles: list[str] = []
        self._absent: frozenset[int] = frozenset()
        """Partitions whose streams were not made in time; what is made later changes nothing."""

    async def run(
        self,
        *,
        apply: bool,
        wait_s: float,
        when_read: WhenRead,
        may_apply: MayApply,
        on_event: Callable[[str], None],
    ) -> CutProof:
        started = time.monotonic()
        sides = self._sides
        await sides.index.extend()
        await self._until_made(on_event)
        view = await sides.takeover.view()
        self._obstacles += sides.takeover.obstacles(view)
        before = await sides.takeover.positions()
        found = await sides.kafka_group(self._kafka_group)
        if found.state == UNKNOWN and not self._is_stopped:
            self._obstacles.append(why_not_empty(found))
        is_refused = bool(self._absent or self._obstacles)
        empty_at = time.monotonic() if self._is_empty(found) else None
        if not (goes_on := await when_read(is_refused)):
            wait_s = self._patience_s = 0.0
        found = await self._until_empty(wait_s, on_event)
        empty_at = empty_at or time.monotonic()
        if not is_refused:
            self._obstacles += sides.takeover.obstacles(await sides.takeover.view())
            if not self._is_empty(found):
                self._obstacles.append(why_not_empty(found))
            if self._obstacles and wait_s:  # they had their time; what is behind is not waited for
                self._patience_s = 0.0
        if late := await sides.settle(self._patience_s):
            self._obstacles.append(late)
        offsets, missing = self._offsets(found)
        self._obstacles += missing
        await self._until_stored(offsets, on_event)
        await sides.index.extend()
        cuts = await self._cuts(offsets, before)
        is_in_the_way = bool(self._obstacles) or any(it.obstacle for it in cuts)
        if is_in_the_way and not goes_on and not is_refused:
            self._obstacles.insert(0, NOT_ALL)
        proof = CutProof(
            what="cutover",
            topic=sides.route.topic,
            kafka_group=self._kafka_group,
            kafka_group_state=found.state,
            group=sides.takeover.group,
            partitions=cuts,
            obstacles=tuple(self._obstacles),
            made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        if apply and await may_apply(proof) and proof.is_exact:
            await sides.takeover.place({it.partition: it.next_seq for it in cuts})
            proof = await self._read_back(proof, found)
            proof = replace(proof, standstill_s=time.monotonic() - empty_at)
        return replace(proof, seconds=time.monotonic() - started)

    def _is_empty(self, found: KafkaGroup) -> bool:
        return is_empty(found, is_stopped=self._is_stopped)

    async def _until_made(self, on_event: Callable[[str], None]) -> None:
        """Wait until the forward bridge has made the streams that a dense route does not have yet.

        Where it does not in time, each of them is an obstacle of its partition.
        """
        index, deadline = self._sides.index, time.monotonic() + self._patience_s
        if index.absent:
            on_event(f"waiting until the bridge has made stream {', '.join(index.absent)}")
        while index.absent and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
            await index.extend()
        self._absent = frozenset(
            number for number, it in index.partitions.items() if it.stream in index.absent
        )

    def _there(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """Those of partitions that have a stream."""
        return {number: at for number, at in offsets.items() if number not in self._absent}

    async def _until_empty(self, wait_s: float, on_event: Callable[[str], None]) -> KafkaGroup:
        deadline = time.monotonic() + wait_s
        is_told = False
        while True:
            found = await self._sides.kafka_group(self._kafka_group)
            if self._is_empty(found) or time.monotonic() >= deadline:
                return found
            if not is_told:
                on_event(f"all but the last step is done; {why_not_empty(found)}")
                is_told = True
            await asyncio.sleep(_LOOK_S)
            await self._sides.index.extend()

    def _offsets(self, found: KafkaGroup) -> tuple[dict[int, int], list[str]]:
        """Where the group stands in each partition, and why that cannot be said of some."""
        committed = found.of_topic(self._sides.route.topic)
        offsets: dict[int, int] = {}
        problems: list[str] = []
        for partition, mark in sorted(self._sides.marks.items()):
            offset = committed.get(partition)
            if offset is None and (mark.high == 0 or self._uncommitted == "earliest"):
                offset = mark.low
            elif offset is None and self._uncommitted == "latest":
                offset = mark.high
            if offset is None:
                problems.append(
                    f"partition {partition}: Kafka group {self._kafka_group} has committed nothing:"
                    " say whether it begins with the earliest or the latest record (--uncommitted)"
                )
            elif offset > mark.high:
                problems.append(
                    f"partition {partition}: Kafka group {self._kafka_group} stands at offset"
                    f" {offset}, and the topic ends at {mark.high}: it is not the same topic"
                )
            else:
                offsets[partition] = offset
        return offsets, problems

    async def _until_stored(
        self, offsets: Mapping[int, int], on_event: Callable[[str], None]
    ) -> None:
        sides = self._sides
        if self._patience_s:
            on_event("waiting until the bridge has stored all that the group has handled")
        try:
            await until_stored(
                sides.connection,
                sides.mapping,
                sides.source,
                self._there(offsets),
                sides.marks,
                timeout_s=self._patience_s,
            )
        except TimeoutError as error:
            self._obstacles.append(f"{error}: is the bridge running?")

    async def _cuts(
        self, offsets: Mapping[int, int], before: Mapping[int, int]
    ) -> list[PartitionCut]:
        sides = self._sides
        natives, gone_natives = await self._native_edges(self._there(offsets))
        index = sides.index
        edges = await side_by_side(index.edge_at_offset(*it) for it in offsets.items())
        cuts = []
        for (number, offset), records in zip(offsets.items(), edges, strict=True):
            partition, mark = index.partitions[number], sides.marks[number]
            if number in self._absent:
                cuts.append(
                    PartitionCut(
                        partition=number,
                        stream=partition.stream,
                        low=mark.low,
                        high=mark.high,
                        offset=offset,
                        next_seq=mark.low + 1,
                        before=before.get(number),
                        obstacle=absent_obstacle(partition.stream),
                    )
                )
                continue
            end = index.read_to[partition.stream] + 1
            place = in_stream(records, natives[number], end)
            others = [
                replay_obstacle(seq, at, is_handled=at < offset, is_behind=seq >= place.at)
                for seq, at in partition.replays
            ]
            letter = await self._open_letter(number, before.get(number), place.at)
            if letter is not None:
                others.append(letter_obstacle(letter, _HANDLE_AND_DELETE))
            if (gone := await self._first_removed(number, offset, records)) is not None:
                others.append(removed_obstacle(gone, _CATCH_UP))
            if (gone_native := gone_natives.get(number)) is not None:
                others.append(return_obstacle(*gone_native))
            cuts.append(
                PartitionCut(
                    partition=number,
                    stream=partition.stream,
                    low=mark.low,
                    high=mark.high,
                    offset=offset,
                    next_seq=place.at,
                    records=records,
                    natives=natives[number],
                    before=before.get(number),
                    obstacle=first_of([place.obstacle, *others])
                    or self._lost(records, offset, mark),
                )
            )
        return cuts

    async def _open_letter(self, number: int, before: int | None, next_seq: int) -> int | None:
        """The first dead letter for the group that it has not handled, and would not be given."""
        takeover = self._sides.takeover
        passed = [
            seq
            for seq, group in self._sides.index.partitions[number].letters
            if group == takeover.group and before is not None and before <= seq < next_seq
        ]
        if not passed:
            return None
        handled = (await takeover.progress()).handled.get(number, Handled(0))
        return next((seq for seq in passed if not handled.has(seq)), None)

    def _lost(self, records: Edge, offset: int, mark: Watermarks) -> str | None:
        """Whether something the group has not handled is on neither side any more."""
        if records.last is not None or offset >= mark.low:
            return None
        first = records.first[1] if records.first is not None else None
        if first == offset:
            return None
        return (
            f"the group stands at offset {offset}, Kafka's log begins at {mark.low} and the"
            f" stream's at {'nothing' if first is None else first}: what was between was removed"
            " before it was moved. Set the Kafka group's offset to where it is to begin"
        )

    async def _first_removed(self, number: int, offset: int, records: Edge) -> int | None:
        """The first record that is not handled in Kafka and is no longer in the stream."""
        sides = self._sides
        stream = sides.index.partitions[number].stream
        left = None if records.first is None else records.first[1]
        if sides.route.tombstone_ttl_s is not None:
            moved = await sides.index.moved(number)
            return await sides.first_removed(number, offset, left, moved.offset if moved else 0)
        # Of the oldest, which the limits remove, one that is handled is left: so is what follows.
        if records.last is not None or not sides.index.facts[stream].drops_oldest:
            return None
        return await sides.first_removed(number, offset, left)

    async def _native_edges(
        self, offsets: Mapping[int, int]
    ) -> tuple[dict[int, Edge], dict[int, tuple[int | None, int]]]:
        """Per partition, the last native message the group has had in Kafka, and the next.

        And what came back to Kafka, is not handled there, and would be missed in the stream: its
        sequence and its offset.
        """
        sides = self._sides
        known = await sides.way_back_seqs()
        returns: dict[int, Returns] = {}
        for number, offset in offsets.items():
            partition = sides.index.partitions[number]
            if partition.natives and not known.get(number):
                # Where the way back stood, if there was one, Kafka may have forgotten.
                begin = min(offset, partition.offset_before(partition.natives[0]))
            elif known.get(number):
                begin = offset
            else:
                continue
            begin = max(begin, sides.marks[number].low)
            returns[number] = Returns(partition.stream, begin, sides.marks[number].high)
        if returns and (late := await sides.settle(self._patience_s)):
            # After the way back was asked for: all that it says is back is below these ends.
            self._obstacles.append(late)
        await read_on(sides.source, sides.route.name, returns, sides.marks)
        edges = dict.fromkeys(offsets, Edge(None, None))
        gone: dict[int, tuple[int | None, int]] = {}
        for number, found in returns.items():
            at = offsets[number]
            open_back = {seq: back for seq, back in found.back.items() if back >= at}
            had = max((seq for seq, back in found.back.items() if back < at), default=0)
            open_seq = min(open_back, default=max(known.get(number, 0), had + 1))
            edges[number] = _edge(sides.index.partitions[number], open_seq, open_back)
            strange = next((back for back in found.strange if back >= at), None)
            if strange is not None:
                gone[number] = None, strange
            elif (seq := await self._first_gone(number, sorted(open_back))) is not None:
                gone[number] = seq, open_back[seq]
        return edges, gone

    async def _first_gone(self, number: int, seqs: Sequence[int]) -> int | None:
        """The first of some native messages that the stream has no longer."""
        index = self._sides.index
        if seqs and not await index.is_there(number, seqs[0]):
            return seqs[0]
        return next((it for it in seqs if not index.partitions[number].has_native(it)), None)

    async def _read_back(self, proof: CutProof, found: KafkaGroup) -> CutProof:
        """What the group's records say now, and whether the Kafka group was used meanwhile."""
        sides = self._sides
        after = await sides.takeover.positions()
        cuts = [cut.read_back(cut.next_seq, after.get(cut.partition)) for cut in proof.partitions]
        now = await sides.kafka_group(self._kafka_group)
        obstacles = list(proof.obstacles)
        if not self._is_empty(now) or now.positions != found.positions:
            obstacles.append(
                f"Kafka group {self._kafka_group} was at work again meanwhile ({now.state},"
                f" {counted(now.members, 'member')}): what it handled since comes again in NATS"
            )
        return replace(proof, partitions=cuts, obstacles=tuple(obstacles), applied=True)


def first_of(obstacles: Iterable[str | None]) -> str | None:
    """The first that is one."""
    return next((it for it in obstacles if it is not None), None)


def is_empty(found: KafkaGroup, *, is_stopped: bool) -> bool:
    """Whether nobody reads in the Kafka group's name, by Kafka's or else by the caller's word."""
    return is_stopped if found.state == UNKNOWN else found.is_empty


def why_not_empty(found: KafkaGroup) -> str:
    """What is to be done about a Kafka group that is not empty."""
    if found.state == UNKNOWN:
        return (
            f"this Kafka does not tell whether group {found.name} has members:"
            " make sure it has none, and say so (--group-is-stopped)"
        )
    return (
        f"Kafka group {found.name} is {found.state} with {counted(found.members, 'member')}: stop"
        " them, or wait for their end"
    )


def _edge(partition: Partition, open_seq: int, back: Mapping[int, int]) -> Edge:
    """The edge of natives when those below a sequence are handled, with what is known of Kafka."""
    last, first = partition.natives_edge(open_seq - 1)
    return Edge(
        None if last is None else (last, back.get(last)),
        None if first is None else (first, back.get(first)),
    )
