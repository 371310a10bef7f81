"""Writing the living part of neighbouring blocks into one.

The new block takes the number of the newest of the group and names the oldest in its header. It
is written beside, synced, and renamed over; a crash before the rename leaves an unfinished file
that is deleted at the next opening, a crash after it leaves merged blocks the header disowns.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

from .block import (
    POSITION_BITS,
    POSITION_MASK,
    UNFINISHED,
    Block,
    encode_graves,
)
from .errors import DamagedRecord, StoreError
from .fs import FileSystem
from .index import MessageIndex
from .record import TAIL, is_whole, reseal


def rewrite_blocks(
    files: FileSystem,
    folder: Path,
    label: str,
    index: MessageIndex[int],
    group: Sequence[Block],
    graves: array[int],
    last_seq: int,
) -> Block:
    """Replace the file of the newest of ``group`` by all that lives in the group, plus ``graves``.

    ``last_seq`` is where the block after the group begins, less one.
    The index points to the new places afterwards; the other files are the caller's to delete.
    Raises StoreError (DamagedRecord when a record went bad meanwhile) with everything as it was.
    """
    first, newest = group[0], group[-1]
    merged = Block(
        folder,
        label,
        newest.number,
        base_seq=first.base_seq,
        base_ts_ns=first.base_ts_ns,
        oldest=first.oldest,
    )
    buffer = bytearray(merged.header())
    moves: list[tuple[int, int]] = []
    old = {block.number: (block, _read(files, block)) for block in group}
    for seq in index.table.seqs_between(first.base_seq + 1, last_seq):
        page, row = index.row(seq)
        cell, size = page.cells[row], page.sizes[row]
        block, data = old[cell >> POSITION_BITS]
        position = cell & POSITION_MASK
        if position + size > len(data) or not is_whole(data, position, size, block.seed + position):
            raise DamagedRecord(str(block.path), position, seq)
        moves.append((seq, len(buffer)))
        body = data[position : position + size - TAIL.size]
        buffer += reseal(body, merged.seed + len(buffer))
        merged.live += 1
        merged.live_bytes += size
    buffer += encode_graves(merged, graves, len(buffer))
    merged.graves = graves
    merged.size = len(buffer)
    _replace(files, merged, buffer)
    for seq, position in moves:
        page, row = index.row(seq)
        page.cells[row] = merged.number << POSITION_BITS | position
    return merged


def _read(files: FileSystem, block: Block) -> bytes:
    file = files.open(block.path)
    try:
        return file.read(block.size, 0)
    finally:
        file.close()


def _replace(files: FileSystem, block: Block, data: bytearray) -> None:
    unfinished = block.path.with_name(block.path.name + UNFINISHED)
    try:
        file = files.open(unfinished, create=True)
        try:
            file.append(data, 0)
            file.sync()
        finally:
            file.close()
        files.replace(unfinished, block.path)
    except StoreError:
        files.unlink(unfinished)
        raise
