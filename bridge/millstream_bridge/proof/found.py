"""What a comparison has found so far. Pure."""

from collections import Counter
from dataclasses import dataclass, field, replace

from .stream_side import StreamSide
from .values import Apart, Difference, Side


@dataclass(slots=True)
class Found:
    """Both sides of each partition, where they first part, and what is rightly on one only.

    ``expired``: how many records of a partition the stream's own limits may have removed.
    """

    apart: Apart
    expired: Counter[int]
    sides: dict[int, tuple[Side, Side]] = field(default_factory=dict)
    differences: dict[int, Difference] = field(default_factory=dict)

    def add(self, side: StreamSide) -> None:
        """A stream's side, when it is read."""
        self.apart.add(side.apart)
        self.differences |= side.differences

    def add_sides(self, partition: int, kafka: Side, nats: Side) -> None:
        """Both sides of a partition: of one that does not differ, what is missing was removed."""
        if kafka != nats and partition not in self.differences:
            self.expired[partition] += kafka.count - nats.count
            kafka = replace(kafka, digest="")
        self.sides[partition] = kafka, nats
