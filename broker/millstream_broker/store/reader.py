"""Reading records back from block files, with little memory.

Consumers mostly read what was just written, or walk forward. The last written batch is kept, and
a stretch of a block is read ahead once a second record of it is asked for: a single look-up costs
one small read, a walk one read per 128 KiB. Files stay open while they are among the last used.
"""

from __future__ import annotations

from collections import OrderedDict

from .block import Block
from .fs import File, FileSystem

_STRETCH_BITS = 17
_STRETCH = 1 << _STRETCH_BITS
_MAX_STRETCHES = 16
_MAX_TOUCHED = 64
_MAX_FILES = 4
_MAX_RECENT = 1 << 20

_Key = tuple[int, int]


class BlockReader:
    """Bytes of blocks by position; owns the files it opens."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._open: OrderedDict[int, File] = OrderedDict()
        self._stretches: OrderedDict[_Key, bytes] = OrderedDict()
        self._touched: OrderedDict[_Key, None] = OrderedDict()
        self._recent: tuple[int, int, bytes] = (0, 0, b"")

    def wrote(self, block: Block, position: int, data: bytes | bytearray) -> None:
        """Remember the batch that was just written."""
        if len(data) <= _MAX_RECENT:
            self._recent = (block.number, position, bytes(data))

    def read(self, block: Block, position: int, size: int) -> tuple[bytes, int]:
        """Bytes that hold the record, and where in them it begins; may be cut short by damage."""
        number, start, data = self._recent
        if number == block.number and start <= position and position + size <= start + len(data):
            return data, position - start
        key = (block.number, position >> _STRETCH_BITS)
        base = position & -_STRETCH
        stretch = self._stretches.get(key)
        if stretch is not None and position + size <= base + len(stretch):
            return stretch, position - base
        file = self.file(block)
        if key not in self._touched or position + size > base + _STRETCH:
            self._touched[key] = None
            if len(self._touched) > _MAX_TOUCHED:
                self._touched.popitem(last=False)
            return file.read(size, position), 0
        stretch = file.read(min(_STRETCH, block.size - base), base)
        self._stretches[key] = stretch
        if len(self._stretches) > _MAX_STRETCHES:
            self._stretches.popitem(last=False)
        return stretch, position - base

    def file(self, block: Block) -> File:
        """The block's file, open."""
        file = self._open.get(block.number)
        if file is None:
            file = self._open[block.number] = self._files.open(block.path)
            if len(self._open) > _MAX_FILES:
                self._open.popitem(last=False)[1].close()
        else:
            self._open.move_to_end(block.number)
        return file

    def forget(self, block: Block) -> None:
        """The block's bytes have changed, or it is gone."""
        for key in [key for key in self._stretches if key[0] == block.number]:
            del self._stretches[key]
        if self._recent[0] == block.number:
            self._recent = (0, 0, b"")
        file = self._open.pop(block.number, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
