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

When a member was heard last is found by listening to the heartbeats, while all the rest is read and
for at most LISTEN_S: an age of None is a member that was silent all that time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from .. import naming
from ..errors import GroupError, GroupMissing, NotPossible, ServerUnreachable, StreamMissing
from ..jetstream.api import (
    API_PREFIX,
    CONSUMER_NOT_FOUND,
    MESSAGE_NOT_FOUND,
    STREAM_NOT_FOUND,
    Forbidden,
    RequestFailed,
)
from ..model import PartitionRecord, PartitionState, Retention
from ..partitioning.layout import Place, place
from .target import KNOWN_VERSION, Target, group_names, side_by_side, streams
from .view import GroupView

SCHEMA = "millstream.coordinator.describe/1"
_PROBE_NS = 5_000_000_000
"""A consumer that was made to count goes by itself after so long, if its maker dies."""
_NOT_THERE = (STREAM_NOT_FOUND, CONSUMER_NOT_FOUND, MESSAGE_NOT_FOUND)
LISTEN_S = 0.6
"""Longer than two heartbeats of the default interval."""


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
    """``free``, ``owned`` or ``moving``, as the record has it."""
    next: str | None = None
    """Who gets it when ``owner`` has drained it."""
    is_paused: bool = False
    stopped_seq: int | None = None
    """The message whose failure stopped the partition; ``stopped_error`` is what it raised."""
    stopped_error: str = ""
    pinned_to: str | None = None
    parked_keys: int = 0
    is_too_new: bool = False
    """A later version wrote its record: members of ours let it be."""

    @property
    def condition(self) -> str:
        """What a person wants to know of the state, in a word or a few."""
        words = ["too new"] if self.is_too_new else []
        if self.stopped_seq is not None:
            words.append(f"stopped at {self.stopped_seq}")
        elif self.is_paused:
            words.append("paused")
        if self.state == PartitionState.MOVING:
            words.append(f"moving to {self.next}" if self.next else "draining")
        if self.parked_keys:
            keys = "1 key" if self.parked_keys == 1 else f"{self.parked_keys} keys"
            words.append(f"{keys} parked")
        if self.pinned_to is not None:
            words.append(
                "pinned" if self.pinned_to == self.owner else f"pinned to {self.pinned_to}"
            )
        return ", ".join(words) or self.state


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
    is_draining: bool = False
    """An operator had it drained."""
    is_static: bool = False
    software: str = ""
    heartbeat_age_s: float | None = None
    """None: not heard while this was read."""

    @property
    def condition(self) -> str:
        """What it is in the group, in a word or a few."""
        words = ["leader" if self.is_leader else "member"]
        if self.is_leaving:
            words.append("leaving")
        if self.is_draining:
            words.append("drained")
        return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A group at one moment, or nearly: the rows are read one after the other."""

    group: str
    stream: str | None
    leader: str | None
    partitions: tuple[PartitionRow, ...]
    members: tuple[MemberRow, ...]
    is_paused: bool = False
    resize_to: int | None = None
    on_failure: str = ""
    letters: int = 0
    """Messages among the dead letters, parked ones too."""

    @property
    def lag(self) -> int | None:
        """The sum over the partitions; None for a group without a stream."""
        lags = [row.lag for row in self.partitions if row.lag is not None]
        return sum(lags) if lags or self.stream is not None else None

    def as_json(self) -> dict[str, object]:
        """The document ``describe --json`` prints: the fields of these classes by their names.

        ``{"schema", "group", "stream", "leader", "lag", "is_paused", "resize_to", "on_failure",
        "letters", "partitions": […], "members": […]}``
        """
        return {
            "schema": SCHEMA,
            "group": self.group,
            "stream": self.stream,
            "leader": self.leader,
            "lag": self.lag,
            "is_paused": self.is_paused,
            "resize_to": self.resize_to,
            "on_failure": self.on_failure,
            "letters": self.letters,
            "partitions": [asdict(row) for row in self.partitions],
            "members": [asdict(row) for row in self.members],
        }

    def members_json(self) -> dict[str, object]:
        """``{"schema", "group", "leader", "members": […]}``, as ``members --json`` prints it."""
        return {
            "schema": "millstream.coordinator.members/1",
            "group": self.group,
            "leader": self.leader,
            "members": [asdict(row) for row in self.members],
        }

    def lag_json(self) -> dict[str, object]:
        """``{"schema", "group", "lag", "partitions": [{"partition", "current", "end", "lag"}]}``.

        Raises NotPossible for a group without a stream.
        """
        names = ("partition", "current", "end", "lag")
        return {
            "schema": "millstream.coordinator.lag/1",
            "group": self.group,
            "lag": self.total_lag(),
            "partitions": [{name: getattr(row, name) for name in names} for row in self.partitions],
        }

    def total_lag(self) -> int:
        """The sum over the partitions; NotPossible for a group without a stream."""
        if self.stream is None:
            raise NotPossible(self.group, "it has no stream, and so no lag")
        return sum(row.lag or 0 for row in self.partitions)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """A group in the list of all; ``error``: its bucket cannot be read."""

    group: str
    stream: str | None = None
    partitions: int = 0
    members: int = 0
    leader: str | None = None
    condition: str = ""
    error: str = ""


async def list_groups(connection: Client, *, prefix: str = API_PREFIX) -> list[GroupLine]:
    """Every group of the server (or the account), by name. Raises ServerUnreachable."""
    names = await group_names(connection, prefix=prefix)
    lines = await side_by_side(_line(connection, it, prefix) for it in names)
    return [line for line in lines if line is not None]


async def _line(connection: Client, group: str, prefix: str) -> GroupLine | None:
    """One group; None for a bucket that is none (any more)."""
    try:
        view = await Target(connection, group, prefix=prefix).view()
    except GroupMissing:
        return None
    except ServerUnreachable:
        raise
    except GroupError as error:
        return GroupLine(group=group, error=str(error))
    return GroupLine(
        group=group,
        stream=view.config.stream,
        partitions=view.config.active,
        members=len(view.members),
        leader=view.leader.member if view.leader else None,
        condition=_condition(view),
    )


def _condition(view: GroupView) -> str:
    """The first of these that is so: most urgent first."""
    stopped = sum(record.stopped_seq is not None for record in view.partitions.values())
    if stopped:
        return f"{_partitions(stopped)} stopped"
    too_new = sum(record.version > KNOWN_VERSION for record in view.partitions.values())
    if too_new:
        return f"{_partitions(too_new)} too new"
    if view.control.is_paused:
        return "paused"
    if view.config.resize_to is not None:
        return f"resizing to {view.config.resize_to}"
    if not any(member.capacity for member in view.members.values()):
        return "no workers"
    if view.control.paused:
        return f"{_partitions(len(view.control.paused))} paused"
    return "running"


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count > 1 else ''}"


async def read_overview(target: Target, *, listen: bool = True) -> Overview:
    """Read everything about a group from its bucket, its streams and its consumers.

    ``listen`` False: no heartbeats are waited for. Raises GroupError: GroupMissing, StreamMissing,
    ServerUnreachable, BadRecord.
    """
    with target.errors():
        async with _heartbeats(target, listen=listen) as heartbeats:
            view = await target.view()
            reader = _StreamReader(target, view)
            await reader.open()
            rows = await side_by_side(reader.row(it) for it in range(view.config.active))
            letters = await _letters(target)
            ages = await heartbeats.ages(view.members) if listen else {}
    leader = view.leader.member if view.leader else None
    return Overview(
        group=target.group,
        stream=view.config.stream,
        leader=leader,
        partitions=tuple(rows),
        members=tuple(_member_rows(view, leader, ages)),
        is_paused=view.control.is_paused,
        resize_to=view.config.resize_to,
        on_failure=view.config.on_failure,
        letters=letters,
    )


async def _letters(target: Target) -> int:
    info = await target.stream_info(naming.dead_letter_stream(target.group))
    return 0 if info is None else int(info["state"]["messages"])


class _Heartbeats:
    """When each member was heard last, on this process's clock."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}
        self._news = asyncio.Event()

    async def hear(self, message: Msg) -> None:
        self.heard[message.subject.rpartition(".")[2]] = time.monotonic()
        self._news.set()

    async def ages(self, members: Mapping[str, object]) -> dict[str, float]:
        """Wait until all of them were heard, or LISTEN_S."""
        try:
            async with asyncio.timeout(LISTEN_S):
                while not self.heard.keys() >= members.keys():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        now = time.monotonic()
        return {member: now - at for member, at in self.heard.items()}


