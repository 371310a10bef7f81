"""A group as people and monitors look at it: who owns what, how far it is, how far behind.

The shape is the one Kafka's users know from ``kafka-consumer-groups --describe``. A stream's
sequences are shared by its partitions, so two columns mean a little less than in Kafka and one
exactly the same:

* ``current``: the highest stream sequence up to which every message of the partition is handled,
* ``end``: the sequence of the partition's newest message, None if it has none,
* ``lag``: how many messages of the partition are not handled yet. Where the partition has its
  consumer, that is the consumer's count of what it has not delivered plus what is delivered and not
  acknowledged. Where it has none (nobody serves it), it is counted from ``current`` on; what the
  done-set holds above it is then counted in.

Reading changes nothing in the group. To count without a consumer, one without acknowledgements is
made and deleted at once (on a work-queue stream: not needed, all that is left is unhandled).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StreamInfo

from .. import naming
from ..errors import ServerUnreachable, StreamMissing
from ..model import PartitionState
from .view import GroupView, read_view

SCHEMA = "millstream.coordinator.describe/1"
_CONCURRENT_REQUESTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRow:
    """One partition. ``current``, ``end`` and ``lag`` are None for a group without a stream."""

    partition: int
    current: int | None
    end: int | None
    lag: int | None
    owner: str | None
    host: str | None
    epoch: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRow:
    """One member; ``partitions`` are the numbers it owns."""

    member: str
    host: str
    pid: int
    capacity: int
    labels: Mapping[str, str]
    partitions: tuple[int, ...]
    is_leader: bool
    is_leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A group at one moment, or nearly: the rows are read one after the other."""

    group: str
    stream: str | None
    leader: str | None
    partitions: tuple[PartitionRow, ...]
    members: tuple[MemberRow, ...]

    @property
    def lag(self) -> int | None:
        """The sum over the partitions; None for a group without a stream."""
        lags = [row.lag for row in self.partitions if row.lag is not None]
        return sum(lags) if lags or self.stream is not None else None

    def as_json(self) -> dict[str, object]:
        """The document ``describe --json`` prints: the fields of these classes by their names.

        ``{"schema", "group", "stream", "leader", "lag", "partitions": […], "members": […]}``
        """
        return {
            "schema": SCHEMA,
            "group": self.group,
            "stream": self.stream,
            "leader": self.leader,
            "lag": self.lag,
            "partitions": [asdict(row) for row in self.partitions],
            "members": [asdict(row) for row in self.members],
        }


async def read_overview(connection: Client, group: str) -> Overview:
    """Read everything about a group from its bucket, its stream and its consumers.

    Raises GroupError: GroupMissing, StreamMissing, ServerUnreachable, BadRecord.
    """
    view = await read_view(connection, group)
    reader = _StreamReader(connection, group, view)
    limit = asyncio.Semaphore(_CONCURRENT_REQUESTS)

    async def row(number: int) -> PartitionRow:
        async with limit:
            return await reader.row(number)

    try:
        await reader.open()
        rows = await asyncio.gather(*(row(it) for it in range(view.config.partitions)))
    except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
        url = connection.connected_url
        reason = str(error) or type(error).__name__
        raise ServerUnreachable(url.geturl() if url else "", reason) from error
    leader = view.leader.member if view.leader else None
    return Overview(
        group=group,
        stream=view.config.stream,
        leader=leader,
        partitions=tuple(rows),
        members=tuple(_member_rows(view, leader)),
    )


class _StreamReader:
    """Asks the stream and its consumers about one partition after the other."""

    def __init__(self, connection: Client, group: str, view: GroupView) -> None:
        self._jetstream: JetStreamContext = connection.jetstream()
        self._group = group
        self._view = view
        self._is_work_queue = False

    async def open(self) -> None:
        """Look at the stream once. Raises StreamMissing."""
        stream = self._view.config.stream
        if stream is None:
            return
        info = await self._stream_info(stream)
        self._is_work_queue = info.config.retention == RetentionPolicy.WORK_QUEUE

    async def row(self, number: int) -> PartitionRow:
        """Everything about one partition."""
        view = self._view
        record = view.partitions.get(number)
        owner = record.owner if record else None
        member = view.members.get(owner) if owner else None
        current = end = lag = None
        if view.config.stream is not None:
            current, end, lag = await self._position(view.config.stream, number)
        return PartitionRow(
            partition=number,
            current=current,
            end=end,
            lag=lag,
            owner=owner,
            host=member.host if member else None,
            epoch=record.epoch if record else 0,
            state=str(record.state if record else PartitionState.FREE),
        )

    async def _position(self, stream: str, number: int) -> tuple[int, int | None, int]:
        """``current``, ``end`` and ``lag`` of a partition."""
        record = self._view.partitions.get(number)
        pattern = (self._view.config.filter or ">").replace("{partition}", str(number))
        current = self._saved_floor(number)
        if record is not None:
            name = naming.consumer(self._group, number, record.epoch)
            try:
                consumer = await self._jetstream.consumer_info(stream, name)
            except nats.js.errors.NotFoundError:
                pass
            else:
                acked = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
                lag = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
                return max(current, acked), await self._last_seq(stream, pattern), lag
        end = await self._last_seq(stream, pattern)
        if end is None or end <= current:
            return current, end, 0
        return current, end, await self._count(stream, pattern, current + 1)

    def _saved_floor(self, number: int) -> int:
        """What the bucket says is handled, by the record or by what its owner saved since."""
        record = self._view.partitions.get(number)
        if record is None:
            return 0
        floor = record.floor
        for member in (record.owner, record.done_from):
            done = self._view.done.get(member) if member else None
            position = done.partitions.get(number) if done else None
            if position is not None:
                floor = max(floor, position.floor)
        return floor

    async def _last_seq(self, stream: str, pattern: str) -> int | None:
        try:
            return (await self._jetstream.get_msg(stream, subject=pattern)).seq
        except nats.js.errors.NotFoundError:
            return None

    async def _count(self, stream: str, pattern: str, start: int) -> int:
        """How many messages of the pattern there are from ``start`` on."""
        if self._is_work_queue:
            info = await self._stream_info(stream, pattern)
            return sum((info.state.subjects or {}).values())
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            filter_subject=pattern,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=5,
        )
        consumer = await self._jetstream.add_consumer(stream, config)
        await self._jetstream.delete_consumer(stream, consumer.name)
        return consumer.num_pending or 0

    async def _stream_info(self, stream: str, pattern: str | None = None) -> StreamInfo:
        try:
            return await self._jetstream.stream_info(stream, subjects_filter=pattern)
        except nats.js.errors.NotFoundError as error:
            raise StreamMissing(stream) from error


def _member_rows(view: GroupView, leader: str | None) -> list[MemberRow]:
    owned: dict[str, list[int]] = {}
    for number, record in sorted(view.partitions.items()):
        if record.owner is not None:
            owned.setdefault(record.owner, []).append(number)
    return [
        MemberRow(
            member=name,
            host=member.host,
            pid=member.pid,
            capacity=member.capacity,
            labels=dict(member.labels),
            partitions=tuple(owned.get(name, ())),
            is_leader=name == leader,
            is_leaving=member.is_leaving,
        )
        for name, member in sorted(view.members.items())
    ]
