"""The seam between the group's machines and a server: commands out, happenings in.

A machine never waits. It hands out **commands**; those with an ``id`` are answered by exactly one
**reply** with that id, sooner or later, whatever happens (the edge answers ``Failed`` when it gave
up). Everything else that reaches a machine is a **happening**: a key changed, messages came, a
heartbeat was heard, the connection went or came back, a handler ended.

``Port`` is what an adapter is: it executes commands and calls a listener with happenings and
replies. There are two, ``jetstream/`` (a NATS server) and ``memory/`` (in this process, with a
virtual clock), and the same machine runs on both.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from .errors import GroupError
from .events import GroupEvent
from .model import LetterReason, MemberSettings, Message
from .partitioning.key import KeyRule

# ---- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make the group's bucket if it is missing and look at server and stream: ``Prepared``."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """(Re)start watching the bucket: every key's newest value, then each change.

    Not answered by a reply but by ``KeyChanged`` … ``WatchCaughtUp``. What an earlier watch had
    under way is not told any more: the bucket it was of may be gone.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadKey:
    """Read a key from the server, not from a cache: ``KeyRead``."""

    id: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteKey:
    """Compare-and-set: only if the key's revision is ``revision`` (0: not there).

    ``Written`` or ``Conflict``. ``ttl_s``: the value goes by itself after so long, where the
    server can; elsewhere it stays.
    """

    id: int
    key: str
    value: bytes
    revision: int
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteKey:
    """Compare-and-delete: ``Written`` or ``Conflict``."""

    id: int
    key: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListKeys:
    """Names of the bucket's keys that begin with ``prefix`` and have a value: ``KeyNames``."""

    id: int
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListConsumers:
    """Names of the stream's consumers: ``ConsumerNames``."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConsumer:
    """Where a consumer stands: ``ConsumerRead``."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateConsumer:
    """Make a pull consumer: explicit ack, one filter: ``Done`` or ``Overlap``.

    ``start_seq`` is the first sequence wanted (ignored on work-queue streams: the server knows
    what is left). ``level`` is how many partitions there are: it says which filter, and is kept
    with the consumer (metadata ``millstream_partitions``), so that `ReadConsumer` tells it; 0: as
    many as the group began with.
    """

    id: int
    name: str
    partition: int
    start_seq: int
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteConsumer:
    """Delete a consumer; one that is not there counts as deleted: ``Done``."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPull:
    """Keep a standing pull on the consumer; what comes is ``Delivered`` with this ``pull``."""

    pull: int
    name: str
    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosePull:
    """Stop pulling; what is under way may still be delivered."""

    pull: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """Acknowledge, or with ``is_progress`` start the ack timer anew; not confirmed."""

    message: Message
    is_progress: bool = False


@dataclass(frozen=True, slots=True)
class Acks:
    """Acknowledge many, in this order; not confirmed."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleAck:
    """Acknowledge and have it confirmed: ``Done``, or ``Failed`` (no responders: fenced)."""

    id: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Hear heartbeats of one member, or with None of everybody; replaces the one before.

    With None also what members announce is heard.

    A member hears its own in any case.
    """

    member: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Publish this member's heartbeat; it comes back as ``Heard`` like anybody's.

    Payload ``<instance> <sent_at> <deaf_s> <epoch>``; the last two may be missing, and are 0 then.
    """

    sent_at: float
    deaf_s: float = 0.0
    """How long ago the newest of its own heartbeats that came back was sent."""
    epoch: int = 0
    """The highest epoch of any partition it ever heard of: a bucket made anew begins above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ask whether a member's connection is up: ``Alive``, or ``Failed`` (no responders: gone)."""

    id: int
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLetter:
    """Store a message with the group's dead letters: ``Done``, ``Stale`` or ``Failed``.

    An effect like any other, so at most once and fenced: the last letter on the subject
    ``dead_letter(group, message.mark, token)`` (the mark: a resize changes no subject) carries the
    sequence and epoch of its message. A higher epoch there is answered by ``Stale``; a sequence
    there that is not below ``message.seq`` by ``Done`` (the letter is there); else the letter is
    published with the expected last subject sequence, and after a conflict all is done again.
    """

    id: int
    message: Message
    token: str
    """The rest of the letter's subject, one or two tokens: the key's token, ``%null.<seq>``
    for a message without a key (each is alone on its subject: no order is claimed)."""
    reason: LetterReason
    error: str
    """One line, what the last handler call raised."""
    attempts: int
    stored_ns: int
    """Wall clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLetters:
    """Read up to ``max_count`` letters of a key, oldest first: ``Letters``.

    Their messages are as they were delivered (subject, data, headers without the letter's own, key,
    ``seq``, ``timestamp_ns``), of ``partition`` under ``epoch``; ``num_delivered`` is 1, ``reply``
    empty. They are on the subject of the partition's mark.
    """

    id: int
    partition: int
    token: str
    epoch: int
    max_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FindParked:
    """Which keys of a partition have parked letters: ``ParkedFound``. What a lost bucket knew."""

    id: int
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLetter:
    """Delete a letter by its sequence; one that is not there counts as deleted: ``Done``."""

    id: int
    letter_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """Call the handler; ends in ``Handled``. More than one message: one call of a batch handler.

    With an ``id`` it is a letter that is replayed; for the edge that is no difference.
    """

    messages: tuple[Message, ...]
    id: int = 0

    @property
    def message(self) -> Message:
        """The message, or the first of a batch."""
        return self.messages[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Open what the user keeps for a partition, before its first message: ends in ``Entered``."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Flush it, after the last message and before the partition is given away: ``Flushed``."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Tell the world."""

    event: GroupEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Publish what happened on this member's `naming.event`: no reply, lost without a connection.

    ``value`` is JSON (`events`).
    """

    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The machine is at its end; ``error`` is why, or None after a drain."""

    error: Exception | None = None


