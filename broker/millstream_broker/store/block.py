"""One block file: a header, then records; and what the store remembers of it.

The header says which sequences came before (``last_seq``, ``last_ts_ns``), so that the newest block
alone carries the stream's end however many older blocks are deleted. ``oldest`` is the lowest
number of the blocks merged into this one: a crash between writing the merged block and deleting
the others leaves both, and the header tells that the others are to go.

What is remembered per block, so that old blocks can be deleted and rewritten without reading the
others:

- ``dead``: sequences whose record is in the file but not in the stream;
- ``graves``: the ranges its removal records name. A grave is needed as long as some older block
  still holds the record of a message it removed; a rewrite drops the others.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from .record import OVERHEAD, encode_removal

_HEADER = struct.Struct("<4sHHQQQq")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"MSTB"
_VERSION = 1
HEADER_SIZE = _HEADER.size + _CHECKSUM.size
SUFFIX = ".blk"
UNFINISHED = ".new"
POSITION_BITS = 32
POSITION_MASK = (1 << POSITION_BITS) - 1


class Block:
    """One block of a stream. ``size`` 0 means that its file does not exist yet."""

    __slots__ = (
        "_is_sorted",
        "base_seq",
        "base_ts_ns",
        "check_below",
        "dead",
        "graves",
        "live",
        "live_bytes",
        "number",
        "oldest",
        "path",
        "seed",
        "size",
    )

    def __init__(
        self, folder: Path, label: str, number: int, *, base_seq: int, base_ts_ns: int, oldest: int
    ) -> None:
        self.number = number
        self.oldest = oldest
        self.base_seq = base_seq
        self.base_ts_ns = base_ts_ns
        self.path = folder / f"{number}{SUFFIX}"
        self.seed = crc32(f"{label}/{number}".encode())
        self.size = 0
        self.live = 0
        self.live_bytes = 0
        self.check_below = 0
        self.dead = array("Q")
        self.graves = array("Q")
        self._is_sorted = True

    def header(self) -> bytes:
        body = _HEADER.pack(
            _MAGIC, _VERSION, 0, self.number, self.oldest, self.base_seq, self.base_ts_ns
        )
        return body + _CHECKSUM.pack(crc32(body, self.seed))

    def read_header(self, data: bytes) -> bool:
        """Take over what the file says of itself; False when it is not a header of this block."""
        if len(data) < HEADER_SIZE:
            return False
        body = data[: _HEADER.size]
        magic, version, _, number, oldest, base_seq, base_ts_ns = _HEADER.unpack(body)
        if crc32(body, self.seed) != _CHECKSUM.unpack_from(data, _HEADER.size)[0]:
            return False
        if magic != _MAGIC or version != _VERSION or number != self.number:
            return False
        self.oldest, self.base_seq, self.base_ts_ns = oldest, base_seq, base_ts_ns
        return True

    def bury(self, seq: int, size: int) -> None:
        """Count a message of this block as removed."""
        self.live -= 1
        self.live_bytes -= size
        if self._is_sorted and self.dead and seq < self.dead[-1]:
            self._is_sorted = False
        self.dead.append(seq)

    def grave_pairs(self) -> Iterator[tuple[int, int]]:
        """The ranges of the removal records."""
        pairs = iter(self.graves)
        return zip(pairs, pairs, strict=True)

    def sorted_dead(self) -> array[int]:
        """``dead``, ascending."""
        if not self._is_sorted:
            self.dead = array("Q", sorted(self.dead))
            self._is_sorted = True
        return self.dead

    @property
    def used_bytes(self) -> int:
        """What live messages and removal records take in the file."""
        return self.live_bytes + len(self.graves) // 2 * OVERHEAD


def needed_graves(graves: Iterable[tuple[int, int]], older: Sequence[Block]) -> array[int]:
    """What of ``graves`` still keeps a removed record of an older block from coming back.

    ``older`` ascends; the answer is pairs (first, last) again, as few as possible.
    """
    if not any(block.dead for block in older):
        return array("Q")
    bases = [block.base_seq for block in older]
    needed: list[int] = []
    for first, last in graves:
        place = max(bisect_left(bases, first) - 1, 0)
        while place < len(older) and bases[place] < last:
            seqs = older[place].sorted_dead()
            needed += seqs[bisect_left(seqs, first) : bisect_right(seqs, last)]
            place += 1
    return join_ranges(sorted(needed))


def join_ranges(seqs: Iterable[int]) -> array[int]:
    """Ascending sequences as pairs (first, last) of neighbours."""
    pairs = array("Q")
    for seq in seqs:
        if pairs and pairs[-1] >= seq - 1:
            pairs[-1] = seq
        else:
            pairs.append(seq)
            pairs.append(seq)
    return pairs


def encode_graves(block: Block, graves: array[int], position: int) -> bytes:
    """Removal records for pairs (first, last), to stand at ``position``."""
    records: list[bytes] = []
    for place in range(0, len(graves), 2):
        seed = block.seed + position + len(records) * OVERHEAD
        records.append(encode_removal(seed, graves[place], graves[place + 1]))
    return b"".join(records)
