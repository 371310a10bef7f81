"""The index both stores share: sequence → row, subject → sequences, and every question about them.

A store adds what it alone knows (where the body is) as the row's *cell*: a file position, or the
body itself. ``IndexedStore`` answers the whole query half of the ``MessageStore`` contract.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from ..message import Message
from ..subjects.subject import is_literal
from .pages import NewCells, Page, Row, SequenceTable
from .runs import SeqRun
from .subject_table import SubjectTable
from .views import MatchView

Cell = TypeVar("Cell")

_MAX_VIEWS = 256
"""A view remembers a byte per subject; the one longest unused goes."""
_MAX_LITERALS = 8
_SCAN_MAX = 8192


class Entry(NamedTuple, Generic[Cell]):
    """One message as the index knows it."""

    seq: int
    subject: str
    ts_ns: int
    size: int
    cell: Cell


class MessageIndex(Generic[Cell]):
    """Everything about the messages of one stream but their bodies."""

    def __init__(self, new_cells: NewCells[Cell], *, first_seq: int = 1) -> None:
        self.table: SequenceTable[Cell] = SequenceTable(new_cells)
        self.table.last_seq = first_seq - 1
        self.subjects = SubjectTable()
        self._views: OrderedDict[tuple[str, ...], MatchView[Cell]] = OrderedDict()

    def append(self, seq: int, subject: str, ts_ns: int, size: int, cell: Cell) -> None:
        """Add a message beyond ``last_seq``."""
        self.table.append(seq, self.subjects.add(subject, seq), ts_ns, size, cell)

    def extend(
        self, subjects: Sequence[str], ts_ns: int, sizes: Sequence[int], cells: Sequence[Cell]
    ) -> int:
        """Add messages right behind ``last_seq``; the first's sequence."""
        seq = self.table.last_seq + 1
        self.table.extend(seq, self.subjects.extend(subjects, seq), ts_ns, sizes, cells)
        return seq

    def skip_to(self, last_seq: int, ts_ns: int) -> None:
        self.table.last_seq, self.table.last_ts_ns = last_seq, ts_ns

    def entry(self, seq: int) -> Entry[Cell] | None:
        found = self.table.find(seq)
        if found is None:
            return None
        page, row = found
        name = self.subjects.names[page.subjects[row]]
        return Entry(seq, name, page.times[row], page.sizes[row], page.cells[row])

    def row(self, seq: int) -> tuple[Page[Cell], int]:
        """The page and row of a message that is there, for the store that moves bodies."""
        found = self.table.find(seq)
        if found is None:
            raise KeyError(seq)
        return found

    def remove(self, seq: int) -> Entry[Cell] | None:
        row = self.table.remove(seq)
        if row is None:
            return None
        subject = self.subjects.remove(row.subject_id, seq)
        return Entry(seq, subject, row.ts_ns, row.size, row.cell)

    def roll_back(self, last_seq: int, last_ts_ns: int, removed: Sequence[Entry[Cell]]) -> None:
        """Return to an earlier state: drop what is beyond ``last_seq``, put ``removed`` back."""
        for seq in self.table.seqs_between(last_seq + 1, self.table.last_seq):
            self.remove(seq)
        self.table.roll_back(last_seq, last_ts_ns)
        for entry in removed:
            if entry.seq <= last_seq:
                subject_id = self.subjects.put_back(entry.subject, entry.seq)
                self.table.insert(entry.seq, Row(subject_id, entry.ts_ns, entry.size, entry.cell))
        for view in self._views.values():
            view.forget_stretch()

    def subject_state(self, subject: str) -> tuple[int, int, int] | None:
        subject_id = self.subjects.ids.get(subject)
        if subject_id is None:
            return None
        run = self.subjects.runs[subject_id]
        return (run, run, 1) if isinstance(run, int) else (run.first, run.last, len(run))

    def counts(self, pattern: str) -> dict[str, int]:
        names, runs = self.subjects.names, self.subjects.runs
        counts: dict[str, int] = {}
        for subject_id in self.subjects.matching((pattern,)):
            run = runs[subject_id]
            counts[names[subject_id]] = 1 if isinstance(run, int) else len(run)
        return counts

    def next_match(self, patterns: Sequence[str], start_seq: int) -> int | None:
        if len(patterns) == 1:
            pattern = patterns[0]
            if pattern == ">":
                return self.table.next_live(start_seq)
            if is_literal(pattern):
                return self._next_of(pattern, start_seq)
        elif len(patterns) <= _MAX_LITERALS and all(map(is_literal, patterns)):
            seqs = [self._next_of(pattern, start_seq) for pattern in patterns]
            return min((seq for seq in seqs if seq is not None), default=None)
        return self._view(tuple(patterns)).next_match(start_seq)

    def _next_of(self, subject: str, start_seq: int) -> int | None:
        subject_id = self.subjects.ids.get(subject)
        if subject_id is None:
            return None
        run = self.subjects.runs[subject_id]
        if isinstance(run, int):
            return run if run >= start_seq else None
        return run.at_or_after(start_seq)

    def next_matches(self, patterns: Sequence[str], start_seq: int, count: int) -> Iterator[int]:
        if tuple(patterns) == (">",):
            yield from self.table.live_from(start_seq, count)
            return
        for _ in range(count):
            seq = self.next_match(patterns, start_seq)
            if seq is None:
                return
            yield seq
            start_seq = seq + 1

    def _view(self, patterns: tuple[str, ...]) -> MatchView[Cell]:
        view = self._views.get(patterns)
        if view is None:
            view = self._views[patterns] = MatchView(patterns, self.table, self.subjects)
            if len(self._views) > _MAX_VIEWS:
                self._views.popitem(last=False)
        else:
            self._views.move_to_end(patterns)
        return view

    def count_matches(self, patterns: Sequence[str], start_seq: int) -> int:
        table = self.table
        if ">" in patterns:
            return table.count_from(start_seq)
        if start_seq <= table.first_seq:
            return sum(map(_length, self._runs(patterns)))
        if table.last_seq - start_seq < _SCAN_MAX:
            return self._count_between(patterns, start_seq, table.last_seq)
        if start_seq - table.first_seq < _SCAN_MAX:
            below = self._count_between(patterns, table.first_seq, start_seq - 1)
            return sum(map(_length, self._runs(patterns))) - below
        return sum(
            int(run >= start_seq) if isinstance(run, int) else run.count_from(start_seq)
            for run in self._runs(patterns)
        )

    def _count_between(self, patterns: Sequence[str], low: int, high: int) -> int:
        """Scan a short stretch; used only where it is shorter than asking every subject."""
        count, seq = 0, self.next_match(patterns, low)
        while seq is not None and seq <= high:
            count, seq = count + 1, self.next_match(patterns, seq + 1)
        return count

    def _runs(self, patterns: Sequence[str]) -> Iterator[int | SeqRun]:
        return map(self.subjects.runs.__getitem__, self.subjects.matching(patterns))

    def last_matches(self, patterns: Sequence[str], up_to_seq: int | None) -> list[int]:
        last: list[int] = []
        for run in self._runs(patterns):
            if isinstance(run, int):
                if up_to_seq is None or run <= up_to_seq:
                    last.append(run)
            elif up_to_seq is None:
                last.append(run.last)
            else:
                seq = run.at_or_before(up_to_seq)
                if seq is not None:
                    last.append(seq)
        last.sort()
        return last

    def to_purge(self, subject: str, below_seq: int | None, keep: int) -> list[int]:
        """The sequences a purge takes, ascending."""
        table = self.table
        if subject == ">":
            limit = table.last_seq + 1 if below_seq is None else below_seq
            if keep:
                limit = min(limit, table.nth_newest(keep))
            return table.seqs_between(1, limit - 1)
        seqs: list[int] = []
        for run in self._runs((subject,)):
            if isinstance(run, int):
                seqs.append(run)
            else:
                seqs += run.live()
        seqs.sort()
        if keep:
            del seqs[-keep:]
        if below_seq is not None:
            seqs = [seq for seq in seqs if seq < below_seq]
        return seqs


