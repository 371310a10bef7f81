"""What the rounds of a proof have seen, so that the next one reads only what is new."""

from dataclasses import dataclass, field

from ..model import Positions, Watermarks
from .returns import Last
from .sides import Bounds, Part
from .stream_side import StreamSide


@dataclass(slots=True)
class Seen:
    """What the rounds before have seen.

    ``next_seqs``: per stream, before which sequence all is read. ``read_to``: per partition, to
    which sequence, and below which offset all was compared. ``returned``: per partition the last
    record that came back from NATS.
    """

    next_seqs: dict[str, int] = field(default_factory=dict)
    read_to: dict[int, tuple[int, int]] = field(default_factory=dict)
    returned: dict[int, Last] = field(default_factory=dict)

    def bounds(self, marks: Bounds, goal: Positions) -> Bounds:
        """What is new up to the goal; of a partition it does not know, nothing."""
        found = {}
        for p, mark in marks.items():
            low = max(mark.low, self.read_to[p][1] if p in self.read_to else 0)
            found[p] = Watermarks(low, max(low, goal.get(p, low)))
        return found

    def note(self, part: Part, side: StreamSide, bounds: Bounds) -> None:
        """A stream that was read, of whose partitions all between the bounds was compared."""
        last_seq = part.info.last_seq
        self.next_seqs[part.stream] = side.first_beyond or last_seq + 1
        self.read_to |= {p: (last_seq, bounds[p].high) for p in part.partitions}
