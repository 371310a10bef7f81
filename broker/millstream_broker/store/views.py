"""The next match of a filter, remembered.

A consumer walks forward through its stream asking for the next message on its filter. A view keeps
two things per filter: what the filter says of each subject id (asked once per subject), and for the
page the consumer stands in one byte per row, made by one pass in C and searched with ``find``. One
in ten or one in a thousand matching then costs the same per message passed: tens of nanoseconds.
A stretch without any match is remembered too, so that a consumer waiting at the end does not walk
there again.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Generic, TypeVar

from .pages import PAGE_BITS, PAGE_SIZE, Page, SequenceTable
from .pattern import compile_patterns
from .subject_table import SubjectTable

Cell = TypeVar("Cell")

_NO, _YES, _UNKNOWN = 0, 1, 2


class MatchView(Generic[Cell]):
    """One set of patterns on one stream."""

    def __init__(
        self, patterns: Sequence[str], table: SequenceTable[Cell], subjects: SubjectTable
    ) -> None:
        self._matches = compile_patterns(patterns)
        self._table, self._subjects = table, subjects
        self._generation = subjects.generation
        self._memo = bytearray(1)
        self._page: Page[Cell] | None = None
        self._version = 0
        self._states = bytearray()
        self._barren = (0, 0)

    def forget_stretch(self) -> None:
        """Messages may have come back where none matched (a rollback)."""
        self._barren = (0, 0)
        self._page = None

    def next_match(self, start_seq: int) -> int | None:
        page = self._page
        if page is not None and page.version == self._version:
            row = page.row_from(start_seq)
            row = self._states.find(_YES, row) if page.base <= start_seq else -1
            if row >= 0 and page.subjects[row] and start_seq - page.base < PAGE_SIZE:
                return page.seq(row)
        return self._search(start_seq)

    def _search(self, start_seq: int) -> int | None:
        low, high = self._barren
        seq = high if low <= start_seq < high else start_seq
        numbers, pages = self._table.numbers, self._table.pages
        for place in range(bisect_left(numbers, seq >> PAGE_BITS), len(numbers)):
            page = pages[numbers[place]]
            states = self._states_of(page)
            row = states.find(_YES, page.row_from(seq))
            while row >= 0 and not page.subjects[row]:
                row = states.find(_YES, row + 1)
            if row >= 0:
                found = page.seq(row)
                self._remember(start_seq, found)
                return found
        self._remember(start_seq, max(self._table.last_seq + 1, start_seq))
        return None

    def _remember(self, start_seq: int, end_seq: int) -> None:
        low, high = self._barren
        if low <= start_seq <= high:
            self._barren = (low, max(high, end_seq))
        else:
            self._barren = (start_seq, end_seq)

    def _states_of(self, page: Page[Cell]) -> bytearray:
        """One byte per row of the page: whether its subject matches."""
        if self._generation != self._subjects.generation:
            self._generation = self._subjects.generation
            self._memo = bytearray(1)
            self._page = None
        if page is not self._page or page.version != self._version:
            self._page, self._version = page, page.version
            self._states = bytearray()
        states = self._states
        known = len(states)
        if known < len(page.subjects):
            ids = page.subjects[known:] if known else page.subjects
            memo = self._memo
            if len(memo) < len(self._subjects.names):
                memo.extend(bytes((_UNKNOWN,)) * (len(self._subjects.names) - len(memo)))
            fresh = bytes(map(memo.__getitem__, ids))
            if _UNKNOWN in fresh:
                names = self._subjects.names
                for subject_id in set(ids):
                    if memo[subject_id] == _UNKNOWN:
                        memo[subject_id] = _YES if self._matches(names[subject_id]) else _NO
                fresh = bytes(map(memo.__getitem__, ids))
            states += fresh
        return states
