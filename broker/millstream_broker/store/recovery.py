"""Reading a stream's blocks back.

Blocks are read in order and their records applied in order: messages and skips move the end of the
stream, removals take messages away. Three things may be found that are not whole records:

- the end of the newest block is an unfinished record: a crash cut the last write off. The rest is
  cut from the file; it was never acknowledged.
- bytes in the middle (or a finished last record) do not carry their checksum: damage. It is stepped
  over, by the record's own size where that leads to a whole record or to the end, otherwise by
  searching for the next whole one. It is left where it is and reported, each time, with the
  number of messages that may have stood there: sequences that no record accounts for.
- a newest block without a whole header: a crash cut its creation off; the file goes.

Nothing is written but that cut, and only files that no longer count are deleted (unfinished
rewrites, blocks merged into another), so a recovery that is killed is simply done again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from .block import HEADER_SIZE, POSITION_BITS, SUFFIX, UNFINISHED, Block
from .fs import FileSystem
from .index import MessageIndex
from .port import Damage, Recovery
from .record import (
    ERASED,
    HEAD,
    MARK,
    MESSAGE,
    OVERHEAD,
    REMOVAL,
    SKIP,
    TAIL,
    is_whole,
    read_head,
)

_U32 = 0xFFFFFFFF
_MAX_DECODED = 65536


@dataclass(slots=True)
class _Wound:
    """Damage, and the sequences that may have been lost with it."""

    path: str
    position: int
    size: int
    after_seq: int
    lost: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    def close(self, seq: int) -> None:
        """Everything between the record before the damage and ``seq`` is unaccounted for."""
        self.closed = True
        if seq > self.after_seq + 1:
            self.lost = [(self.after_seq + 1, seq - 1)]

    def heal(self, first: int, last: int) -> None:
        """What was removed later was not lost."""
        rest: list[tuple[int, int]] = []
        for low, high in self.lost:
            if low < first:
                rest.append((low, min(high, first - 1)))
            if high > last:
                rest.append((max(low, last + 1), high))
        self.lost = rest

    def report(self) -> Damage:
        return Damage(
            path=self.path,
            position=self.position,
            size_bytes=self.size,
            lost_messages=sum(high - low + 1 for low, high in self.lost),
        )


class Recoverer:
    """Reads the blocks of one stream into an index."""

    def __init__(
        self, files: FileSystem, folder: Path, label: str, index: MessageIndex[int]
    ) -> None:
        self._files, self._folder, self._label = files, folder, label
        self._index = index
        self._table = index.table
        self._wounds: list[_Wound] = []
        self._truncated = 0
        self._subjects: dict[bytes, str] = {}
        self.blocks: dict[int, Block] = {}

    def run(self) -> Recovery:
        """Fill the index and ``blocks``. Raises StoreError when files cannot be read."""
        found = self._sort_out()
        for block, has_header in found:
            self._read_block(block, has_header=has_header, is_newest=block is found[-1][0])
        damages = tuple(wound.report() for wound in self._wounds)
        return Recovery(truncated_bytes=self._truncated, damages=damages)

    def _sort_out(self) -> list[tuple[Block, bool]]:
        """The blocks that count, by number; unfinished and superseded files are deleted."""
        numbers = []
        for name in self._files.names(self._folder):
            if name.endswith(UNFINISHED):
                self._files.unlink(self._folder / name)
            elif name.endswith(SUFFIX) and name[: -len(SUFFIX)].isdigit():
                numbers.append(int(name[: -len(SUFFIX)]))
        found: list[tuple[Block, bool]] = []
        oldest = max(numbers, default=0) + 1
        for number in sorted(numbers, reverse=True):
            block = Block(
                self._folder, self._label, number, base_seq=0, base_ts_ns=0, oldest=number
            )
            if number >= oldest:
                self._files.unlink(block.path)
                continue
            has_header = block.read_header(self._read_file(block, HEADER_SIZE))
            oldest = block.oldest
            found.append((block, has_header))
        found.reverse()
        return found

    def _read_file(self, block: Block, size: int | None = None) -> bytes:
        file = self._files.open(block.path)
        try:
            return file.read(file.size() if size is None else size, 0)
        finally:
            file.close()

    def _read_block(self, block: Block, *, has_header: bool, is_newest: bool) -> None:
        data = self._read_file(block)
        if not has_header:
            if is_newest and self._find_record(data, block, 0) is None:
                self._truncated += len(data)
                self._files.unlink(block.path)
                return
            self._wounds.append(
                _Wound(str(block.path), 0, min(len(data), HEADER_SIZE), self._table.last_seq)
            )
            block.base_seq, block.base_ts_ns = self._table.last_seq, self._table.last_ts_ns
        else:
            self._reach(block.base_seq + 1)
            if block.base_seq > self._table.last_seq:
                self._index.skip_to(block.base_seq, block.base_ts_ns)
        self.blocks[block.number] = block
        block.size = len(data)
        position = HEADER_SIZE
        while True:
            position = self._read_records(block, data, position)
            if position >= len(data):
                return
            after = self._step_over(block, data, position)
            if after is None:
                if is_newest:
                    self._cut(block, position)
                    return
                after = len(data)
            self._note_damage(block, data, position, after)
            position = after

    def _read_records(self, block: Block, data: bytes, position: int) -> int:
        """Apply records from ``position`` on; where the first that is none begins."""
        end, seed, cell = len(data), block.seed, block.number << POSITION_BITS
        unpack_head, unpack_checksum, head_size = HEAD.unpack_from, TAIL.unpack_from, HEAD.size
        append, subjects, table = self._index.append, self._subjects, self._table
        last_start = end - OVERHEAD
        while position <= last_start:
            mark, kind, _, size, seq, ts_ns, subject_size = unpack_head(data, position)
            stop = position + size - 4
            if mark != MARK or size < OVERHEAD + subject_size or stop + 4 > end:
                break
            if unpack_checksum(data, stop)[0] != crc32(
                data[position:stop], (seed + position) & _U32
            ):
                break
            if kind == MESSAGE:
                if seq <= table.last_seq:
                    break
                if self._wounds:
                    self._reach(seq)
                place = position + head_size
                raw = data[place : place + subject_size]
                subject = subjects.get(raw)
                if subject is None:
                    subject = self._subject(raw)
                append(seq, subject, ts_ns, size, cell | position)
                block.live += 1
                block.live_bytes += size
            elif not self._apply(block, kind, seq, ts_ns):
                break
            position += size
        return position

    def _subject(self, raw: bytes) -> str:
        """Decode once per subject; the memory this takes is bounded."""
        if len(self._subjects) > _MAX_DECODED:
            self._subjects.clear()
        subject = self._subjects[raw] = raw.decode("utf-8", "surrogateescape")
        return subject

    def _apply(self, block: Block, kind: int, seq: int, second: int) -> bool:
        """Take in a record that is no message; False when there is no such kind."""
        if kind == REMOVAL:
            for wound in self._wounds:
                wound.heal(seq, second)
            block.graves.append(seq)
            block.graves.append(second)
            self._bury(seq, second)
        elif kind == SKIP:
            self._reach(seq)
            self._index.skip_to(max(seq, self._table.last_seq), second)
        elif kind == ERASED:
            self._reach(seq)
            block.dead.append(seq)
            if seq > self._table.last_seq:
                self._index.skip_to(seq, second)
        else:
            return False
        return True

    def _bury(self, first: int, last: int) -> None:
        seqs = [first] if first == last else self._table.seqs_between(first, last)
        for seq in seqs:
            entry = self._index.remove(seq)
            if entry is not None:
                self.blocks[entry.cell >> POSITION_BITS].bury(seq, entry.size)

    def _reach(self, seq: int) -> None:
        """A whole record says that the stream had come to ``seq``: damage before it ends there."""
        for wound in reversed(self._wounds):
            if wound.closed:
                return
            wound.close(seq)

    def _step_over(self, block: Block, data: bytes, position: int) -> int | None:
        """Where whole records begin again behind damage; None when they do not."""
        head = read_head(data, position)
        if head is not None:
            after = position + head.size
            if after == len(data) or self._is_record(data, block, after):
                return after
        return self._find_record(data, block, position + 1)

    def _find_record(self, data: bytes, block: Block, position: int) -> int | None:
        position = data.find(MARK, position)
        while position >= 0:
            if self._is_record(data, block, position):
                return position
            position = data.find(MARK, position + 1)
        return None

    def _is_record(self, data: bytes, block: Block, position: int) -> bool:
        head = read_head(data, position)
        return head is not None and is_whole(data, position, head.size, block.seed + position)

    def _note_damage(self, block: Block, data: bytes, position: int, after: int) -> None:
        wound = _Wound(str(block.path), position, after - position, self._table.last_seq)
        self._wounds.append(wound)
        head = read_head(data, position)
        if head is None or position + head.size != after or head.kind != MESSAGE:
            return
        if head.seq == self._table.last_seq + 1:
            # The record's own account of itself is believable: exactly this message is lost, and
            # its sequence is not given out again even if nothing follows.
            self._index.skip_to(head.seq, self._table.last_ts_ns)
            wound.close(head.seq + 1)

    def _cut(self, block: Block, position: int) -> None:
        self._truncated += block.size - position
        file = self._files.open(block.path)
        try:
            file.truncate(position)
        finally:
            file.close()
        block.size = position
