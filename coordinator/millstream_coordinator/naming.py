"""Names a group writes on the server, made and read in this one place.

====================================== ============================================
KV bucket of a group                   ``MILLSTREAM_<group>``
its keys                               ``cfg``, ``ctl``, ``leader``, ``members.<id>``,
                                       ``part.<n>``, ``parked.<n>``, ``done.<member>``,
                                       ``done.=<epoch>-<i>`` (what a resize hands on),
                                       ``event.<i>`` (the last events, in a ring)
a partition's consumer                 ``<group>-p<partition>-e<epoch>``
heartbeats and probes (core NATS)      ``millstream.group.<group>.heartbeat.<member>``,
                                       ``millstream.group.<group>.probe.<member>``
events of a member (core NATS)         ``millstream.group.<group>.event.<member>``
a group is being deleted (core NATS)   ``millstream.group.<group>.release``
requests to coordinators (core NATS)   ``millstream.coordinator.<command>``
dead letters: stream, subject          ``MILLSTREAM_DLQ_<group>``,
                                       ``millstream.dlq.<group>.<partition>.<key token>``
a group's own work-queue stream        ``MILLSTREAM_WORK_<group>``,
                                       ``millstream.work.<group>.<partition>[.<finer>].<subject>``
====================================== ============================================
"""

import re
from typing import Final, NamedTuple

from .errors import BadName

REQUESTS: Final = "millstream.coordinator"
"""What the subjects of the micro service's requests begin with."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_IN_STREAMS: Final = frozenset(" .*>/\\\t\r\n")

CONFIG_KEY: Final = "cfg"
CONTROL_KEY: Final = "ctl"
LEADER_KEY: Final = "leader"
MEMBER_PREFIX: Final = "members."
PARTITION_PREFIX: Final = "part."
PARKED_PREFIX: Final = "parked."
DONE_PREFIX: Final = "done."
EVENT_PREFIX: Final = "event."

EVENTS_KEPT: Final = 256
"""So many entries has the ring of events; each holds a few."""

LETTER_SUBJECT: Final = "Millstream-Subject"
LETTER_SEQ: Final = "Millstream-Seq"
LETTER_EPOCH: Final = "Millstream-Epoch"
LETTER_ERROR: Final = "Millstream-Error"
LETTER_ATTEMPTS: Final = "Millstream-Attempts"
LETTER_REASON: Final = "Millstream-Reason"
LETTER_TIME: Final = "Millstream-Time"
"""Wall clock in nanoseconds at which the message was given up."""
LETTER_STORED: Final = "Millstream-Stored"
"""Wall clock in nanoseconds at which the stream stored the message."""
LETTER_HEADERS: Final = (
    LETTER_SUBJECT,
    LETTER_SEQ,
    LETTER_EPOCH,
    LETTER_ERROR,
    LETTER_ATTEMPTS,
    LETTER_REASON,
    LETTER_TIME,
    LETTER_STORED,
)
REPLAY: Final = "Millstream-Replay"
"""Header of a message published again for one group: all others ack and skip it."""


class ConsumerName(NamedTuple):
    """What a consumer's name says."""

    partition: int
    epoch: int


def check_name(kind: str, name: str) -> str:
    """Return ``name``; or raise BadName. ``kind`` is what to call it: group, member."""
    if not _NAME.fullmatch(name):
        raise BadName(kind, name)
    return name


def is_stream(name: str) -> bool:
    """Whether a stream can have this name."""
    return bool(name) and not set(name) & _NOT_IN_STREAMS


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


def event_key(entry: int) -> str:
    """Key of an entry of the ring of events; entries are counted from 0 and never end."""
    return f"{EVENT_PREFIX}{entry % EVENTS_KEPT}"


def handed_on(base_epoch: int, chunk: int) -> str:
    """Whom `done_from` names after a resize: no member, for no member's name has a ``=``."""
    return f"={base_epoch}-{chunk}"


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


def release(group: str) -> str:
    """Subject on which coordinators hear that they are to leave the group: it is being deleted."""
    return f"millstream.group.{group}.release"


def dead_letter_stream(group: str) -> str:
    """Name of the stream of the group's dead letters and parked messages."""
    return f"MILLSTREAM_DLQ_{group}"


def dead_letter(group: str, partition: int | str, key_token: str) -> str:
    """Subject of a dead letter; ``*`` and ``>`` may stand for partition and key token."""
    return f"millstream.dlq.{group}.{partition}.{key_token}"


def work_stream(group: str, generation: int = 1) -> str:
    """Name of the group's own work-queue stream, sourced from another.

    A generation after the first has its number behind a ``+``, which no group's name can hold.
    """
    first = f"MILLSTREAM_WORK_{group}"
    return first if generation == 1 else f"{first}+{generation}"


def work_generation(group: str, stream: str) -> int | None:
    """Which generation of the group's own stream a stream is; None: none of its own."""
    found = re.fullmatch(rf"{re.escape(work_stream(group))}(?:\+([2-9]|[1-9][0-9]+))?", stream)
    return None if found is None else int(found[1] or 1)


def work_prefix(group: str) -> str:
    """What the subjects of the group's own stream begin with, before the partition's token."""
    return f"millstream.work.{group}"
