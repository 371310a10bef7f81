"""Names a group writes on the server, made and read in this one place.

====================================== ============================================
KV bucket of a group                   ``MILLSTREAM_<group>``
its keys                               ``cfg``, ``ctl``, ``leader``, ``members.<id>``,
                                       ``part.<n>``, ``parked.<n>``, ``done.<member>``
a partition's consumer                 ``<group>-p<partition>-e<epoch>``
heartbeats and probes (core NATS)      ``millstream.group.<group>.heartbeat.<member>``,
                                       ``millstream.group.<group>.probe.<member>``
events of a member (core NATS)         ``millstream.group.<group>.event.<member>``
dead letters: stream, subject          ``MILLSTREAM_DLQ_<group>``,
                                       ``millstream.dlq.<group>.<partition>.<key token>``
a group's own work-queue stream        ``MILLSTREAM_WORK_<group>``,
                                       ``millstream.work.<group>.<partition>[.<finer>].<subject>``
====================================== ============================================
"""

import re
from typing import Final, NamedTuple

from .errors import BadName

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

CONFIG_KEY: Final = "cfg"
CONTROL_KEY: Final = "ctl"
LEADER_KEY: Final = "leader"
MEMBER_PREFIX: Final = "members."
PARTITION_PREFIX: Final = "part."
PARKED_PREFIX: Final = "parked."
DONE_PREFIX: Final = "done."


class ConsumerName(NamedTuple):
    """What a consumer's name says."""

    partition: int
    epoch: int


def check_name(kind: str, name: str) -> str:
    """Return ``name``; or raise BadName. ``kind`` is what to call it: group, member."""
    if not _NAME.fullmatch(name):
        raise BadName(kind, name)
    return name


def bucket(group: str) -> str:
    """Name of the group's KV bucket."""
    return f"MILLSTREAM_{group}"


def member_key(member: str) -> str:
    """Key of a member's record."""
    return f"{MEMBER_PREFIX}{member}"


def partition_key(partition: int) -> str:
    """Key of a partition's record."""
    return f"{PARTITION_PREFIX}{partition}"


def parked_key(partition: int) -> str:
    """Key of the record of a partition's parked keys."""
    return f"{PARKED_PREFIX}{partition}"


def done_key(member: str) -> str:
    """Key of a member's progress."""
    return f"{DONE_PREFIX}{member}"


def consumer(group: str, partition: int, epoch: int) -> str:
    """Name of the consumer of one partition under one epoch."""
    return f"{group}-p{partition}-e{epoch}"


def parse_consumer(group: str, name: str) -> ConsumerName | None:
    """Read a consumer's name; None when it is not one of this group's."""
    found = re.fullmatch(rf"{re.escape(group)}-p(0|[1-9][0-9]*)-e(0|[1-9][0-9]*)", name)
    return ConsumerName(int(found[1]), int(found[2])) if found else None


def heartbeat(group: str, member: str) -> str:
    """Subject of a member's heartbeats; ``*`` as the member is everybody's."""
    return f"millstream.group.{group}.heartbeat.{member}"


def probe(group: str, member: str) -> str:
    """Subject a member answers while its connection is up."""
    return f"millstream.group.{group}.probe.{member}"


def event(group: str, member: str) -> str:
    """Subject a member tells its events on; ``*`` as the member is everybody's."""
    return f"millstream.group.{group}.event.{member}"


def dead_letter_stream(group: str) -> str:
    """Name of the stream of the group's dead letters and parked messages."""
    return f"MILLSTREAM_DLQ_{group}"


def dead_letter(group: str, partition: int | str, key_token: str) -> str:
    """Subject of a dead letter; ``*`` and ``>`` may stand for partition and key token."""
    return f"millstream.dlq.{group}.{partition}.{key_token}"


def work_stream(group: str) -> str:
    """Name of the group's own work-queue stream, sourced from another."""
    return f"MILLSTREAM_WORK_{group}"


def work_prefix(group: str) -> str:
    """What the subjects of the group's own stream begin with, before the partition's token."""
    return f"millstream.work.{group}"
