"""The sequences of one subject, ascending, in an array.

Removal is cheap at both ends and near them, because that is where limits, purges and work-queue
acks remove; in the middle it moves half of the array at most (one memmove).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable

_TRIM_AT = 64


class SeqRun:
    """Ascending sequences of one subject; ``head`` is where the live part of ``seqs`` begins."""

    __slots__ = ("head", "seqs")

    def __init__(self, seqs: Iterable[int]) -> None:
        self.seqs = array("Q", seqs)
        self.head = 0

    def __len__(self) -> int:
        return len(self.seqs) - self.head

    @property
    def first(self) -> int:
        return self.seqs[self.head]

    @property
    def last(self) -> int:
        return self.seqs[-1]

    def live(self) -> array[int]:
        """A copy of the sequences."""
        return self.seqs[self.head :]

    def at_or_after(self, seq: int) -> int | None:
        seqs = self.seqs
        place = bisect_left(seqs, seq, self.head)
        return seqs[place] if place < len(seqs) else None

    def at_or_before(self, seq: int) -> int | None:
        place = bisect_left(self.seqs, seq + 1, self.head)
        return self.seqs[place - 1] if place > self.head else None

    def count_from(self, seq: int) -> int:
        """How many are at or after ``seq``."""
        return len(self.seqs) - bisect_left(self.seqs, seq, self.head)

    def insert(self, seq: int) -> None:
        """Put a sequence back where it was."""
        self.seqs.insert(bisect_left(self.seqs, seq, self.head), seq)

    def remove(self, seq: int) -> None:
        """Take out a sequence that is there."""
        seqs, head = self.seqs, self.head
        if seqs[head] == seq:
            head += 1
            if head >= _TRIM_AT and head * 2 >= len(seqs):
                del seqs[:head]
                head = 0
            self.head = head
        elif seqs[-1] == seq:
            seqs.pop()
        else:
            place = bisect_left(seqs, seq, head)
            if place - head < len(seqs) - place:
                seqs[head + 1 : place + 1] = seqs[head:place]
                self.head = head + 1
            else:
                del seqs[place]
