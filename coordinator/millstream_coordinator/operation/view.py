"""A whole group as its bucket says it, for whoever looks from outside."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nats.aio.client import Client

from .. import naming
from ..errors import BadRecord, GroupMissing
from ..jetstream.api import API_PREFIX, STREAM_NOT_FOUND, Api, RequestFailed
from ..model import (
    ConfigRecord,
    ControlRecord,
    DoneRecord,
    LeaderRecord,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    R,
    decode,
)

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """The records of a group, read one after another: together they are no snapshot."""

    config: ConfigRecord
    control: ControlRecord = field(default_factory=ControlRecord)
    leader: LeaderRecord | None = None
    members: Mapping[str, MemberRecord] = field(default_factory=dict)
    partitions: Mapping[int, PartitionRecord] = field(default_factory=dict)
    done: Mapping[str, DoneRecord] = field(default_factory=dict)
    parked: Mapping[int, ParkedRecord] = field(default_factory=dict)


async def read_view(connection: Client, name: str, *, prefix: str = API_PREFIX) -> GroupView:
    """Read every record of the group ``name``; ``prefix`` is where JetStream is asked.

    Raises GroupMissing when there is no such group, PermissionMissing, ServerUnreachable when
    JetStream does not answer, BadRecord for a value that is none.
    """
    api = Api(connection, _TIMEOUT_S, prefix)
    bucket = naming.bucket(naming.check_name("group", name))
    try:
        values = await api.read_all(bucket)
    except RequestFailed as error:
        if error.code == STREAM_NOT_FOUND:
            raise GroupMissing(name) from error
        raise api.failure(error, name) from error
    if naming.CONFIG_KEY not in values:
        raise GroupMissing(name)
    return _view(values)


def _view(values: Mapping[str, bytes]) -> GroupView:
    members: dict[str, MemberRecord] = {}
    partitions: dict[int, PartitionRecord] = {}
    done: dict[str, DoneRecord] = {}
    parked: dict[int, ParkedRecord] = {}
    for key, value in values.items():
        head, _, name = key.partition(".")
        match f"{head}.":
            case naming.MEMBER_PREFIX:
                members[name] = _read(MemberRecord, key, value)
            case naming.PARTITION_PREFIX:
                record = _read(PartitionRecord, key, value)
                if not record.is_place:
                    partitions[_number(key, name)] = record
            case naming.PARKED_PREFIX:
                parked[_number(key, name)] = _read(ParkedRecord, key, value)
            case naming.DONE_PREFIX:
                done[name] = _read(DoneRecord, key, value)
            case _:
                pass
    leader = values.get(naming.LEADER_KEY)
    control = values.get(naming.CONTROL_KEY)
    return GroupView(
        config=_read(ConfigRecord, naming.CONFIG_KEY, values[naming.CONFIG_KEY]),
        control=(
            ControlRecord()
            if control is None
            else _read(ControlRecord, naming.CONTROL_KEY, control)
        ),
        leader=None if leader is None else _read(LeaderRecord, naming.LEADER_KEY, leader),
        members=dict(sorted(members.items())),
        partitions=dict(sorted(partitions.items())),
        done=dict(sorted(done.items())),
        parked=dict(sorted(parked.items())),
    )


def _read(kind: type[R], key: str, value: bytes) -> R:
    try:
        return decode(kind, value)
    except BadRecord as error:
        raise BadRecord(error.kind, f"key {key!r}: {error.reason}") from error


def _number(key: str, text: str) -> int:
    if not text.isdecimal():
        raise BadRecord("partition", f"key {key!r} has no number")
    return int(text)
