"""What a member counts about itself, for whoever scrapes it: ``Group.stats()``.

Plain integers, raised where things happen and copied when somebody asks; nothing is computed per
message but one comparison of times.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from .events import (
    Fenced,
    GroupEvent,
    HandlerOverdue,
    MessageGivenUp,
    MessageRetried,
    PartitionAssigned,
    PartitionLost,
    PartitionRevoked,
)
from .machine.ownership import Ownership, OwnershipState
from .model import LetterReason

HANDLER_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the classes of handler times, in seconds; above the last is one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStats:
    """One partition this member serves, now."""

    epoch: int
    lag: int | None
    """Messages not handled: what the server had not delivered at the last delivery, and what is in
    hand. None: nothing was delivered yet."""
    in_flight: int
    """Delivered and not handled."""
    lanes: int
    """Keys with messages."""
    deepest_lane: int
    """Messages in the longest lane."""
    oldest_s: float
    """Since the stream stored the oldest one in hand; 0.0: nothing is in hand."""
    is_paused: bool
    is_stopped: bool
    parked_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """A member's counters since it began, and its partitions now."""

    partitions: Mapping[int, PartitionStats]
    handled: int
    """Messages whose handler call returned."""
    retries: int
    dead_letters: int
    parked: int
    """Messages stored because their key is parked."""
    refused: int
    """Effects a sink refused for their epoch."""
    overdue: int
    """Handler calls that ran past their deadline."""
    moves_in: int
    moves_out: int
    lost: int
    fenced: int
    running: int
    """Handler calls under way."""
    waiting: int
    """Messages in lanes that are not being handled."""
    handler_buckets: tuple[int, ...]
    """Calls per class of `HANDLER_BOUNDS_S`, not cumulative; the last is above the last bound."""
    handler_seconds: float


class Counters:
    """The counting side. One loop raises them; nothing is locked."""

    def __init__(self) -> None:
        self.handled = 0
        self.refused = 0
        self.buckets = [0] * (len(HANDLER_BOUNDS_S) + 1)
        self.handler_seconds = 0.0
        self._events = dict.fromkeys(
            (
                MessageRetried,
                HandlerOverdue,
                PartitionAssigned,
                PartitionRevoked,
                PartitionLost,
                Fenced,
            ),
            0,
        )
        self._letters = dict.fromkeys(LetterReason, 0)

    def called(self, duration_s: float, num_handled: int) -> None:
        """Count a handler call that ended."""
        place = 0 if duration_s <= 0.001 else bisect_left(HANDLER_BOUNDS_S, duration_s)
        self.buckets[place] += 1
        self.handler_seconds += duration_s
        self.handled += num_handled

    def told(self, event: GroupEvent) -> None:
        """Count an event."""
        kind = type(event)
        if isinstance(event, MessageGivenUp):
            self._letters[LetterReason(event.reason)] += 1
        elif kind in self._events:
            self._events[kind] += 1

    def snapshot(self, owned: Mapping[int, Ownership], running: int, wall_ns: int) -> GroupStats:
        """Copy everything."""
        return GroupStats(
            partitions={
                n: _partition(one, wall_ns)
                for n, one in sorted(owned.items())
                if one.state is not OwnershipState.STARTING
            },
            handled=self.handled,
            retries=self._events[MessageRetried],
            dead_letters=self._letters[LetterReason.DEAD_LETTER] + self._letters[LetterReason.SKIP],
            parked=self._letters[LetterReason.PARK],
            refused=self.refused,
            overdue=self._events[HandlerOverdue],
            moves_in=self._events[PartitionAssigned],
            moves_out=self._events[PartitionRevoked],
            lost=self._events[PartitionLost],
            fenced=self._events[Fenced],
            running=running,
            waiting=sum(len(one.lanes) - one.lanes.num_running for one in owned.values()),
            handler_buckets=tuple(self.buckets),
            handler_seconds=self.handler_seconds,
        )


def _partition(one: Ownership, wall_ns: int) -> PartitionStats:
    oldest = one.lanes.oldest
    return PartitionStats(
        epoch=one.epoch,
        lag=None if one.num_pending is None else one.num_pending + len(one.lanes),
        in_flight=len(one.lanes),
        lanes=one.lanes.num_lanes,
        deepest_lane=one.lanes.deepest,
        oldest_s=0.0 if oldest is None else max(0.0, (wall_ns - oldest.timestamp_ns) / 1e9),
        is_paused=one.is_paused,
        is_stopped=one.is_stopped,
        parked_keys=len(one.parked),
    )
