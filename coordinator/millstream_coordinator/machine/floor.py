"""How far a partition is handled: the floor, and what is done above it.

A partition's messages are delivered in stream order and handled in any order, so progress is a
**floor** (every message of the partition up to this sequence is handled) and a **done-set** (what
is handled above it). Sequences of one partition have gaps, for other partitions share the stream;
the books are therefore kept in order of delivery, and a saved range (first, last) means "every
message of this partition from first to last", whatever else the stream holds in between.

After a merge the partition begins with the lowest floor of those it is made of, and each of its
**children** still says what was handled of it (`ChildPosition`): up to its own floor, and its own
ranges. Which child a message belongs to, its number at the finest level says. A child is forgotten
when the floor has passed all it says.

Invariants, checked by the simulation after every event:

    floor < every delivered message that is not handled
    floor <= the last delivered message, or the floor it started with

A delivery is new only if its sequence is above all accepted before. Whoever feeds this must drop
what follows a hole in the consumer sequences (a delivery lost on the way), else the floor would
pass what never came; `Delivery.LATE` tells that it did not.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto

from ..model import ChildPosition

Range = tuple[int, int]


class Delivery(Enum):
    """What a delivered sequence is to the one who keeps these books."""

    NEW = auto()
    """To be handled."""
    WAITING = auto()
    """Delivered before and not handled yet."""
    DONE = auto()
    """Handled already: ack it and forget it."""
    LATE = auto()
    """Below what was accepted and never seen: an earlier delivery was lost."""


class Floor:
    """The books of one partition under one owner."""

    def __init__(
        self,
        floor: int = 0,
        done: Iterable[Range] = (),
        children: Iterable[ChildPosition] = (),
    ) -> None:
        self._floor = floor
        self._inherited = merge(one for one in done if one[1] > floor)
        self._children = [one for one in children if _last(one) > floor]
        self._order: deque[int] = deque()
        self._handled: set[int] = set()
        self._waiting: set[int] = set()
        self._last = floor

    @property
    def floor(self) -> int:
        """Every message of the partition up to this stream sequence is handled."""
        return self._floor

    @property
    def num_waiting(self) -> int:
        """Messages delivered and not handled."""
        return len(self._waiting)

    def deliver(self, seq: int, finest: int = 0) -> Delivery:
        """Note a delivery and say what it is; ``finest``: the message's number at that level."""
        if seq > self._last:
            self._last = seq
            self._order.append(seq)
            if (self._inherited and _covers(self._inherited, seq)) or (
                self._children and self._is_childs(seq, finest)
            ):
                self._handled.add(seq)
                self._advance()
                return Delivery.DONE
            self._waiting.add(seq)
            return Delivery.NEW
        if seq in self._waiting:
            return Delivery.WAITING
        if seq <= self._floor or seq in self._handled:
            return Delivery.DONE
        return Delivery.LATE

    def complete(self, seq: int) -> None:
        """Note that a waiting message is handled."""
        self._waiting.remove(seq)
        if self._order[0] != seq:
            self._handled.add(seq)
            return
        self._floor = self._order.popleft()
        if self._handled:
            self._advance()

    def done_ranges(self) -> tuple[Range, ...]:
        """Return the done-set as closed ranges above the floor, lowest first."""
        left = [one for one in self._inherited if one[1] > self._floor]
        return tuple(merge((*left, *self._handled_ranges())))

    def children(self) -> tuple[ChildPosition, ...]:
        """Return what children say above the floor."""
        return tuple(one for one in self._children if _last(one) > self._floor)

    def _handled_ranges(self) -> list[Range]:
        ranges: list[Range] = []
        first = None
        last = 0
        for seq in self._order:
            if seq in self._handled:
                first = seq if first is None else first
                last = seq
            elif first is not None:
                ranges.append((first, last))
                first = None
        if first is not None:
            ranges.append((first, last))
        return ranges

    def _is_childs(self, seq: int, finest: int) -> bool:
        return any(
            finest % one.level == one.partition and (seq <= one.floor or _covers(one.done, seq))
            for one in self._children
        )

    def _advance(self) -> None:
        order, handled = self._order, self._handled
        while order and order[0] in handled:
            self._floor = order.popleft()
            handled.discard(self._floor)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Sort closed ranges and join those that overlap; neighbours stay apart."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _covers(ranges: Sequence[Range], seq: int) -> bool:
    place = bisect_right(ranges, (seq, 1 << 63)) - 1
    return place >= 0 and ranges[place][0] <= seq <= ranges[place][1]


def _last(child: ChildPosition) -> int:
    return child.done[-1][1] if child.done else child.floor
