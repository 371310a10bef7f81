"""What a member of a group tells the world: the events of ``Group.events()`` and ``on_event``.

Only facts somebody outside may want to see, one value each; what the machines exchange with their
edge is in ``ports.py``. ``describe`` gives the one-line text used by logs and plain terminals.

**On the wire** an event is a JSON object (`encode_event`)::

    {"version": 1, "number": 17, "at_ns": 1767225600000000000, "group": "delays",
     "teller": "w1", "event": "partition_moved", "partition": 3, "epoch": 8, …}

``teller`` is the member that tells it, ``at_ns`` its wall clock, ``event`` the class's name, the
rest are the event's own fields. Each member publishes what it tells on `naming.event`, a subject of
core NATS. What concerns the group (GROUP_EVENTS) is published by the leader alone, and kept by it
in the group's bucket: entries ``event.<i>`` are JSON arrays of up to EVENTS_PER_ENTRY events each,
the entry after the 256th overwrites the first. So is, as its owner told it, how long a partition
stood still. ``number`` grows by one with each event kept, whoever leads; it is null in what a
member announces for itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import msgspec

EVENTS_PER_ENTRY = 64
EVENT_VERSION = 1


class Cause(StrEnum):
    """Why a partition changed its owner; what ``part.<n>`` and the events say."""

    JOINED = "joined"
    """A member came, and takes its share."""
    LEFT = "left"
    """The owner drained and left."""
    MISSED_HEARTBEATS = "missed heartbeats"
    """The owner was silent for the heartbeat timeout."""
    NO_RESPONDERS = "probe answered no responders"
    """The owner's connection was gone."""
    RESTARTED = "restarted"
    """Another process came under the owner's name."""
    DRAINED = "drained"
    """An operator wants the owner to own nothing."""
    MOVED = "moved by hand"
    RESIZED = "resized"
    RESET = "reset"
    REBALANCED = "rebalanced"
    """Capacities changed, or an operator took back a move or a drain."""
    SINK_AHEAD = "a sink held a higher epoch"
    """The group's bucket was lost once; the epoch was raised above the sink's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The member is in the group."""

    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The member is in the group no more: it drained and left, or its record ran out."""

    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged:
    """Somebody else leads; None: nobody does."""

    leader: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionAssigned:
    """The member serves the partition from now on."""

    partition: int
    epoch: int
    cause: str = ""
    """Why it changed hands (`Cause`)."""
    stopped_s: float | None = None
    """How long nobody served it, by the wall clocks of both owners; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRevoked:
    """The member drained the partition and gave it away."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLost:
    """The partition was taken away: handlers still running work under a stale epoch."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """Ownership could not be confirmed in time: nothing is handed out until it is."""

    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfenced:
    """Ownership is confirmed again."""

    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberDead:
    """The leader (this member) gave a verdict; ``reason``: ``no responders`` or ``silent``."""

    member: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMoved:
    """The group's record names another owner; seen by every member. None: nobody."""

    partition: int
    epoch: int
    owner: str | None
    previous: str | None
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """An operator paused the group (``partitions`` None) or some of its partitions."""

    partitions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """An operator resumed the group (``partitions`` None) or some of its partitions."""

    partitions: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """An operator wants another number of partitions; every partition is drained."""

    partitions: int
    resize_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """The group has another number of partitions now."""

    previous: int
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRetried:
    """A handler raised; the message waits in its lane for ``delay_s``."""

    partition: int
    seq: int
    attempt: int
    delay_s: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOverdue:
    """A handler call has run past its deadline; its lane waits until it ends, whenever that is."""

    partition: int
    seq: int
    attempt: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageGivenUp:
    """A message is among the dead letters now; ``reason``: ``dead-letter``, ``park``, ``skip``."""

    partition: int
    seq: int
    reason: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStopped:
    """A message failed too often, or too many keys are parked: an operator must resume."""

    partition: int
    seq: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionResumed:
    """The partition goes on."""

    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReplayed:
    """A replay of a parked key ended; ``is_parked``: it failed again, and stays parked."""

    partition: int
    key: str
    count: int
    is_parked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerReconciled:
    """The leader (this member) deleted a consumer whose epoch is not current."""

    consumer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTooNew:
    """A record was written by a newer version: this member leaves alone what it concerns."""

    key: str
    record_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused:
    """The group's bucket was lost, and cannot be made again yet: the member keeps trying."""

    member: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDoubtful:
    """What the stream may do to messages that nobody has handled yet."""

    text: str


GroupEvent = (
    Joined
    | Left
    | LeaderChanged
    | PartitionAssigned
    | PartitionRevoked
    | PartitionLost
    | Fenced
    | Unfenced
    | MemberDead
    | PartitionMoved
    | Paused
    | Resumed
    | Resizing
    | Resized
    | MessageRetried
    | HandlerOverdue
    | MessageGivenUp
    | PartitionStopped
    | PartitionResumed
    | KeyReplayed
    | ConsumerReconciled
    | RecordTooNew
    | JoinRefused
    | StreamDoubtful
)

GROUP_EVENTS = (
    Joined
    | Left
    | LeaderChanged
    | MemberDead
    | PartitionMoved
    | Paused
    | Resumed
    | Resizing
    | Resized
    | ConsumerReconciled
)
"""What the leader tells for everybody, and keeps."""

_encoder = msgspec.json.Encoder()


def event_name(event: GroupEvent | type[GroupEvent]) -> str:
    """``PartitionMoved`` is called ``partition_moved`` on the wire."""
    kind = event if isinstance(event, type) else type(event)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def event_object(
    event: GroupEvent, *, group: str, member: str, at_ns: int, number: int | None = None
) -> dict[str, object]:
    """Return the event as on the wire, before it is JSON."""
    return {
        "version": EVENT_VERSION,
        "number": number,
        "at_ns": at_ns,
        "group": group,
        "teller": member,
        "event": event_name(event),
        **{one.name: getattr(event, one.name) for one in fields(event)},
    }


def encode_events(events: dict[str, object] | Sequence[dict[str, object]]) -> bytes:
    """Encode one event for a subject, or several for an entry of the ring."""
    return _encoder.encode(events)


def decode_events(value: bytes) -> list[dict[str, Any]]:
    """Read either form; raises ValueError when the bytes are neither."""
    read = msgspec.json.decode(value)
    events = read if isinstance(read, list) else [read]
    if not all(isinstance(one, dict) and "event" in one for one in events):
        raise ValueError("not events of a group")
    return events


def describe(event: GroupEvent) -> str:
    """One line about an event: its name in words and its facts."""
    facts = " ".join(f"{name}={getattr(event, name)}" for name in event.__slots__)
    return f"{event_name(event).replace('_', ' ')}: {facts}"
