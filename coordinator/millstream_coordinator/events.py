"""What a member of a group tells the world: the events of ``Group.events()`` and ``on_event``.

Only facts somebody outside may want to see, one value each; what the machines exchange with their
edge is in ``ports.py``. ``describe`` gives the one-line text used by logs and plain terminals.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The member is in the group."""

    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The member drained and left."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRetried:
    """A handler raised; the message waits in its lane for ``delay_s``."""

    partition: int
    seq: int
    attempt: int
    delay_s: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerReconciled:
    """The leader (this member) deleted a consumer whose epoch is not current."""

    consumer: str


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
    | MessageRetried
    | ConsumerReconciled
)


def describe(event: GroupEvent) -> str:
    """One line about an event: its name in words and its facts."""
    facts = " ".join(f"{name}={getattr(event, name)}" for name in event.__slots__)
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(event).__name__).strip()
    return f"{words}: {facts}"
