"""From a sequence to what is known of its message, for very many messages.

Sequences are cut into pages of 4096. A page keeps one array per property (subject id, time, size,
and the store's own cell: a file position or the body itself), so that a message costs bytes, not
Python objects. A fresh page is dense: the row of a sequence is its offset. A removed row is marked
by subject id 0; when half of a page's rows are gone the page is packed and carries the offsets of
its rows, so a bucket that is overwritten for ever costs what is alive, however wide its sequences
spread. An empty page goes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from itertools import compress
from typing import Generic, NamedTuple, TypeVar

PAGE_BITS = 12
PAGE_SIZE = 1 << PAGE_BITS
_MASK = PAGE_SIZE - 1
GONE = 0

Cell = TypeVar("Cell")


NewCells = Callable[[Iterable[Cell]], MutableSequence[Cell]]


class Row(NamedTuple, Generic[Cell]):
    """What the table knows of one message."""

    subject_id: int
    ts_ns: int
    size: int
    cell: Cell


class Page(Generic[Cell]):
    """Up to 4096 neighbouring sequences. ``version`` grows whenever rows change their places."""

    __slots__ = (
        "base",
        "cells",
        "head",
        "live",
        "max_ts",
        "offsets",
        "sizes",
        "start",
        "subjects",
        "times",
        "version",
    )

    def __init__(self, base: int, start: int, cells: MutableSequence[Cell]) -> None:
        self.base = base
        self.start = start
        self.offsets: array[int] | None = None
        self.subjects = array("I")
        self.times = array("q")
        self.sizes = array("I")
        self.cells = cells
        self.live = 0
        self.head = 0
        self.max_ts = 0
        self.version = 0

    def row(self, seq: int) -> int:
        """The row of a live message; -1 when there is none."""
        offset = seq - self.base
        if self.offsets is None:
            place = offset - self.start
            if not 0 <= place < len(self.subjects):
                return -1
        else:
            place = bisect_left(self.offsets, offset)
            if place == len(self.offsets) or self.offsets[place] != offset:
                return -1
        return place if self.subjects[place] else -1

    def row_from(self, seq: int) -> int:
        """The first row, live or not, at or after ``seq``; may be one past the last."""
        offset = seq - self.base
        if self.offsets is None:
            return max(offset - self.start, 0)
        return bisect_left(self.offsets, max(offset, 0))

    def seq(self, row: int) -> int:
        if self.offsets is None:
            return self.base + self.start + row
        return self.base + self.offsets[row]

    def live_seqs(self) -> list[int]:
        """The sequences of the live messages, ascending."""
        return self.live_between(0, len(self.subjects))

    def live_between(self, row: int, stop: int) -> list[int]:
        """Those of the rows from ``row`` on, below ``stop``."""
        subjects = self.subjects[row:stop]
        if self.offsets is None:
            low = self.base + self.start + row
            return list(compress(range(low, low + len(subjects)), subjects))
        base = self.base
        return [base + offset for offset in compress(self.offsets[row:stop], subjects)]

    def spell_out(self) -> array[int]:
        """Write the offsets down, so that rows may be missing."""
        if self.offsets is None:
            self.offsets = array("H", range(self.start, self.start + len(self.subjects)))
        return self.offsets

    def pack(self, new_cells: NewCells[Cell]) -> None:
        """Forget the rows that are gone."""
        keep = self.subjects
        offsets = self.spell_out()
        self.offsets = array("H", compress(offsets, keep))
        self.times = array("q", compress(self.times, keep))
        self.sizes = array("I", compress(self.sizes, keep))
        self.cells = new_cells(compress(self.cells, keep))
        self.subjects = array("I", compress(keep, keep))
        self.head = 0
        self.version += 1


class SequenceTable(Generic[Cell]):
    """The rows of one stream by sequence."""

    def __init__(self, new_cells: NewCells[Cell]) -> None:
        self._new_cells = new_cells
        self.pages: dict[int, Page[Cell]] = {}
        self.numbers: list[int] = []
        self.messages = 0
        self.size_bytes = 0
        self._first_seq = 0
        self.last_seq = 0
        self.last_ts_ns = 0
        self._tail: Page[Cell] | None = None

    @property
    def first_seq(self) -> int:
        return self._first_seq if self.messages else self.last_seq + 1

    def find(self, seq: int) -> tuple[Page[Cell], int] | None:
        page = self.pages.get(seq >> PAGE_BITS)
        if page is None:
            return None
        row = page.row(seq)
        return None if row < 0 else (page, row)

    def append(self, seq: int, subject_id: int, ts_ns: int, size: int, cell: Cell) -> None:
        """Add a message beyond ``last_seq`` (sequences in between stay unused)."""
        page = self._tail
        if page is None or seq - page.base >= PAGE_SIZE:
            page = self._open_page(seq)
        if page.offsets is not None:
            page.offsets.append(seq - page.base)
        elif seq - page.base - page.start != len(page.subjects):
            page.spell_out().append(seq - page.base)
        page.subjects.append(subject_id)
        page.times.append(ts_ns)
        page.sizes.append(size)
        page.cells.append(cell)
        page.live += 1
        if ts_ns > page.max_ts:
            page.max_ts = ts_ns
        if not self.messages:
            self._first_seq = seq
        self.messages += 1
        self.size_bytes += size
        self.last_seq = seq
        self.last_ts_ns = ts_ns

    def extend(
        self,
        seq: int,
        subject_ids: Sequence[int],
        ts_ns: int,
        sizes: Sequence[int],
        cells: Sequence[Cell],
    ) -> None:
        """Add messages beyond ``last_seq``, neighbours from ``seq`` on."""
        count = len(subject_ids)
        if not self.messages:
            self._first_seq = seq
        self.messages += count
        self.size_bytes += sum(sizes)
        self.last_seq = seq + count - 1
        self.last_ts_ns = ts_ns
        done = 0
        while done < count:
            page = self._tail
            if page is None or seq + done - page.base >= PAGE_SIZE:
                page = self._open_page(seq + done)
            offset = seq + done - page.base
            part = slice(done, min(count, done + PAGE_SIZE - offset))
            taken = part.stop - done
            if page.offsets is not None or offset - page.start != len(page.subjects):
                page.spell_out().extend(range(offset, offset + taken))
            page.subjects.extend(subject_ids[part])
            page.times.extend([ts_ns] * taken)
            page.sizes.extend(sizes[part])
            page.cells.extend(cells[part])
            page.live += taken
            page.max_ts = max(page.max_ts, ts_ns)
            done += taken

    def _open_page(self, seq: int) -> Page[Cell]:
        number = seq >> PAGE_BITS
        page = self.pages.get(number)
        if page is None:
            page = Page(number << PAGE_BITS, seq & _MASK, self._new_cells(()))
            self.pages[number] = page
            self.numbers.append(number)
        self._tail = page
        return page

    def remove(self, seq: int) -> Row[Cell] | None:
        """Take out one message; None when it is not there."""
        found = self.find(seq)
        if found is None:
            return None
        page, place = found
        row = Row(page.subjects[place], page.times[place], page.sizes[place], page.cells[place])
        page.subjects[place] = GONE
        page.live -= 1
        self.messages -= 1
        self.size_bytes -= row.size
        if not page.live:
            self._close_page(page)
        elif page.live * 2 < len(page.subjects):
            page.pack(self._new_cells)
        if seq == self._first_seq and self.messages:
            self._first_seq = self.next_live(seq + 1) or self.last_seq + 1
        return row

    def _close_page(self, page: Page[Cell]) -> None:
        number = page.base >> PAGE_BITS
        del self.pages[number]
        del self.numbers[bisect_left(self.numbers, number)]
        page.version += 1
        if page is self._tail:
            self._tail = None

    def insert(self, seq: int, row: Row[Cell]) -> None:
        """Put back a message that was removed; ``last_seq`` stays."""
        number = seq >> PAGE_BITS
        page = self.pages.get(number)
        if page is None:
            page = Page(number << PAGE_BITS, seq & _MASK, self._new_cells(()))
            self.pages[number] = page
            insort(self.numbers, number)
        offset = seq - page.base
        offsets = page.spell_out()
        place = bisect_left(offsets, offset)
        if place < len(offsets) and offsets[place] == offset:
            page.subjects[place] = row.subject_id
        else:
            offsets.insert(place, offset)
            page.subjects.insert(place, row.subject_id)
            page.times.insert(place, row.ts_ns)
            page.sizes.insert(place, row.size)
            page.cells.insert(place, row.cell)
        page.live += 1
        page.head = 0
        page.max_ts = max(page.max_ts, row.ts_ns)
        page.version += 1
        if not self.messages or seq < self._first_seq:
            self._first_seq = seq
        self.messages += 1
        self.size_bytes += row.size

    def roll_back(self, last_seq: int, last_ts_ns: int) -> None:
        """Forget the rows beyond ``last_seq``; none of them is live any more."""
        self.last_seq, self.last_ts_ns = last_seq, last_ts_ns
        self._tail = None
        page = self.pages.get(last_seq >> PAGE_BITS)
        if page is not None:
            row = page.row_from(last_seq + 1)
            for column in (page.subjects, page.times, page.sizes, page.cells):
                del column[row:]
            if page.offsets is not None:
                del page.offsets[row:]
            page.head = 0
            page.version += 1

    def next_live(self, seq: int) -> int | None:
        """The first message at or after ``seq``; who walks forward mostly finds ``seq`` itself."""
        if self.find(seq) is not None:
            return seq
        numbers = self.numbers
        for place in range(bisect_left(numbers, seq >> PAGE_BITS), len(numbers)):
            page = self.pages[numbers[place]]
            subjects = page.subjects
            row = page.row_from(seq)
            if row <= page.head:
                row = page.head
                while row < len(subjects) and not subjects[row]:
                    row += 1
                page.head = row
            else:
                while row < len(subjects) and not subjects[row]:
                    row += 1
            if row < len(subjects):
                return page.seq(row)
        return None

    def live_from(self, seq: int, count: int) -> list[int]:
        """The first so many messages at or after ``seq``, ascending."""
        found: list[int] = []
        numbers = self.numbers
        for number in numbers[bisect_left(numbers, seq >> PAGE_BITS) :]:
            page = self.pages[number]
            row = page.row_from(seq)
            while row < len(page.subjects):
                if len(found) == count:
                    return found
                stop = row + count - len(found)
                found += page.live_between(row, stop)
                row = stop
        return found

    def count_from(self, seq: int) -> int:
        """How many messages are at or after ``seq``."""
        if not self.messages or seq <= self._first_seq:
            return self.messages
        numbers = self.numbers
        number = seq >> PAGE_BITS
        place = bisect_left(numbers, number)
        count = 0
        if place < len(numbers) and numbers[place] == number:
            page = self.pages[number]
            tail = page.subjects[page.row_from(seq) :]
            count = len(tail) - tail.count(GONE)
            place += 1
        return count + sum(self.pages[later].live for later in numbers[place:])

    def seqs_between(self, first: int, last: int) -> list[int]:
        """The messages from ``first`` to ``last``, ascending."""
        seqs: list[int] = []
        numbers = self.numbers
        for number in numbers[bisect_left(numbers, first >> PAGE_BITS) :]:
            if number << PAGE_BITS > last:
                break
            live = self.pages[number].live_seqs()
            seqs += live[bisect_left(live, first) : bisect_right(live, last)]
        return seqs

    def nth_newest(self, count: int) -> int:
        """The sequence of the ``count``-th message from the end (1 is the newest)."""
        for number in reversed(self.numbers):
            page = self.pages[number]
            if count <= page.live:
                return page.live_seqs()[-count]
            count -= page.live
        return self.first_seq

    def deleted(self) -> Iterator[int]:
        """The sequences without a message between the first and the last, ascending."""
        expected = self.first_seq
        for number in list(self.numbers):
            for live in self.pages[number].live_seqs():
                yield from range(expected, live)
                expected = live + 1
        yield from range(expected, self.last_seq + 1)

    def seq_at(self, ts_ns: int) -> int:
        """The first message stored at or after ``ts_ns``; ``last_seq + 1`` when there is none."""
        for number in self.numbers:
            page = self.pages[number]
            if page.max_ts < ts_ns:
                continue
            for row, stored in enumerate(page.times):
                if stored >= ts_ns and page.subjects[row]:
                    return page.seq(row)
        return self.last_seq + 1

    def first_ts_ns(self) -> int:
        found = self.find(self._first_seq) if self.messages else None
        return found[0].times[found[1]] if found else 0