Command = (
    Prepare
    | Watch
    | ReadKey
    | WriteKey
    | DeleteKey
    | ListKeys
    | ListConsumers
    | ReadConsumer
    | CreateConsumer
    | DeleteConsumer
    | OpenPull
    | ClosePull
    | Ack
    | Acks
    | DoubleAck
    | Listen
    | Beat
    | Probe
    | StoreLetter
    | ReadLetters
    | FindParked
    | DeleteLetter
    | Handle
    | Enter
    | Flush
    | Tell
    | Announce
    | Stop
)

# ---- replies -------------------------------------------------------------------------------------


class Failure(StrEnum):
    """Why a command was not carried out, as far as one can know."""

    TIMEOUT = "timeout"
    """No answer in time: it may or may not have been carried out."""
    DISCONNECTED = "disconnected"
    """The connection went before the answer: it may or may not have been carried out."""
    NO_RESPONDERS = "no responders"
    """Nobody is there to do it."""
    REFUSED = "refused"
    """The server said no; ``detail`` says why."""
    BUCKET_GONE = "bucket gone"
    """The group's bucket is not there."""
    STREAM_GONE = "stream gone"
    """The data stream is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The bucket is there, and the stream (if the group has one) can carry the group."""

    id: int
    begins_at: int = 0
    """Revision the bucket begins at, above all of one that was lost before; 0: not known."""
    has_key_ttl: bool = True
    """Whether keys written with a time to live go by themselves (not before server 2.11)."""
    may_overlap: bool = False
    """Whether two consumers of a partition may be there at once (limits streams)."""
    warnings: tuple[str, ...] = ()
    """What the streams may do to messages that nobody has handled, one line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRead:
    """A key's value; None and revision 0 (or its marker's) when it is not there."""

    id: int
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The write took place and got this revision."""

    id: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The key has another revision: nothing was written."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNames:
    """Keys of the bucket."""

    id: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerNames:
    """All consumers of the stream."""

    id: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerRead:
    """A consumer's books; ``is_there`` False: no such consumer and the rest is 0."""

    id: int
    is_there: bool
    ack_floor: int = 0
    """Stream sequence: everything the consumer delivers up to here is acked."""
    delivered: int = 0
    """Consumer sequence of the last delivery."""
    num_ack_pending: int = 0
    level: int = 0
    """The one it was made with; 0: it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Carried out."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A work-queue stream has another consumer for these subjects (10100)."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """A letter of this higher epoch is there: nothing was stored."""

    id: int
    seen_epoch: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that was stored as a letter."""

    letter_seq: int
    """Its sequence in the stream of the letters."""
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedFound:
    """Tokens of keys with parked letters → the sequence of the first one's message."""

    id: int
    keys: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """Letters of one key, oldest first; none: there are no more."""

    id: int
    letters: tuple[Letter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """A probed member answered."""

    id: int
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Not carried out, or nobody knows."""

    id: int
    reason: Failure
    detail: str = ""


Reply = (
    Prepared
    | KeyRead
    | Written
    | Conflict
    | KeyNames
    | ConsumerNames
    | ConsumerRead
    | Done
    | Overlap
    | Stale
    | Letters
    | ParkedFound
    | Alive
    | Failed
)

# ---- happenings ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanged:
    """A key of the bucket has a new value; None: it was deleted or ran out."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class WatchCaughtUp:
    """Every key that is there was told since the watch started."""


@dataclass(frozen=True, slots=True)
class BucketGone:
    """The group's bucket is not there any more, or is another one by the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A heartbeat. ``sent_at`` is on the sender's clock."""

    member: str
    instance: str
    sent_at: float
    deaf_s: float = 0.0
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What a member announced (`Announce`), its own included; to who listens to everybody."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """Messages of a pull, in the order of delivery.

    ``num_pending``: what the consumer had not delivered yet after the last of them; None: not told.
    """

    pull: int
    messages: tuple[Message, ...]
    num_pending: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullIdle:
    """Nothing is under way: the consumer's last delivery has this consumer sequence."""

    pull: int
    consumer_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullEnded:
    """The consumer is gone (409 Consumer Deleted, no responders); nothing more will come."""

    pull: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """A handler call ended; ``error`` is what it raised, None when it returned.

    ``seen_epoch``: it raised because a sink holds an effect of this higher epoch. ``message`` is
    the first of a batch. ``is_called`` False: no call was made, the message waits on.
    """

    message: Message
    error: str | None = None
    seen_epoch: int | None = None
    is_called: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What ``Enter`` asked for is done."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """What ``Flush`` asked for is done."""

    partition: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The connection is back; what was under way is lost."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Nothing can go on: the connection will not come back, or what arrives cannot be read.

    That is, a key function raised, or an ack subject is foreign.
    """

    error: GroupError


Happening = (
    KeyChanged
    | WatchCaughtUp
    | BucketGone
    | Broken
    | Heard
    | Announced
    | Delivered
    | PullIdle
    | PullEnded
    | Handled
    | Entered
    | Flushed
    | Disconnected
    | Reconnected
)

Listener = Callable[[Happening | Reply], None]
Spawn = Callable[[Coroutine[None, None, None], str], None]
"""Starts a named task that ends with the member."""


class Port(Protocol):
    """One member's way to a server. Not thread-safe; everything happens on one loop."""

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Connect; from now on ``listener`` is told everything, one call at a time.

        Raises ServerUnreachable, StreamMissing or StreamUnfit.
        """

    def execute(self, command: Command) -> None:
        """Start carrying a command out; its reply and what follows go to the listener.

        Never raises for what the server says, and never calls the listener before it returns.
        ``Handle``, ``Enter``, ``Flush``, ``Tell`` and ``Stop`` are the worker's own and do not
        come here.
        """

    async def close(self) -> None:
        """Give up everything under way, quietly."""


class PortMaker(Protocol):
    """What `Group` takes in place of a connection."""

    def port(self, settings: MemberSettings, rule: KeyRule | None) -> Port:
        """Make one member's port; not opened yet."""

    def now(self) -> float:
        """Seconds of the monotonic clock that the member's machine is to go by."""

    def wall_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""

    def chance(self) -> float:
        """Draw from [0, 1): the same numbers again where a run can be repeated."""
