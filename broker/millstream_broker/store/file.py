"""Messages in block files.

How it works. Changes are encoded as records (``record``) into one buffer as they are made, and
enter the index at once, so that sequences and subjects can be asked for before anything is
written. ``flush`` hands the buffer to the operating system with one write to the newest block. The
order of records is the order of the calls, so whatever a crash leaves of the last write is a prefix
of the calls. A block that is full is followed by a new one at the next change, never in the middle
of a flush.

A flush that fails is taken back whole: the file is cut to where it ended, the index returns to
the last flush. If the cut fails too, the store is *broken*: it answers from what was flushed and
refuses changes; whole records of the failed write may then come back at the next opening,
unacknowledged.

What is gone is a removal record in the newest block. A full block whose live part has fallen below
half is rewritten without what is dead (with the block before it where both are small); one in which
nothing is alive and whose removals nobody needs any more is deleted. One rewrite at most follows
each flush. That keeps the files of a bucket that is overwritten for ever within about twice what is
alive plus a block. When tidying fails (disk full), nothing is lost: the old block stays, and
``maintenance_error`` says why.

Invariants: the cell of a live message is ``block number << 32 | position``; its size in the index
is its record's size; everything below ``size`` of a block is in the operating system.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, MutableSequence, Sequence
from pathlib import Path

from ..message import Message
from .block import (
    HEADER_SIZE,
    POSITION_BITS,
    POSITION_MASK,
    Block,
    encode_graves,
    join_ranges,
    needed_graves,
)
from .errors import DamagedRecord, StoreBroken, StoreError
from .fs import File, FileSystem
from .index import Entry, IndexedStore, MessageIndex
from .port import Recovery, RemovedMessage, StoredMessage
from .reader import BlockReader
from .record import (
    MAX_SUBJECT_BYTES,
    OVERHEAD,
    decode_message,
    encode_erased,
    encode_message,
    encode_removal,
    encode_skip,
)
from .recovery import Recoverer
from .rewrite import rewrite_blocks

BLOCK_BYTES = 2 << 20
"""Rewriting a half dead block holds up the flush that does it: about 20 ms per MiB alive."""
_REASSESSED = 2


def _new_cells(cells: Iterable[int]) -> MutableSequence[int]:
    return array("Q", cells)


class FileStore(IndexedStore[int]):
    """A ``MessageStore`` in a folder of its own.

    ``label`` (the stream's name) is mixed into every checksum: a block copied from another stream
    is not taken for ours. ``sync_always`` makes every flush survive a power loss.
    """

    def __init__(
        self,
        files: FileSystem,
        folder: Path,
        *,
        label: str,
        first_seq: int = 1,
        block_bytes: int = BLOCK_BYTES,
        sync_always: bool = False,
    ) -> None:
        super().__init__(MessageIndex(_new_cells))
        self._files, self._folder, self._label = files, folder, label
        self._block_bytes, self._sync_always = block_bytes, sync_always
        files.make_folder(folder)
        recoverer = Recoverer(files, folder, label, self._index)
        self._recovery = recoverer.run()
        self._blocks = recoverer.blocks
        self._broken: StoreError | None = None
        self._maintenance_error: StoreError | None = None
        self._candidates: set[int] = set()
        self._reassessed = 0
        self._erasures: list[Entry[int]] = []
        self._unsynced: set[int] = set()
        self._pending = bytearray()
        self._removed: list[Entry[int]] = []
        self._graves = array("Q")
        self._grave: tuple[int, int] | None = None
        self._skip_at = -1
        self._appended = 0
        self._appended_bytes = 0
        self._reader = BlockReader(files)
        if self._blocks:
            self._tail = self._blocks[max(self._blocks)]
            self._tail_file = files.open(self._tail.path)
            for block in self._blocks.values():
                self._assess(block)
        else:
            self._index.skip_to(max(self._table.last_seq, first_seq - 1), self._table.last_ts_ns)
            self._tail = self._new_block(1)
            self._tail_file = files.open(self._tail.path, create=True)
            self._write_first_header()
        self._start = self._tail.size
        self._mark = (self._table.last_seq, self._table.last_ts_ns)

    def _write_first_header(self) -> None:
        header = self._tail.header()
        try:
            self._tail_file.append(header, 0)
        except StoreError:
            self._tail_file.close()
            raise
        self._tail.size = len(header)
        self._unsynced.add(self._tail.number)

    @property
    def recovery(self) -> Recovery:
        return self._recovery

    @property
    def maintenance_error(self) -> StoreError | None:
        return self._maintenance_error

    # Changing

    def append_run(self, messages: Sequence[Message], ts_ns: int) -> int:
        if self._grave is not None:
            self._close_grave()
        elif not self._pending:
            self._begin()
        tail = self._tail
        start = position = self._start + len(self._pending)
        seq, seed, number = self._table.last_seq, tail.seed, tail.number << POSITION_BITS
        subjects: list[str] = []
        records: list[bytes] = []
        sizes: list[int] = []
        cells: list[int] = []
        for subject, _, headers, payload in messages:
            raw = subject.encode("utf-8", "surrogateescape")
            if len(raw) > MAX_SUBJECT_BYTES:
                raise StoreError(tail.path.name, "store a subject in", "it is over 65535 bytes")
            seq += 1
            record = encode_message(seed + position, seq, ts_ns, raw, headers, payload)
            subjects.append(subject)
            records.append(record)
            sizes.append(len(record))
            cells.append(number | position)
            position += len(record)
        self._pending += b"".join(records)
        self._appended += len(records)
        self._appended_bytes += position - start
        return self._index.extend(subjects, ts_ns, sizes, cells)

    def skip(self, count: int, ts_ns: int) -> None:
        pending = self._pending
        if self._grave is not None:
            self._close_grave()
        elif not pending:
            self._begin()
        if self._skip_at >= 0 and self._skip_at + OVERHEAD == len(pending):
            del pending[self._skip_at :]
        self._skip_at = len(pending)
        last_seq = self._table.last_seq + count
        pending += encode_skip(self._tail.seed + self._start + len(pending), last_seq, ts_ns)
        self._index.skip_to(last_seq, ts_ns)

    def remove(self, seq: int, *, erase: bool = False) -> RemovedMessage | None:
        if not self._pending and self._grave is None:
            self._begin()
        entry = self._index.remove(seq)
        if entry is None:
            return None
        self._removed.append(entry)
        grave = self._grave
        if grave is None:
            self._grave = (seq, seq)
        elif grave[1] + 1 == seq:
            self._grave = (grave[0], seq)
        else:
            self._close_grave()
            self._grave = (seq, seq)
        if erase:
            self._erasures.append(entry)
        return RemovedMessage(seq, entry.ts_ns, entry.subject, entry.size)

    def purge(self, *, subject: str = ">", below_seq: int | None = None, keep: int = 0) -> int:
        self.flush()
        seqs = self._index.to_purge(subject, below_seq, keep)
        if not seqs:
            return 0
        self._begin()
        ranges = array("Q", (seqs[0], seqs[-1])) if subject == ">" else join_ranges(seqs)
        self._pending += encode_graves(self._tail, ranges, self._start + len(self._pending))
        self._graves += ranges
        self._write()
        for seq in seqs:
            entry = self._index.remove(seq)
            if entry is not None:
                self._bury(entry)
        self._tidy()
        return len(seqs)

    def flush(self) -> None:
        self._close_grave()
        if self._pending:
            self._write()
            self._tidy()

    def sync(self) -> None:
        self.flush()
        for number in sorted(self._unsynced):
            if number == self._tail.number:
                self._tail_file.sync()
            elif number in self._blocks:
                self._reader.file(self._blocks[number]).sync()
        self._files.sync_folder(self._folder)
        self._unsynced.clear()

    def close(self) -> None:
        try:
            if self._broken is None:
                self.flush()
        finally:
            self._reader.close()
            self._tail_file.close()

    # Reading

    def load(self, seq: int) -> StoredMessage | None:
        found = self._table.find(seq)
        if found is None:
            return None
        page, row = found
        cell, size = page.cells[row], page.sizes[row]
        position = cell & POSITION_MASK
        block = self._blocks[cell >> POSITION_BITS]
        data, start = self._bytes_of(block, position, size)
        body = decode_message(data, start, size, seq, block.seed + position)
        if body is None:
            raise DamagedRecord(str(block.path), position, seq)
        name = self._index.subjects.names[page.subjects[row]]
        return StoredMessage(seq, page.times[row], name, *body)

    def load_run(self, seqs: Iterable[int], max_bytes: int) -> list[StoredMessage]:
        names, find, new = self._index.subjects.names, self._table.find, tuple.__new__
        found: list[StoredMessage] = []
        block, data, base, stop = self._tail, b"", 0, 0
        for seq in seqs:
            place = find(seq)
            if place is None or max_bytes <= 0:
                break
            page, row = place
            cell, size = page.cells[row], page.sizes[row]
            position = cell & POSITION_MASK
            if cell >> POSITION_BITS != block.number or not base <= position <= stop - size:
                block = self._blocks[cell >> POSITION_BITS]
                data, start = self._bytes_of(block, position, size)
                base, stop = position - start, position - start + len(data)
            body = decode_message(data, position - base, size, seq, block.seed + position)
            if body is None:
                break
            name = names[page.subjects[row]]
            found.append(new(StoredMessage, (seq, page.times[row], name, *body)))
            max_bytes -= size
        return found

    def _bytes_of(self, block: Block, position: int, size: int) -> tuple[bytes, int]:
        """Bytes that hold the record, and where in them it begins."""
        if block is self._tail and position >= self._start:
            start = position - self._start
            return bytes(self._pending[start : start + size]), 0
        return self._reader.read(block, position, size)

    # The batch that the next flush writes

    def _begin(self) -> None:
        """Start a batch: at the end of the newest block, or in a new one when that is full."""
        if self._broken is not None:
            raise StoreBroken(self._broken.path, self._broken.reason)
        tail = self._tail
        if self._is_full(tail):
            self._tail = self._new_block(tail.number + 1)
            self._pending += self._tail.header()
        self._start = self._tail.size
        self._mark = (self._table.last_seq, self._table.last_ts_ns)

    def _is_full(self, block: Block) -> bool:
        """Full, or holding nothing alive but enough to be worth giving back to the disk."""
        if block.size >= self._block_bytes:
            return True
        return not block.live and block.size >= self._block_bytes // 4

    def _new_block(self, number: int) -> Block:
        block = Block(
            self._folder,
            self._label,
            number,
            base_seq=self._table.last_seq,
            base_ts_ns=self._table.last_ts_ns,
            oldest=number,
        )
        self._blocks[number] = block
        return block

    def _close_grave(self) -> None:
        if self._grave is None:
            return
        first, last = self._grave
        self._grave = None
        position = self._start + len(self._pending)
        self._pending += encode_removal(self._tail.seed + position, first, last)
        self._graves.append(first)
        self._graves.append(last)

    def _write(self) -> None:
        """Write the batch; on failure, return to the state before it."""
        tail, file = self._tail, self._tail_file
        is_new = tail.size == 0
        try:
            if is_new:
                file = self._files.open(tail.path, create=True)
            file.append(self._pending, self._start)
            if self._sync_always:
                file.sync()
                if is_new:
                    self._files.sync_folder(self._folder)
        except StoreError as error:
            self._take_back(file, error, is_new=is_new)
            raise
        self._reader.wrote(tail, self._start, self._pending)
        tail.size = self._start + len(self._pending)
        tail.live += self._appended
        tail.live_bytes += self._appended_bytes
        tail.graves += self._graves
        if not self._sync_always:
            self._unsynced.add(tail.number)
        for entry in self._removed:
            self._bury(entry)
        if is_new:
            self._follow(file)
        self._forget_batch()

    def _take_back(self, file: File, error: StoreError, *, is_new: bool) -> None:
        tail = self._tail
        try:
            if is_new:
                if file is not self._tail_file:
                    file.close()
                self._files.unlink(tail.path)
            else:
                file.truncate(tail.size)
        except StoreError:
            self._broken = error
        if is_new:
            del self._blocks[tail.number]
            self._tail = self._blocks[max(self._blocks)]
        self._erasures = [entry for entry in self._erasures if entry not in self._removed]
        self._index.roll_back(*self._mark, self._removed)
        self._forget_batch()

    def _forget_batch(self) -> None:
        self._pending = bytearray()
        self._start = self._tail.size
        self._mark = (self._table.last_seq, self._table.last_ts_ns)
        self._removed = []
        self._graves = array("Q")
        self._grave = None
        self._skip_at = -1
        self._appended = self._appended_bytes = 0

    def _follow(self, file: File) -> None:
        """The batch opened a new block: the one before it is closed for good."""
        self._tail_file.close()
        self._tail_file = file
        sealed = [block for block in self._blocks.values() if block is not self._tail]
        self._assess(sealed[-1])
        # Removal records are needed less and less as older blocks are rewritten; nothing tells
        # their own block, so a few mostly dead ones are looked at again with every new block.
        stale = [b.number for b in sealed if b.graves and b.live_bytes * 2 < b.size]
        later = [number for number in stale if number > self._reassessed]
        chosen = (later or stale)[:_REASSESSED]
        self._reassessed = max(chosen, default=0)
        self._candidates.update(chosen)

    def _bury(self, entry: Entry[int]) -> None:
        block = self._blocks[entry.cell >> POSITION_BITS]
        block.bury(entry.seq, entry.size)
        if block is not self._tail and block.live_bytes < block.check_below:
            self._candidates.add(block.number)

    # Tidying

    def _assess(self, block: Block) -> None:
        """Set when a closed block is worth looking at, or note it when it is already."""
        block.check_below = (block.size - HEADER_SIZE) // 2 + 1
        if block is not self._tail and block.used_bytes < block.check_below:
            self._candidates.add(block.number)

    def _tidy(self) -> None:
        """Erase what was to be erased; delete dead blocks; rewrite at most one."""
        tail = self._tail
        wants_new_tail = not tail.live and self._is_full(tail)
        if not self._candidates and not self._erasures and not wants_new_tail:
            return
        try:
            self._erase()
            if wants_new_tail:
                self._begin()
                self._write()
            while self._candidates:
                number = min(self._candidates)
                self._candidates.discard(number)
                block = self._blocks.get(number)
                if block is not None and block is not self._tail and self._tidy_block(block):
                    break
            self._maintenance_error = None
        except StoreError as error:
            self._maintenance_error = error

    def _erase(self) -> None:
        while self._erasures:
            entry = self._erasures[-1]
            block = self._blocks.get(entry.cell >> POSITION_BITS)
            position = entry.cell & POSITION_MASK
            if block is not None:
                record = encode_erased(block.seed + position, entry.size, entry.seq, entry.ts_ns)
                file = self._tail_file if block is self._tail else self._reader.file(block)
                file.overwrite(record, position)
                self._reader.forget(block)
                self._unsynced.add(block.number)
            self._erasures.pop()

    def _tidy_block(self, block: Block) -> bool:
        """Delete or rewrite a closed block if that pays; whether it was rewritten."""
        ordered = list(self._blocks.values())
        place = bisect_left([other.number for other in ordered], block.number)
        group = [block]
        room = self._block_bytes // 4
        if place and block.used_bytes < room and ordered[place - 1].used_bytes < room:
            group.insert(0, ordered[place - 1])
            place -= 1
        graves = needed_graves(
            (pair for member in group for pair in member.grave_pairs()), ordered[:place]
        )
        if not graves and not any(member.live for member in group):
            for member in group:
                self._drop(member)
            if not ordered[place + len(group)].live:
                # Its removals may have been of what has just gone.
                self._candidates.add(ordered[place + len(group)].number)
            return False
        if len(group) == 1 and not place and self._is_draining(block):
            block.check_below = block.live_bytes // 2
            return False
        size = HEADER_SIZE + sum(member.live_bytes for member in group)
        size += len(graves) // 2 * OVERHEAD
        if len(group) == 1 and size * 5 > block.size * 3:
            block.check_below = block.live_bytes * 3 // 4
            return False
        last_seq = ordered[place + len(group)].base_seq
        merged = rewrite_blocks(
            self._files, self._folder, self._label, self._index, group, graves, last_seq
        )
        self._blocks = {
            merged.number if other is block else other.number: merged if other is block else other
            for other in ordered
            if other is block or other not in group
        }
        for member in group:
            self._reader.forget(member)
            if member is not block:
                self._files.unlink(member.path)
        self._assess(merged)
        self._candidates.discard(merged.number)
        return True

    def _is_draining(self, block: Block) -> bool:
        """Whether the oldest block is used up from its front, and so will soon go as a whole."""
        first_seq = self._table.first_seq
        ahead = sum(seq > first_seq for seq in block.dead)
        return ahead * 4 <= block.live

    def _drop(self, block: Block) -> None:
        self._reader.forget(block)
        del self._blocks[block.number]
        self._unsynced.discard(block.number)
        self._files.unlink(block.path)