@asynccontextmanager
async def _heartbeats(target: Target, *, listen: bool) -> AsyncIterator[_Heartbeats]:
    heartbeats = _Heartbeats()
    if not listen:
        yield heartbeats
        return
    subject = naming.heartbeat(target.group, "*")
    subscription = await target.listen(subject, heartbeats.hear)
    try:
        yield heartbeats
    finally:
        if not target.connection.is_closed:
            await subscription.unsubscribe()


class _StreamReader:
    """Asks the streams and their consumers about one partition after the other."""

    def __init__(self, target: Target, view: GroupView) -> None:
        self._target = target
        self._view = view
        self._work_queues: set[str] = set()

    async def open(self) -> None:
        """Look at each stream once. Raises StreamMissing."""
        names = streams(self._view.config)
        for name, info in zip(
            names, await side_by_side(self._stream_info(it) for it in names), strict=True
        ):
            if info["config"].get("retention") == Retention.WORK_QUEUE:
                self._work_queues.add(name)

    async def row(self, number: int) -> PartitionRow:
        """Everything about one partition."""
        view = self._view
        record = self._record(number)
        member = view.members.get(record.owner) if record.owner else None
        current = end = lag = None
        where = place(view.config, number)
        if where is not None:
            current, end, lag = await self._position(where, number, record)
        parked = view.parked.get(number)
        return PartitionRow(
            partition=number,
            current=current,
            end=end,
            lag=lag,
            owner=record.owner,
            host=member.host if member else None,
            epoch=record.epoch,
            state=str(record.state),
            next=record.next,
            is_paused=view.control.is_paused or number in view.control.paused,
            stopped_seq=record.stopped_seq,
            stopped_error=record.stopped_error,
            pinned_to=view.control.pins.get(number),
            parked_keys=len(parked.keys) if parked else 0,
            is_too_new=record.version > KNOWN_VERSION,
        )

    def _record(self, number: int) -> PartitionRecord:
        """What is said of the partition; one of before a resize is nobody's."""
        config = self._view.config
        record = self._view.partitions.get(number)
        if record is None or (record.level or config.partitions) != config.active:
            return PartitionRecord(epoch=0)
        return record

    async def _position(
        self, where: Place, number: int, record: PartitionRecord
    ) -> tuple[int, int | None, int | None]:
        """``current``, ``end`` and ``lag`` of a partition."""
        current = self._saved_floor(number, record)
        end = await self._last_seq(where)
        if record.epoch:
            name = naming.consumer(self._target.group, number, record.epoch)
            consumer = await self._ask(f"CONSUMER.INFO.{where.stream}.{name}")
            if consumer is not None:
                acked = int(consumer["ack_floor"]["stream_seq"])
                lag = int(consumer["num_pending"]) + int(consumer["num_ack_pending"])
                return max(current, acked), end, lag
        if end is None or end <= current:
            return current, end, 0
        return current, end, await self._count(where, current + 1)

    def _saved_floor(self, number: int, record: PartitionRecord) -> int:
        """What the bucket says is handled, by the record or by what its owner saved since.

        What somebody saved under an earlier epoch counts only where the record points to it: after
        a reset it is what was handled once.
        """
        floor = record.floor
        for member in {record.owner, record.done_from}:
            done = self._view.done.get(member) if member else None
            position = done.partitions.get(number) if done else None
            is_current = position is not None and position.epoch == record.epoch
            if position is not None and (is_current or member == record.done_from):
                floor = max(floor, position.floor)
        return floor

    async def _last_seq(self, where: Place) -> int | None:
        wanted = {"last_by_subj": where.filter or ">"}
        answer = await self._ask(f"STREAM.MSG.GET.{where.stream}", wanted)
        return None if answer is None else int(answer["message"]["seq"])

    async def _count(self, where: Place, start: int) -> int | None:
        """How many messages of the partition there are from ``start`` on.

        None for a user who may look and make no consumer.
        """
        if where.stream in self._work_queues:
            info = await self._stream_info(where.stream, where.filter)
            return sum(map(int, (info["state"].get("subjects") or {}).values()))
        config: dict[str, object] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _PROBE_NS,
        }
        if where.filter is not None:
            config["filter_subject"] = where.filter
        body = {"stream_name": where.stream, "config": config}
        try:
            made = await self._target.api.call(f"CONSUMER.CREATE.{where.stream}", body)
        except Forbidden:
            return None
        await self._target.delete_consumer(where.stream, made["name"])
        return int(made["num_pending"])

    async def _stream_info(self, stream: str, pattern: str | None = None) -> dict[str, Any]:
        body = None if pattern is None else {"subjects_filter": pattern}
        answer = await self._ask(f"STREAM.INFO.{stream}", body)
        if answer is None:
            raise StreamMissing(stream)
        return answer

    async def _ask(self, name: str, body: object = None) -> dict[str, Any] | None:
        """What JetStream says; None: what was asked for is not there."""
        try:
            return await self._target.api.call(name, body)
        except RequestFailed as error:
            if error.code in _NOT_THERE:
                return None
            raise


def _member_rows(view: GroupView, leader: str | None, ages: Mapping[str, float]) -> list[MemberRow]:
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
            is_draining=name in view.control.draining,
            is_static=member.is_static,
            software=member.software,
            heartbeat_age_s=ages.get(name),
        )
        for name, member in sorted(view.members.items())
    ]
