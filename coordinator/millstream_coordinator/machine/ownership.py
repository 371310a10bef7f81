"""One ownership: this member, one partition, one epoch.

It holds what is delivered and not yet handled (lanes), what is handled (floor), and where the
consumer's deliveries stand. Deliveries are accepted only without a hole in the consumer sequence: a
message the server counted as delivered and that never came (a connection broke) would otherwise be
passed by the floor. A hole, like any doubt, is answered by making the consumer anew from the floor:
what is in a lane stays there and gets the new reply subject, what is done is acked again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from ..model import ChildPosition, DonePosition, LetterReason, Message, PartitionRecord
from ..naming import REPLAY
from .context import Context, Part
from .floor import Delivery, Floor, Range
from .lanes import LaneKey, Lanes
from .steps import Script


class OwnershipState(Enum):
    """Where an ownership stands."""

    STARTING = auto()
    """The consumer is being made."""
    SERVING = auto()
    """Messages are handled."""
    DRAINING = auto()
    """Nothing new is handled; given away when the running handler calls have ended."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A message on its way to the dead letters."""

    message: Message
    token: str
    reason: LetterReason
    error: str


class Ownership:
    """One partition under one epoch at its owner."""

    def __init__(self, partition: int, epoch: int, floor: int, group: str = "") -> None:
        self.partition = partition
        self.epoch = epoch
        self.state = OwnershipState.STARTING
        self.level = 0
        """Of how many partitions it is one; 0: not said."""
        self.floor = Floor(floor)
        self.lanes = Lanes()
        self.has_progress = False
        """Whether the saved done-set was read."""
        self.is_clear = False
        """Whether the consumers that were to be deleted before this one's are."""
        self.pull: int | None = None
        """The standing pull; None while there is no consumer to rely on."""
        self.consumer_seq = 0
        """The consumer's last delivery that was accepted."""
        self.num_pending: int | None = None
        """What the server had not delivered then; None: nothing was delivered yet."""
        self.is_held = False
        """Ownership is in doubt: nothing is started and nothing acked."""
        self.is_paused = False
        """An operator wants nothing handed out."""
        self.is_queued = False
        """It waits for its turn in the owner's round."""
        self.is_told = False
        """The world knows that it is served here."""
        self.given_away: PartitionRecord | None = None
        """The record that was sent to give the partition away; seen back, it is a release."""
        self.held_acks: list[Message] = []
        self.last_acked: Message | None = None
        self.progress_at = 0.0
        """When what waits tells the server that it is still being worked on."""
        self.audited_floor: int | None = None
        """The floor at the last audit; None: no audit since the consumer was made."""
        self.batches: dict[int, tuple[Message, ...]] = {}
        """Calls of a batch handler under way, by their first sequence."""
        self.batch_since: float | None = None
        """Since when a batch that is not full waits for more."""
        self.is_batch_due = False
        """It has waited long enough."""
        # What the user keeps for the partition.
        self.is_entered = False
        """It is open."""
        self.is_flushing = False
        self.is_flushed = False
        self.must_flush_again = False
        """A drain was called off and began anew while the first one's flush was under way."""
        # What became of messages that failed too often (policies.py, parking.py).
        self.knows_parked = False
        self.parked: dict[str, int] = {}
        """Tokens of parked keys → sequence of the first message."""
        self.given_up: dict[int, GivenUp] = {}
        """On their way to the dead letters; each still runs in its lane."""
        self.replaying: dict[str, LaneKey | None] = {}
        """Tokens whose letters are being handled → the lane that waits for that, if any."""
        self.replayed: dict[int, tuple[Message, int]] = {}
        """Handler calls of letters under way: sequence → message, and id of the command."""
        self.stopped_by: list[Message] = []
        """What stopped the partition here, first the one that is written down; calls that were
        under way then may add to it. Each waits, held, at the head of its lane."""
        self.stopped_error = ""
        self.is_stopped = False
        """An operator must resume it first."""
        self.skip_seq: int | None = None
        """The message that goes to the dead letters without a handler call."""
        self._group = group

    @property
    def is_serving(self) -> bool:
        """Whether handler calls may start here, as far as this ownership knows."""
        return (
            self.state is OwnershipState.SERVING
            and not self.is_held
            and not self.is_paused
            and not self.is_stopped
            and self.is_entered
        )

    @property
    def num_running(self) -> int:
        """Messages that are being handled, or stored as letters."""
        return self.lanes.num_running + len(self.replayed)

    @property
    def has_detours(self) -> bool:
        """Whether some messages must not go to the handler."""
        return bool(self.parked) or bool(self.replaying) or self.skip_seq is not None

    def inherit(
        self, floor: int, done: Iterable[Range], children: Iterable[ChildPosition] = ()
    ) -> None:
        """Start the books from the progress the owner before saved; once, before any delivery.

        ``children`` is what each partition that was merged into this one had handled.
        """
        self.floor = Floor(max(floor, self.floor.floor), done, children)
        self.has_progress = True

    def open(self, pull: int, progress_at: float) -> None:
        """Begin with a consumer that has delivered nothing yet."""
        self.pull = pull
        self.consumer_seq = 0
        self.progress_at = progress_at
        self.audited_floor = None
        self.last_acked = None
        self.held_acks.clear()

    def deliver(self, messages: Iterable[Message], acks: list[Message]) -> bool:
        """Take deliveries of the current pull; what is done already goes to ``acks``.

        False: there is a hole before one of them, and it and what follows was not taken.
        """
        deliver, lanes = self.floor.deliver, self.lanes
        for message in messages:
            if message.consumer_seq != self.consumer_seq + 1:
                return False
            delivery = deliver(message.seq, message.finest)
            if delivery is Delivery.NEW:
                self.consumer_seq = message.consumer_seq
                if message.headers and message.headers.get(REPLAY, self._group) != self._group:
                    # Published again for another group; this one had it the first time.
                    self.floor.complete(message.seq)
                    acks.append(message)
                else:
                    lanes.add(message)
                continue
            if delivery is Delivery.LATE:
                return False
            self.consumer_seq = message.consumer_seq
            if delivery is Delivery.DONE:
                acks.append(message)
                continue
            known = lanes.find(message.seq)
            if known is None:
                lanes.add(message)
            else:
                known.reply = message.reply
                known.num_delivered = message.num_delivered
        return True

    def position(self) -> DonePosition:
        """Return the progress, as it is saved."""
        return DonePosition(
            epoch=self.epoch,
            floor=self.floor.floor,
            done=self.floor.done_ranges(),
            children=self.floor.children(),
            level=self.level,
        )


class Holder(Protocol):
    """Who has ownerships (`Owner`), as its helpers and scripts know it."""

    context: Context
    owned: dict[int, Ownership]
    is_fenced: bool
    puts_down: bool

    def is_mine(self, one: Ownership) -> bool:
        """Whether the book's record still names this process under this epoch."""

    def fence(self) -> None:
        """Look whether ownership is in doubt."""

    def start(self, one: Ownership, script: Script) -> None:
        """Run the script that serves it or gives it away, in place of the one before."""

    def open(self, one: Ownership) -> None:
        """Pull from the consumer that was just made."""

    def serve_again(self, one: Ownership) -> None:
        """Make the consumer anew from the floor."""

    def release_if_drained(self, one: Ownership) -> None:
        """Give it away if it is to be given away and nothing runs."""

    def save(self) -> Part:
        """Write ``done.<member>``; False: not written, to be tried again."""
