"""A route's streams read once: enough of them remembered to find the place of any offset later.

Per partition every `EVERY`-th record is kept as (offset, sequence), and the sequence of every
native message, which are few before producers have moved. Finding an offset's place is then reading
at most `EVERY` records again. `extend` reads on to the end of now, so most of the work is done
before anybody waits for it.

Messages are told apart by a search in their raw header block, an order of magnitude faster than
reading it. A record that was parked and replayed later is out of its order, and so is a dead letter
that was published again; those are few, and kept one by one.
"""

import bisect
import re
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from millstream_coordinator.naming import REPLAY

from ..back.position import StreamFacts
from ..back.returning import Places
from ..errors import BridgeError, ConfigurationError
from ..jetstream.api import STREAM_NOT_FOUND, ApiError, stream_info
from ..jetstream.connection import Connection, Message
from ..jetstream.reader import first_from, read_stream
from ..jetstream.stream import Stream
from ..model import Record
from ..records.headers import NULL_VALUE, REPLAYED, SOURCE_HEADER
from ..records.mapping import Mapping
from .places import Edge

EVERY = 1_000
_LETTER = REPLAY.encode()
_LIFETIME = "Nats-TTL"


class Moved(NamedTuple):
    """How far a partition was moved: its newest record is before ``offset``, not behind ``seq``."""

    offset: int
    seq: int


class OutOfOrder(BridgeError):
    """The stream's records are not in Kafka's order: it is not what the bridge wrote."""


@dataclass(slots=True)
class Partition:
    """What is remembered of one partition."""

    stream: str
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    seqs: "array[int]" = field(default_factory=lambda: array("q"))
    natives: "array[int]" = field(default_factory=lambda: array("q"))
    records: int = 0
    last: tuple[int, int] | None = None
    """The newest record: (sequence, offset)."""
    replays: list[tuple[int, int]] = field(default_factory=list)
    """Records that were parked and stored later: (sequence, offset)."""
    letters: list[tuple[int, str]] = field(default_factory=list)
    """What is for one group alone, dead letters published again: (sequence, group)."""

    def add_record(self, seq: int, offset: int) -> None:
        """The next record. OutOfOrder: its offset does not rise."""
        if self.last is not None and offset <= self.last[1]:
            raise OutOfOrder(
                f"stream {self.stream}: offset {offset} at sequence {seq} comes after offset"
                f" {self.last[1]} at sequence {self.last[0]}: verify the route first"
            )
        if self.records % EVERY == 0:
            self.offsets.append(offset)
            self.seqs.append(seq)
        self.records += 1
        self.last = seq, offset

    def before_offset(self, offset: int) -> int:
        """A sequence from which on the records around an offset are found."""
        place = bisect.bisect_left(self.offsets, offset) - 1
        return self.seqs[place] if place >= 0 else 1

    def before_seq(self, seq: int) -> int:
        """A sequence from which on the records around a sequence are found."""
        place = bisect.bisect_right(self.seqs, seq) - 1
        return self.seqs[place] if place >= 0 else 1

    def offset_before(self, seq: int) -> int:
        """An offset below that of every message from a sequence on; 0 where none is known."""
        place = bisect.bisect_right(self.seqs, seq) - 1
        return self.offsets[place] if place >= 0 else 0

    def natives_edge(
        self, floor: int, done: Sequence[tuple[int, int]] = ()
    ) -> tuple[int | None, int | None]:
        """The last native message that is handled and the first that is not, by sequence.

        All up to ``floor`` is handled, and the closed ranges ``done`` beyond it.
        """
        natives, first = self.natives, 0
        last: int | None = None
        for begin, end in sorted([(0, floor), *done]):
            behind = bisect.bisect_right(natives, end)
            if bisect.bisect_left(natives, begin) <= first:  # none is open before it
                first = max(first, behind)
            if behind and natives[behind - 1] >= begin:
                last = max(last or 0, natives[behind - 1])
        return last, natives[first] if first < len(natives) else None

    def has_native(self, seq: int) -> bool:
        """Whether a native message of this sequence was there when the stream was read."""
        place = bisect.bisect_left(self.natives, seq)
        return place < len(self.natives) and self.natives[place] == seq

    def newest_beside(self, seq: int) -> int:
        """The newest up to a sequence of what is no record in its order; 0: none."""
        place = bisect.bisect_right(self.natives, seq)
        late = [it for it, _ in (*self.replays, *self.letters) if it <= seq]
        return max([*self.natives[max(place - 1, 0) : place], *late], default=0)


