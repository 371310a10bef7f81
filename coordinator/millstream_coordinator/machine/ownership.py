"""One ownership: this member, one partition, one epoch.

It holds what is delivered and not yet handled (lanes), what is handled (floor), and where the
consumer's deliveries stand. Deliveries are accepted only without a hole in the consumer sequence: a
message the server counted as delivered and that never came (a connection broke) would otherwise be
passed by the floor. A hole, like any doubt, is answered by making the consumer anew from the floor:
what is in a lane stays there and gets the new reply subject, what is done is acked again.
"""

from collections.abc import Iterable
from enum import Enum, auto

from ..model import DonePosition, Message, PartitionRecord
from .floor import Delivery, Floor, Range
from .lanes import Lanes


class OwnershipState(Enum):
    """Where an ownership stands."""

    STARTING = auto()
    """The consumer is being made."""
    SERVING = auto()
    """Messages are handled."""
    DRAINING = auto()
    """Nothing new is handled; given away when the running handler calls have ended."""


class Ownership:
    """One partition under one epoch at its owner."""

    def __init__(self, partition: int, epoch: int, floor: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self.state = OwnershipState.STARTING
        self.floor = Floor(floor)
        self.lanes = Lanes()
        self.has_progress = False
        """Whether the saved done-set was read."""
        self.pull: int | None = None
        """The standing pull; None while there is no consumer to rely on."""
        self.consumer_seq = 0
        """The consumer's last delivery that was accepted."""
        self.is_held = False
        """Ownership is in doubt: nothing is started and nothing acked."""
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

    @property
    def is_serving(self) -> bool:
        """Whether handler calls may start here, as far as this ownership knows."""
        return self.state is OwnershipState.SERVING and not self.is_held

    def inherit(self, floor: int, done: Iterable[Range]) -> None:
        """Start the books from the progress the owner before saved; once, before any delivery."""
        self.floor = Floor(max(floor, self.floor.floor), done)
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
        for message in messages:
            if message.consumer_seq != self.consumer_seq + 1:
                return False
            delivery = self.floor.deliver(message.seq)
            if delivery is Delivery.LATE:
                return False
            self.consumer_seq = message.consumer_seq
            if delivery is Delivery.DONE:
                acks.append(message)
                continue
            known = self.lanes.find(message.seq)
            if known is None:
                self.lanes.add(message)
            else:
                known.reply = message.reply
                known.num_delivered = message.num_delivered
        return True

    def position(self) -> DonePosition:
        """Return the progress, as it is saved."""
        return DonePosition(epoch=self.epoch, floor=self.floor.floor, done=self.floor.done_ranges())
