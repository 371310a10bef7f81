"""Small documents and journals: what a stream keeps beside its messages.

A *document* is a whole file, replaced by writing beside it and renaming: `MSTD`, a generation, the
checksum, the bytes. A *journal* belongs to one generation of a document (the generation is in its
name), so a new document and an empty journal come about in the same rename. A journal entry is its
size, a checksum started from its position and generation, the bytes; a torn last entry is dropped
when read, a damaged one in the middle is stepped over and reported.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from .errors import DamagedRecord, StoreError
from .fs import File, FileSystem
from .port import Damage

_DOCUMENT = struct.Struct("<4sQII")
_MAGIC = b"MSTD"
_ENTRY = struct.Struct("<II")
_U32 = 0xFFFFFFFF
_UNFINISHED = ".new"


def write_document(
    files: FileSystem, path: Path, document: bytes, generation: int, *, sync: bool
) -> None:
    """Replace the document at ``path``; whoever reads finds the old one or the new one, whole.

    ``sync`` makes that hold over a power loss, too.
    """
    checksum = crc32(document, generation & _U32)
    data = _DOCUMENT.pack(_MAGIC, generation, len(document), checksum) + document
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        file = files.open(unfinished, create=True)
        try:
            file.append(data, 0)
            if sync:
                file.sync()
        finally:
            file.close()
        files.replace(unfinished, path)
    except StoreError:
        files.unlink(unfinished)
        raise


def read_document(files: FileSystem, path: Path) -> tuple[bytes, int]:
    """The document and its generation. Raises DamagedRecord when it is not what was written."""
    data = _read_all(files, path)
    if len(data) < _DOCUMENT.size:
        raise DamagedRecord(str(path), 0, 0)
    magic, generation, size, checksum = _DOCUMENT.unpack_from(data, 0)
    document = data[_DOCUMENT.size :]
    if magic != _MAGIC or size != len(document):
        raise DamagedRecord(str(path), 0, 0)
    if crc32(document, generation & _U32) != checksum:
        raise DamagedRecord(str(path), _DOCUMENT.size, 0)
    return document, generation


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What was read: the entries, where the whole part ends, and what was stepped over."""

    entries: list[bytes]
    size: int
    damages: list[Damage]


def encode_entry(entry: bytes, position: int, generation: int) -> bytes:
    """One entry as it stands at ``position`` of the journal of ``generation``."""
    return _ENTRY.pack(len(entry), crc32(entry, (position + generation) & _U32)) + entry


def read_journal(files: FileSystem, path: Path, generation: int) -> JournalContent:
    """All whole entries, oldest first; nothing when there is no such file."""
    if not files.exists(path):
        return JournalContent([], 0, [])
    data = _read_all(files, path)
    entries: list[bytes] = []
    damages: list[Damage] = []
    position = 0
    while position + _ENTRY.size <= len(data):
        size, checksum = _ENTRY.unpack_from(data, position)
        end = position + _ENTRY.size + size
        if end > len(data):
            break
        entry = data[position + _ENTRY.size : end]
        if crc32(entry, (position + generation) & _U32) == checksum:
            entries.append(entry)
        else:
            damages.append(
                Damage(
                    path=str(path), position=position, size_bytes=end - position, lost_messages=0
                )
            )
        position = end
    return JournalContent(entries, position, damages)


def _read_all(files: FileSystem, path: Path) -> bytes:
    file: File = files.open(path)
    try:
        return file.read(file.size(), 0)
    finally:
        file.close()