def _length(run: int | SeqRun) -> int:
    return 1 if isinstance(run, int) else len(run)


class IndexedStore(ABC, Generic[Cell]):
    """The questions of ``MessageStore``, answered from the index alone."""

    def __init__(self, index: MessageIndex[Cell]) -> None:
        self._index = index
        self._table = index.table

    @abstractmethod
    def append_run(self, messages: Sequence[Message], ts_ns: int) -> int: ...

    @property
    def messages(self) -> int:
        return self._table.messages

    @property
    def size_bytes(self) -> int:
        return self._table.size_bytes

    @property
    def first_seq(self) -> int:
        return self._table.first_seq

    @property
    def last_seq(self) -> int:
        return self._table.last_seq

    @property
    def first_ts_ns(self) -> int:
        return self._table.first_ts_ns()

    @property
    def last_ts_ns(self) -> int:
        return self._table.last_ts_ns

    @property
    def num_subjects(self) -> int:
        return len(self._index.subjects.ids)

    @property
    def num_deleted(self) -> int:
        table = self._table
        return table.last_seq - table.first_seq + 1 - table.messages

    def deleted(self) -> Iterator[int]:
        return self._table.deleted()

    def subject_state(self, subject: str) -> tuple[int, int, int] | None:
        return self._index.subject_state(subject)

    def subjects(self, pattern: str) -> dict[str, int]:
        return self._index.counts(pattern)

    def next_match(self, patterns: Sequence[str], start_seq: int) -> int | None:
        return self._index.next_match(patterns, start_seq)

    def next_matches(self, patterns: Sequence[str], start_seq: int, count: int) -> Iterator[int]:
        return self._index.next_matches(patterns, start_seq, count)

    def count_matches(self, patterns: Sequence[str], start_seq: int) -> int:
        return self._index.count_matches(patterns, start_seq)

    def last_matches(self, patterns: Sequence[str], *, up_to_seq: int | None = None) -> list[int]:
        return self._index.last_matches(patterns, up_to_seq)

    def seq_at(self, ts_ns: int) -> int:
        return self._table.seq_at(ts_ns)
