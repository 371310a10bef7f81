"""What a cut-over and a rollback write down: everything they saw, decided, did and read back.

The JSON forms are ``millstream.bridge.cutover/1`` and ``millstream.bridge.rollback/1``, with the
same fields; a sequence or offset that is not there is null.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .places import Edge

NOTHING = Edge(None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionCut:
    """One partition: where the group was, where it goes, and the messages on both sides of that.

    ``low`` and ``high`` are the topic's, ``offset`` is Kafka's place, ``next_seq`` the stream's.
    ``records`` and ``natives`` are what is handled last and what is not first (`places.Edge`).
    ``before`` and ``after`` are the target's position when it began and as it was read back.
    """

    partition: int
    stream: str
    low: int
    high: int
    offset: int
    next_seq: int
    records: Edge = NOTHING
    natives: Edge = NOTHING
    before: int | None = None
    after: int | None = None
    obstacle: str | None = None

    def read_back(self, written: int, found: int | None) -> "PartitionCut":
        """With what the target says afterwards; an obstacle where that is not what was written."""
        obstacle = None if found == written else f"written as {written}, read back as {found}"
        return replace(self, after=found, obstacle=obstacle)

    def as_json(self) -> dict[str, Any]:
        """As the proof's document has it."""

        def side(edge: Edge) -> dict[str, Any]:
            def one(place: tuple[int, int | None] | None) -> dict[str, Any] | None:
                return None if place is None else {"seq": place[0], "offset": place[1]}

            return {"handled_last": one(edge.last), "open_first": one(edge.first)}

        return {
            "stream": self.stream,
            "low": self.low,
            "high": self.high,
            "offset": self.offset,
            "next_seq": self.next_seq,
            "records": side(self.records),
            "natives": side(self.natives),
            "before": self.before,
            "after": self.after,
            "obstacle": self.obstacle,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CutProof:
    """One group on one route. ``what`` is ``cutover`` or ``rollback``."""

    what: str
    topic: str
    kafka_group: str
    kafka_group_state: str
    group: str
    partitions: Sequence[PartitionCut] = ()
    obstacles: Sequence[str] = field(default_factory=tuple)
    """Of the whole; those of a partition are with it."""
    applied: bool = False
    made_at: str = ""
    seconds: float = 0.0
    standstill_s: float | None = None
    """From the moment the group was seen to be empty to its positions being read back."""

    @property
    def problems(self) -> list[str]:
        """Everything that is in the way, in one line each."""
        return [
            *self.obstacles,
            *(f"partition {it.partition}: {it.obstacle}" for it in self.partitions if it.obstacle),
        ]

    @property
    def is_exact(self) -> bool:
        """Whether each partition has its place on the other side, and nobody is in the way."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": f"millstream.bridge.{self.what}/1",
            "topic": self.topic,
            "kafka_group": self.kafka_group,
            "kafka_group_state": self.kafka_group_state,
            "group": self.group,
            "exact": self.is_exact,
            "applied": self.applied,
            "made_at": self.made_at,
            "seconds": round(self.seconds, 3),
            "standstill_s": None if self.standstill_s is None else round(self.standstill_s, 3),
            "problems": self.problems,
            "partitions": {str(it.partition): it.as_json() for it in self.partitions},
        }
