"""What a proof says, and how a difference looks. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..model import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a partition: how many records, their first and last offset, and their hash."""

    count: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where the two sides first part, in the order of a partition's records.

    ``kafka`` and ``nats`` are the record as either side has it, None where it has none.
    """

    kafka_partition: int
    offset: int
    seq: int | None
    what: str
    kafka: Record | None = field(default=None, repr=False)
    nats: Record | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionProof:
    """Both sides of one partition, up to the high watermark noted when the check began.

    ``expired``: records that are in neither, because the stream's own limits may have removed them:
    that each of them was stored can no longer be told.
    """

    kafka: Side
    nats: Side
    expired: int = 0
    difference: Difference | None = None

    @property
    def is_equal(self) -> bool:
        """Same records in the same order on both sides."""
        return self.difference is None


@dataclass(slots=True)
class Apart:
    """What is rightly on one side only, counted.

    ``foreign``: messages of the route's subjects without a source. ``older``: stored records that
    Kafka no longer has, from before its log's beginning or compacted since. ``parked`` and
    ``skipped``: records the bridge could not move, as their marks say. ``replayed``: parked ones
    that were stored later, and dead letters that were published again. ``returned``: records that
    came to Kafka from NATS; ``unpaired``: those of them that cannot be compared, for their message
    is gone, or in a stream the route had before. ``expired``: records the stream's own limits may
    have removed.
    """

    foreign: int = 0
    older: int = 0
    parked: int = 0
    skipped: int = 0
    replayed: int = 0
    returned: int = 0
    unpaired: int = 0
    expired: int = 0

    def add(self, other: "Apart") -> None:
        """Count another part's too."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What `verify` found. ``mode`` is full, sample or online."""

    topic: str
    stream: str
    mode: str = "full"
    partitions: Mapping[int, PartitionProof] = field(default_factory=dict)
    apart: Apart = field(default_factory=Apart)
    seconds: float = 0.0

    @property
    def difference(self) -> Difference | None:
        """The first difference of the lowest partition that has one."""
        return next(
            (p.difference for _, p in sorted(self.partitions.items()) if p.difference), None
        )

    @property
    def equal(self) -> bool:
        """No partition differs."""
        return self.difference is None

    @property
    def records(self) -> int:
        """Records on the Kafka side."""
        return sum(partition.kafka.count for partition in self.partitions.values())

    @property
    def foreign(self) -> int:
        """Messages of the route's subjects without a source."""
        return self.apart.foreign

    @property
    def older(self) -> int:
        """Stored records that Kafka no longer has."""
        return self.apart.older