class StreamIndex:
    """All partitions of a route. ``partitions`` are the topic's."""

    def __init__(self, connection: Connection, mapping: Mapping, partitions: Sequence[int]) -> None:
        self._connection, self._mapping = connection, mapping
        self._places = Places.of(mapping)
        self._source = re.compile(
            rb"\n%b: %b (\d+) (\d+) -?\d+ [cl](?: (\w+))?\r"
            % (SOURCE_HEADER.encode(), re.escape(mapping.route.topic.encode()))
        )
        self.partitions = {p: Partition(mapping.stream_name(p)) for p in partitions}
        self._letter = re.compile(rb"\n%b: *(\S+)\r" % REPLAY.encode())
        self._gone: dict[int, Moved | None] = {}
        self.read_to: dict[str, int] = {}
        """Per stream, the last sequence that was looked at."""
        self.facts: dict[str, StreamFacts] = {}
        self.absent: Sequence[str] = ()
        """Streams of a dense route that the bridge has not made yet, as of partitions added."""

    @property
    def natives_end(self) -> dict[str, int]:
        """Per stream, the last message that was published straight to NATS, as far as was read."""
        ends: dict[str, int] = {}
        for it in self.partitions.values():
            if it.natives:
                ends[it.stream] = max(ends.get(it.stream, 0), it.natives[-1])
        return ends

    async def extend(self) -> None:
        """Read on to each stream's end of now.

        ConfigurationError: none of the streams is there, or one not any more; ConnectionLost,
        OutOfOrder.
        """
        streams = [*dict.fromkeys(it.stream for it in self.partitions.values())]
        absent: dict[str, ConfigurationError] = {}
        for stream in streams:
            try:
                facts = self.facts[stream] = await StreamFacts.read(self._connection, stream)
            except ConfigurationError as error:
                cause = error.__cause__
                is_missing = isinstance(cause, ApiError) and cause.code == STREAM_NOT_FOUND
                if not is_missing or stream in self.read_to:
                    raise
                absent[stream] = error
                continue
            first = self.read_to.get(stream, 0) + 1
            subject = self._mapping.route_filter
            async for messages in read_stream(
                self._connection, stream, subject, first_seq=first, last_seq=facts.last_seq
            ):
                for seq, message in messages:
                    if seq <= facts.last_seq:
                        self._add(seq, message)
            self.read_to[stream] = max(self.read_to.get(stream, 0), facts.last_seq)
        if len(absent) == len(streams):
            raise absent[streams[0]]
        self.absent = [*absent]
        self._gone.clear()

    async def moved(self, number: int) -> Moved | None:
        """How far a partition was moved, also where none of its records is left; None: not at all.

        Where tombstones have a lifetime of their own, the newest record left need not be the newest
        that was moved. ConfigurationError: the stream no longer tells.
        """
        last = self.partitions[number].last
        left = None if last is None else Moved(last[1] + 1, last[0])
        if left is not None and self._mapping.route.tombstone_ttl_s is None:
            return left
        if number not in self._gone:
            self._gone[number] = await self._gone_of(number)
        return max((it for it in (left, self._gone[number]) if it is not None), default=None)

    async def _gone_of(self, number: int) -> Moved | None:
        """As the route's checkpoint says, or a dense stream's last sequence."""
        stream = Stream.of_partition(self._connection, self._mapping, number)
        info = await stream_info(self._connection, stream.name)
        stream.config = info.config if info is not None else {}
        reached = await stream.reached(number)
        if reached is None:
            return None
        seq, checkpoint = await stream.checkpoint(number)
        if checkpoint is None:
            return Moved(reached, self.facts[stream.name].last_seq)
        return Moved(reached, checkpoint.newest_seq or seq - 1)

    async def is_marked(self, number: int, offset: int) -> bool:
        """Whether a record was parked or skipped: a mark stands for it."""
        stream = Stream.of_partition(self._connection, self._mapping, number)
        mark = await stream.last_of(f"{self._mapping.poison_subject(number)}.{offset}")
        return mark is not None

    async def is_there(self, number: int, seq: int) -> bool:
        """Whether the stream has a message of a partition now."""
        stream = Stream.of_partition(self._connection, self._mapping, number)
        return await stream.message(seq) is not None

    async def has_between(self, stream: str, first_seq: int, last_seq: int) -> bool:
        """Whether a stream of the route has one of its messages there now."""
        found = await first_from(self._connection, stream, self._mapping.route_filter, first_seq)
        return found is not None and found <= last_seq

    async def is_superseded(self, record: Record) -> bool:
        """Whether the stream has a newer message of a record's subject, in the place of it."""
        number = record.kafka_partition
        stream = Stream.of_partition(self._connection, self._mapping, number)
        return await stream.last_of(self._mapping.subject(record)) is not None

    async def tombstones_left(self, number: int, start: int, end: int) -> set[int]:
        """The offsets from ``start`` up to ``end`` of the records without a value, as of now."""
        found: set[int] = set()
        first_seq = self.partitions[number].before_offset(start)
        async with aclosing(self._records(number, first_seq)) as records:
            async for _, offset, flags in records:
                if offset >= end:
                    break
                if offset >= start and NULL_VALUE in flags:
                    found.add(offset)
        return found

    async def removed_none_behind(self, number: int, seq: int) -> bool:
        """Whether a message is in the stream still, so that its limits removed nothing behind it.

        They remove the oldest first, except that one with a lifetime of its own outlives the rest.
        """
        message = await Stream.of_partition(self._connection, self._mapping, number).message(seq)
        return message is not None and message.header(_LIFETIME) is None

    async def edge_at_offset(self, number: int, offset: int) -> Edge:
        """The edge of the records when those below an offset are handled, as far as was read."""
        partition = self.partitions[number]
        if partition.last is None or partition.last[1] < offset:
            return Edge(partition.last, None)
        first_seq = partition.before_offset(offset)
        return await self._edge(number, first_seq, lambda _, found: found < offset, 0)

    async def edge_at_seq(
        self, number: int, is_handled: Callable[[int], bool], floor: int, end: int
    ) -> Edge:
        """The edge of the records; all up to ``floor`` is handled, nothing behind ``end`` is.

        Where all are handled nothing is read again: there may be many native messages around.
        """
        partition = self.partitions[number]
        if partition.last is None or partition.last[0] <= floor:
            return Edge(partition.last, None)
        first_seq = partition.before_seq(floor)
        return await self._edge(number, first_seq, lambda seq, _: is_handled(seq), end)

    async def _edge(
        self, number: int, first_seq: int, is_handled: Callable[[int, int], bool], horizon: int
    ) -> Edge:
        """Read from ``first_seq``, before which all is handled, until nothing handled can follow.

        That is at the first record that is not, once the horizon is behind.
        """
        last: tuple[int, int | None] | None = None
        first: tuple[int, int | None] | None = None
        async with aclosing(self._records(number, first_seq)) as records:
            async for seq, offset, _ in records:
                if is_handled(seq, offset):
                    last = seq, offset
                elif first is None:
                    first = seq, offset
                if first is not None and seq >= horizon:
                    break
        return Edge(last, first)

    async def _records(self, number: int, first_seq: int) -> AsyncGenerator[tuple[int, int, str]]:
        """A partition's records in their order, as far as was read: sequence, offset, flags.

        Native messages behind the newest record, of which there may be many, are not read again.
        """
        partition = self.partitions[number]
        end = 0 if partition.last is None else partition.last[0]
        reading = read_stream(
            self._connection,
            partition.stream,
            self._mapping.partition_filter(number),
            first_seq=first_seq,
            last_seq=end,
        )
        async with aclosing(cast(AsyncGenerator[list[tuple[int, Message]]], reading)) as batches:
            async for messages in batches:
                for seq, message in messages:
                    match = self._source.search(message.block)
                    if match is None or seq > end or _is_replay(match) or self._is_letter(message):
                        continue
                    yield seq, int(match[2]), (match[3] or b"").decode("ascii")

    def _add(self, seq: int, message: Message) -> None:
        if self._mapping.is_beside(message.subject):
            return
        match = self._source.search(message.block)
        letter = self._is_letter(message)
        if match is not None and letter is None:
            partition = self.partitions.get(int(match[1]))
            if partition is not None and _is_replay(match):
                partition.replays.append((seq, int(match[2])))
            elif partition is not None:
                partition.add_record(seq, int(match[2]))
            return
        number = self._places.partition(message.subject.split("."))
        if number is None or number not in self.partitions:
            return
        if letter is not None:
            self.partitions[number].letters.append((seq, letter[1].decode("latin-1")))
        else:
            self.partitions[number].natives.append(seq)

    def _is_letter(self, message: Message) -> re.Match[bytes] | None:
        return self._letter.search(message.block) if _LETTER in message.block else None


def _is_replay(match: re.Match[bytes]) -> bool:
    return match[3] is not None and REPLAYED.encode() in match[3]
