"""The values of a partitioned consumer group: what its bucket holds, what a handler gets.

Everything here but a `Message` is a frozen value; who changes records is in ``machine/``. They have
one wire form, JSON with the fields below (`encode` and `decode`), so that any tool may read a
group's bucket. Unknown fields are ignored on reading: a newer member may add some.

``PartitionRecord.epoch`` is the fencing number: it grows with every change of owner and with
nothing else, by one unless something was lost or resized. ``floor`` is a stream sequence below or
at which every message of the partition has been handled; what is handled above it is in the
owner's ``DoneRecord``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from .errors import BadRecord

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class PartitionState(StrEnum):
    """Where a partition stands; the wire value is what ``part.<n>`` holds."""

    FREE = "free"
    """Nobody owns it: no member with capacity was there."""
    OWNED = "owned"
    """``owner`` serves it, or is on its way to."""
    MOVING = "moving"
    """``owner`` drains it for ``next``."""


class Retention(StrEnum):
    """What decides how a consumer is made again: the stream's retention, with the wire's values."""

    LIMITS = "limits"
    INTEREST = "interest"
    WORK_QUEUE = "workqueue"


class FailurePolicy(StrEnum):
    """What becomes of a message whose handler failed ``max_attempts`` times."""

    RETRY = "retry"
    """It is tried for ever; only its key waits."""
    DEAD_LETTER = "dead-letter"
    """It is stored as a dead letter, and its key goes on."""
    PARK = "park"
    """It and every later message of its key are stored, in order, until somebody replays them."""
    STOP = "stop"
    """Its partition stops until somebody resumes it."""


class LetterReason(StrEnum):
    """Why a message is among the dead letters; the wire value is in `naming.LETTER_REASON`."""

    DEAD_LETTER = "dead-letter"
    """Its handler failed too often, and its key went on."""
    PARK = "park"
    """Its key is parked: it failed too often, or waits behind one that did."""
    SKIP = "skip"
    """An operator had it skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRecord:
    """``cfg``: what all members must agree on. ``stream`` None: membership and epochs only."""

    partitions: int
    """How many the group began with; `active` says how many there are."""
    stream: str | None
    """With ``{partition}`` in it: one stream per partition."""
    filter: str | None
    """Subject filter with ``{partition}`` where the partition's number stands."""
    key: str | None = None
    """The key rule's text; None: a function of the members'."""
    levels: tuple[int, ...] = ()
    """Numbers of partitions the subjects carry a token for, each a multiple of the one before."""
    level: int | None = None
    """The one of `levels` that is read now; None: ``partitions``."""
    resize_to: int | None = None
    """A resize is under way to this many partitions."""
    base_epoch: int = 0
    """Epochs up to this one are over, whatever the partition: a resize raises it."""
    begins_at: int = 0
    """Revision the bucket begins at: tells it from one that was lost before; 0: not known."""
    on_failure: FailurePolicy = FailurePolicy.RETRY
    max_attempts: int = 5
    prefer_label: str | None = None
    """What moves goes to a member whose label of this name says the same as the owner's before."""
    version: int = 1
    """Of the layout of the bucket; a member refuses one it does not know."""

    @property
    def active(self) -> int:
        """How many partitions there are now."""
        return self.partitions if self.level is None else self.level


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecord:
    """``ctl``: what operators asked for; the leader and the owners obey. Absent: nothing."""

    is_paused: bool = False
    """No partition hands anything out."""
    paused: tuple[int, ...] = ()
    """These do not."""
    pins: Mapping[int, str] = field(default_factory=dict)
    """Partition → the member that is to have it, as long as it lives."""
    draining: tuple[str, ...] = ()
    """Members that are to own nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRecord:
    """``leader``: who decides. Written anew (the same) to renew its time to live."""

    member: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """``members.<id>``: one member. ``instance`` tells two processes with one member id apart."""

    instance: str
    capacity: int = 1
    """Weight in the assignment; 0 takes no partitions (a coordinator that only leads)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    joined_ns: int = 0
    is_static: bool = False
    """The name was given by the user and outlives the process."""
    is_leaving: bool = False
    """The member drains: it gets no more partitions and gives away what it has."""
    is_away: bool = False
    """The process has ended, and its static name keeps what it has for its grace."""
    software: str = ""
    """What the member runs, with its version: shown by `describe`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRecord:
    """``part.<n>``: who owns a partition, under which epoch, from where."""

    epoch: int
    owner: str | None = None
    instance: str | None = None
    """The owner's instance: a restarted member is a change of owner, so its epoch grows."""
    next: str | None = None
    next_instance: str | None = None
    floor: int = 0
    state: PartitionState = PartitionState.FREE
    done_from: str | None = None
    """Member whose ``done.<member>`` holds the newest saved done-set of the partition."""
    cause: str = ""
    """Why the owner changed last, as `events` tells it."""
    stopped_ns: int = 0
    """Wall clock at which the partition was last seen served before that; 0: not known."""
    stopped_seq: int | None = None
    """The message whose failure stopped the partition (`FailurePolicy.STOP`)."""
    stopped_error: str = ""
    skip_seq: int | None = None
    """The owner is to dead-letter this message instead of calling its handler again."""
    level: int | None = None
    """How many partitions there were when it was one of them; None: ``cfg.partitions``."""
    version: int = 1

    @property
    def is_place(self) -> bool:
        """Whether it is only a **place**: no record yet, but there to be compared with."""
        return not self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPosition:
    """What was done of a finer partition before it was merged into its parent."""

    level: int
    """How many partitions there were then: the message's token of this level says whose it is."""
    partition: int
    floor: int
    done: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DonePosition:
    """Progress in one partition: ``done`` are closed ranges (first, last) above ``floor``."""

    epoch: int
    floor: int
    done: tuple[tuple[int, int], ...] = ()
    children: tuple[ChildPosition, ...] = ()
    """After a merge, until the floor has passed what they say."""
    level: int = 0
    """Of how many partitions it is one; 0: it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneRecord:
    """``done.<member>``: the progress of all partitions a member owns, in one value."""

    instance: str
    partitions: Mapping[int, DonePosition] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedRecord:
    """``parked.<n>``: keys of a partition whose messages go to the dead letters, in order."""

    keys: Mapping[str, int] = field(default_factory=dict)
    """Key token → sequence of its first parked message."""
    replay: tuple[str, ...] = ()
    """Key tokens whose letters the owner is to feed into their lanes, in order."""
    epoch: int = 0
    """Of the owner that wrote last: a new one writes its own before it pulls, so that one it
    replaced can park nothing any more. 0: a resize handed it on, perhaps not all of it, and who
    claims it asks the letters as well. Operators leave it as it is."""


Record = (
    ConfigRecord
    | ControlRecord
    | LeaderRecord
    | MemberRecord
    | PartitionRecord
    | DoneRecord
    | ParkedRecord
)

_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        ConfigRecord,
        ControlRecord,
        LeaderRecord,
        MemberRecord,
        PartitionRecord,
        DoneRecord,
        ParkedRecord,
    )
}


def encode(record: Record) -> bytes:
    """Return the record as JSON, the form in which it is stored."""
    return _encoder.encode(record)


R = TypeVar("R", bound=Record)


def decode(kind: type[R], value: bytes) -> R:
    """Read a stored record; raises ``BadRecord`` when the bytes are no such record."""
    try:
        record = _decoders[kind].decode(value)
    except msgspec.DecodeError as error:
        raise BadRecord(kind.__name__, str(error)) from error
    assert isinstance(record, kind)
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The group's clocks, in seconds of the monotonic clock; every member should use the same."""

    heartbeat_interval_s: float = 0.25
    heartbeat_timeout_s: float = 1.0
    """Silence after which a member is dead, and after which a member trusts itself no more."""
    heartbeat_slack_s: float = 0.05
    """How late a heartbeat may be before its sender is probed."""
    probe_interval_s: float = 0.1
    """In a small group members are probed this often without waiting for a late heartbeat."""
    max_probes_per_s: float = 200.0
    """What bounds that: with more members each is probed less often."""
    reconnect_grace_s: float = 0.1
    """A member whose connection is gone is probed again after this, then it is dead."""
    batch_s: float = 0.25
    """Joins and leaves this close together are one plan; deaths do not wait."""
    batch_max_s: float = 2.0
    """No join or leave waits longer than this for others to follow."""
    restart_grace_s: float = 1.5
    """After its own reconnect nobody is judged for so long: a server restart is no mass death."""
    static_grace_s: float = 0.0
    """A dead member with a name of its own keeps its partitions for so long (rolling restarts)."""
    lease_s: float = 30.0
    """Time to live of ``leader`` and ``members.<id>``; renewed at a third of it. The backstop:
    longer than a cluster takes to find a new leader for the bucket, or members would run out."""
    drain_timeout_s: float = 30.0
    """A graceful move that takes longer is forced."""
    request_timeout_s: float = 1.0
    save_interval_s: float = 0.1
    """The done-set is saved this often while it changes."""
    save_every: int = 1000
    """… or after so many handled messages, whichever is first."""
    audit_interval_s: float = 5.0
    """How often an owner compares its consumer with its own books."""
    reconcile_interval_s: float = 5.0
    """How often the leader looks for consumers whose epoch is not current."""
    ack_wait_s: float = 3600.0
    retry_min_s: float = 0.1
    retry_max_s: float = 10.0

    def __post_init__(self) -> None:
        """ValueError: they do not go together."""
        if not 0 < self.heartbeat_interval_s * 2 <= self.heartbeat_timeout_s:
            raise ValueError("heartbeat_timeout must be at least twice heartbeat_interval, above 0")
        if not 0 < self.retry_min_s <= self.retry_max_s:
            raise ValueError("retry_min must be above 0 and at most retry_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds one member; per partition unless said otherwise."""

    max_ack_pending: int = 256
    """Messages delivered and not yet acked; 1 is strict mode."""
    max_lanes: int = 128
    """Handler calls at one time over all partitions of the member."""
    max_pending_bytes: int = 64 * 1024 * 1024
    """Bodies delivered and not yet acked, over all partitions; what a pull asks for beyond is 0."""
    batch_messages: int = 1
    """Most messages of one handler call; above 1 the handler takes lists."""
    batch_wait_s: float = 0.0
    """How long a batch that is not full waits for more."""
    max_parked_keys: int = 1000
    """A partition with more of them stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """Everything a member's machine is told at its start."""

    group: str
    member: str
    instance: str
    config: ConfigRecord
    is_static: bool = False
    capacity: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    software: str = ""
    joined_ns: int = 0
    can_lead: bool = True
    timing: Timing = Timing()
    limits: Limits = Limits()
    replicas: int = 1
    """Of the bucket of a group without a stream; with one it has as many as the stream."""
    has_hooks: bool = False
    """Whether the edge is asked before a partition's first message, and before it is given away
    (``Enter``, ``Flush``)."""
    takes_calls: bool = False
    """Whether the edge takes handler calls by ``GroupMachine.next_call``; else they come as
    ``Handle``, one by one."""


@dataclass(slots=True)
class Message:
    """What a handler gets. ``data`` and ``headers`` are the stored ones.

    ``key`` is None for a message without a key: no order is claimed for those. ``epoch`` and
    ``seq`` are what a fenced sink compares. ``timestamp_ns`` is the time the stream stored it.
    Not frozen: a redelivery gives the same message a new ``reply``.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    key: bytes | None
    partition: int
    seq: int
    epoch: int
    num_delivered: int = 1
    timestamp_ns: int = 0
    reply: str = ""
    """Where the ack goes; handlers have no use for it."""
    consumer_seq: int = 0
    attempt: int = 1
    """Which call of the handler this is, counted by this owner."""
    mark: int = -1
    """What fenced sinks judge by: the partition at the number of partitions the group began with,
    which no resize changes. Left out: ``partition``."""
    finest: int = -1
    """The partition at the finest level the subjects carry: modulo a coarser level it is the
    partition there. Left out: ``partition``."""
    call: "Call | None" = field(default=None, repr=False, compare=False)
    """The handler call under way; None outside of one."""

    def __post_init__(self) -> None:
        if self.mark < 0:
            self.mark = self.partition
        if self.finest < 0:
            self.finest = self.partition

    @property
    def state(self) -> Any:
        """What the group's ``state`` made for this partition; None without one."""
        return None if self.call is None else self.call.state

    @property
    def is_overdue(self) -> bool:
        """Whether the call's deadline has passed: a function in a thread may look, and stop."""
        return self.call is not None and self.call.is_overdue

    def extend(self) -> None:
        """Begin the deadline of this handler call anew, from now on; from any thread.

        Without a deadline there is nothing to extend: the server is told every half ``ack_wait``
        that the message is being worked on, however long a call takes.
        """
        if self.call is not None:
            self.call.extend()


class Call(Protocol):
    """A handler call, as its messages see it."""

    @property
    def state(self) -> Any:
        """What the user keeps for the partition."""

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline has passed."""

    def extend(self) -> None:
        """Begin its deadline anew."""


def seconds(duration: timedelta) -> float:
    """Turn a public duration into the core's seconds."""
    return duration.total_seconds()
