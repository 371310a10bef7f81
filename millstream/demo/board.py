"""What is known of the run right now: written by the scene, read by whoever shows it.

Counts come from three places: acknowledgements of the producer, the stream, and the workers'
ledgers. The owners and epochs are the group's own records. Pure: no clock, no I/O.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .ledger import APPLIED, FAILED, REPEAT, STALE, Call, Effect

Shares = dict[str, list[int]]
"""Worker to the partitions it owns, in order."""


@dataclass(slots=True)
class Happening:
    """One line of the story. ``at_s`` counts from the start of the run."""

    at_s: float
    text: str
    is_fault: bool = False


@dataclass(slots=True)
class PartitionLine:
    """One partition: who owns it, and how far it is."""

    owner: str | None = None
    epoch: int = 0
    produced: int = 0
    settled: int = 0

    @property
    def lag(self) -> int:
        """Produced and not yet handled."""
        return self.produced - self.settled


@dataclass(slots=True)
class WorkerLine:
    """One worker process: ``starting``, ``running``, ``stopped`` or ``killed``."""

    state: str = "starting"
    calls: int = 0
    applied: int = 0


@dataclass
class Board:
    """The state of the run.

    ``settled`` holds each message (partition, offset) whose effect is known to be in the sink,
    ``calls`` and ``effects`` all lines of the ledgers so far.
    """

    records: int
    partitions: dict[int, PartitionLine]
    workers: dict[str, WorkerLine] = field(default_factory=dict)
    happenings: list[Happening] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    settled: set[tuple[int, int]] = field(default_factory=set)
    moved: int = 0
    elapsed_s: float = 0.0
    phase: str = "starting the servers"

    @classmethod
    def for_run(cls, records: int, partitions: int) -> "Board":
        """An empty board."""
        return cls(records, {number: PartitionLine() for number in range(partitions)})

    @property
    def produced(self) -> int:
        """Records Kafka has acknowledged."""
        return sum(line.produced for line in self.partitions.values())

    @property
    def backlog(self) -> int:
        """Produced and not yet handled, over all partitions."""
        return self.produced - len(self.settled)

    def note_produced(self, acknowledged: Mapping[int, int]) -> None:
        """Take in how many records of each partition are acknowledged."""
        for partition, count in acknowledged.items():
            self.partitions[partition].produced = count

    def note_calls(self, calls: Iterable[Call]) -> None:
        """Take in new handler calls."""
        for call in calls:
            self.calls.append(call)
            self.workers[call.worker].calls += 1

    def note_effects(self, effects: Iterable[Effect]) -> None:
        """Take in new ends of handler calls."""
        for effect in effects:
            self.effects.append(effect)
            self.outcomes[effect.outcome] += 1
            if effect.outcome == APPLIED:
                self.workers[effect.worker].applied += 1
            place = (effect.kafka_partition, effect.offset)
            if effect.outcome in (APPLIED, REPEAT) and place not in self.settled:
                self.settled.add(place)
                self.partitions[effect.kafka_partition].settled += 1

    def note_owner(self, partition: int, owner: str | None, epoch: int) -> None:
        """Take in what the group says about a partition."""
        line = self.partitions[partition]
        line.owner, line.epoch = owner, epoch

    def shares(self) -> Shares:
        """Who owns what; workers that live and own nothing included."""
        shares: Shares = {
            name: [] for name, line in self.workers.items() if line.state in ("running", "stopped")
        }
        for number, line in self.partitions.items():
            if line.owner is not None:
                shares.setdefault(line.owner, []).append(number)
        return shares

    def unfinished(self, worker: str) -> list[Call]:
        """The worker's handler calls that have not ended."""
        ended = Counter(
            (effect.seq, effect.epoch) for effect in self.effects if effect.worker == worker
        )
        left = []
        for call in self.calls:
            if call.worker != worker:
                continue
            if ended[call.seq, call.epoch]:
                ended[call.seq, call.epoch] -= 1
            else:
                left.append(call)
        return left

    def first_call_after(self, time_ns: int, partition: int, not_by: Iterable[str]) -> Call | None:
        """The first handler call of a partition after a moment, by any but these workers."""
        excluded = set(not_by)
        later = (
            call
            for call in self.calls
            if call.kafka_partition == partition
            and call.time > time_ns
            and call.worker not in excluded
        )
        return min(later, key=lambda call: call.time, default=None)

    @property
    def repeats_refused(self) -> int:
        """Effects the sink already had."""
        return self.outcomes[REPEAT]

    @property
    def stale_refused(self) -> int:
        """Effects of workers that no longer owned the partition."""
        return self.outcomes[STALE]

    @property
    def failed(self) -> int:
        """Handler calls that ended in an error and were retried."""
        return self.outcomes[FAILED]
