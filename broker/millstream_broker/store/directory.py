"""Where streams live: a folder for a server's file streams, nothing but dictionaries for memory.

```
<store_dir>/jetstream/lock                                 held while a server uses the folder
<store_dir>/jetstream/<account>/streams/<name>/config      document: the stream's configuration
                                               sources     document: how far its sources are
                                               msgs/       blocks (``file``)
                                               consumers/<name>.doc        document
                                               consumers/<name>.<g>.log    its journal, generation g
```
A stream is there when its ``config`` is: it is the last file a creation writes and the first a
deletion removes, so a crash in between leaves no half stream, only a folder that is cleared before
it is used again.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .documents import encode_entry, read_document, read_journal, write_document
from .errors import StoreError
from .file import BLOCK_BYTES, FileStore
from .fs import File, FileSystem, LocalFiles
from .memory import MemoryStore
from .port import Damage, MessageStore

_DOCUMENT = ".doc"
_JOURNAL = ".log"
_MAX_OPEN_JOURNALS = 32


def _checked(name: str, kind: str) -> str:
    """The name, when it can be that of a folder; JetStream has validated more than this."""
    if not name or name in {".", ".."} or any(char in name for char in "/\\\0"):
        raise StoreError(repr(name), "use", f"not a name for the folder of a {kind}")
    return name


@dataclass(slots=True)
class _Journal:
    """The journal of one consumer: what is written, and what waits for the flush."""

    path: Path
    generation: int
    size: int
    pending: bytearray = field(default_factory=bytearray)


class FolderDirectory:
    """One stream's folder."""

    def __init__(self, files: FileSystem, folder: Path, label: str, block_bytes: int) -> None:
        self._files, self._folder, self._label = files, folder, label
        self._block_bytes = block_bytes
        self._config = folder / "config"
        self._sources = folder / "sources"
        self._consumers = folder / "consumers"
        self._store: FileStore | None = None
        self._sync_always = False
        self._journals: dict[str, _Journal] = {}
        self._dirty: dict[str, None] = {}
        self._open: OrderedDict[str, File] = OrderedDict()
        self._damages: list[Damage] = []

    @property
    def damages(self) -> tuple[Damage, ...]:
        return tuple(self._damages)

    def save_config(self, document: bytes) -> None:
        self._files.make_folder(self._folder)
        write_document(self._files, self._config, document, 0, sync=True)

    def load_config(self) -> bytes:
        return read_document(self._files, self._config)[0]

    def save_sources(self, document: bytes) -> None:
        write_document(self._files, self._sources, document, 0, sync=self._sync_always)

    def load_sources(self) -> bytes:
        if not self._files.exists(self._sources):
            return b""
        return read_document(self._files, self._sources)[0]

    def open_messages(self, *, first_seq: int = 1, sync_always: bool = False) -> MessageStore:
        self._sync_always = sync_always
        if self._store is None:
            self._store = FileStore(
                self._files,
                self._folder / "msgs",
                label=self._label,
                first_seq=first_seq,
                block_bytes=self._block_bytes,
                sync_always=sync_always,
            )
        return self._store

    def consumers(self) -> list[str]:
        names = self._files.names(self._consumers)
        return [name[: -len(_DOCUMENT)] for name in names if name.endswith(_DOCUMENT)]

    def save_consumer(self, name: str, document: bytes) -> None:
        path = self._document(name)
        journal = self._journals.get(name)
        if journal is None and self._files.exists(path):
            _, generation = read_document(self._files, path)
            journal = _Journal(self._journal_path(name, generation), generation, 0)
        self._files.make_folder(self._consumers)
        generation = 0 if journal is None else journal.generation + 1
        fresh = self._journal_path(name, generation)
        # A deletion cut short may have left a journal of this very generation.
        self._files.unlink(fresh)
        write_document(self._files, path, document, generation, sync=self._sync_always)
        self._dirty.pop(name, None)
        self._journals[name] = _Journal(fresh, generation, 0)
        self._close_journal(name)
        if journal is not None:
            self._files.unlink(journal.path)

    def load_consumer(self, name: str) -> tuple[bytes, list[bytes]]:
        document, generation = read_document(self._files, self._document(name))
        path = self._journal_path(name, generation)
        for other in self._files.names(self._consumers):
            if self._is_stale(other, name, path):
                self._files.unlink(self._consumers / other)
        content = read_journal(self._files, path, generation)
        self._damages += content.damages
        self._journals[name] = _Journal(path, generation, content.size)
        return document, content.entries

    @staticmethod
    def _is_stale(other: str, name: str, path: Path) -> bool:
        """Whether the file is a journal of an earlier document of the consumer."""
        if not other.startswith(f"{name}.") or not other.endswith(_JOURNAL) or other == path.name:
            return False
        return other[len(name) + 1 : -len(_JOURNAL)].isdigit()

    def journal_consumer(self, name: str, entry: bytes) -> None:
        journal = self._journals[name]
        position = journal.size + len(journal.pending)
        journal.pending += encode_entry(entry, position, journal.generation)
        self._dirty[name] = None

    def flush_consumers(self) -> None:
        while self._dirty:
            name = next(iter(self._dirty))
            journal = self._journals[name]
            file = self._journal_file(name, journal)
            file.append(journal.pending, journal.size)
            if self._sync_always:
                file.sync()
            journal.size += len(journal.pending)
            journal.pending = bytearray()
            del self._dirty[name]

    def _journal_file(self, name: str, journal: _Journal) -> File:
        file = self._open.get(name)
        if file is None:
            if journal.size:
                file = self._files.open(journal.path)
                file.truncate(journal.size)
            else:
                file = self._files.open(journal.path, create=True)
            self._open[name] = file
            if len(self._open) > _MAX_OPEN_JOURNALS:
                self._open.popitem(last=False)[1].close()
        else:
            self._open.move_to_end(name)
        return file

    def _close_journal(self, name: str) -> None:
        file = self._open.pop(name, None)
        if file is not None:
            file.close()

    def delete_consumer(self, name: str) -> None:
        self._files.unlink(self._document(name))
        self._close_journal(name)
        self._dirty.pop(name, None)
        journal = self._journals.pop(name, None)
        if journal is not None:
            self._files.unlink(journal.path)

    def close(self) -> None:
        try:
            self.flush_consumers()
        finally:
            self._release()

    def _release(self) -> None:
        for name in list(self._open):
            self._close_journal(name)
        if self._store is not None:
            store, self._store = self._store, None
            store.close()

    def destroy(self) -> None:
        self._files.unlink(self._config)
        self._dirty.clear()
        try:
            self._release()
        finally:
            self._files.remove_folder(self._folder)

    def _document(self, name: str) -> Path:
        return self._consumers / f"{_checked(name, 'consumer')}{_DOCUMENT}"

    def _journal_path(self, name: str, generation: int) -> Path:
        return self._consumers / f"{_checked(name, 'consumer')}.{generation}{_JOURNAL}"


class FileStorage:
    """All file streams of one server, under ``store_dir``; holds the folder's lock until closed.

    Raises StoreLocked when another server uses the folder, StoreError when it cannot be written.
    """

    def __init__(
        self, store_dir: Path, *, files: FileSystem | None = None, block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._files = LocalFiles() if files is None else files
        self._root = store_dir / "jetstream"
        self._block_bytes = block_bytes
        self._open: dict[tuple[str, str], FolderDirectory] = {}
        self._files.make_folder(self._root)
        self._lock: File | None = self._files.lock(self._root / "lock")

    def accounts(self) -> list[str]:
        return [name for name in self._files.names(self._root) if self._has_streams(name)]

    def _has_streams(self, account: str) -> bool:
        return self._files.exists(self._root / account / "streams")

    def streams(self, account: str) -> list[str]:
        folder = self._root / _checked(account, "account") / "streams"
        names = self._files.names(folder)
        return [name for name in names if self._files.exists(folder / name / "config")]

    def create_stream(self, account: str, name: str) -> FolderDirectory:
        folder = self._folder(account, name)
        if self._files.exists(folder / "config"):
            raise StoreError(str(folder), "create", "a stream is there already")
        self._files.remove_folder(folder)
        self._files.make_folder(folder)
        return self._directory(account, name, folder)

    def open_stream(self, account: str, name: str) -> FolderDirectory:
        folder = self._folder(account, name)
        if not self._files.exists(folder / "config"):
            raise StoreError(str(folder), "open", "no stream is there")
        return self._directory(account, name, folder)

    def _folder(self, account: str, name: str) -> Path:
        return self._root / _checked(account, "account") / "streams" / _checked(name, "stream")

    def _directory(self, account: str, name: str, folder: Path) -> FolderDirectory:
        label = f"{account}/{name}"
        directory = FolderDirectory(self._files, folder, label, self._block_bytes)
        self._open[account, name] = directory
        return directory

    def close(self) -> None:
        with ExitStack() as closing:
            if self._lock is not None:
                closing.callback(self._lock.close)
                self._lock = None
            for directory in self._open.values():
                closing.callback(directory.close)
            self._open.clear()


class MemoryDirectory:
    """A stream that is gone with the process."""

    def __init__(self, streams: dict[str, MemoryDirectory], name: str) -> None:
        self._streams, self._name = streams, name
        self._config = b""
        self._sources = b""
        self._store: MemoryStore | None = None
        self._documents: dict[str, bytes] = {}

    @property
    def damages(self) -> tuple[Damage, ...]:
        return ()

    def save_config(self, document: bytes) -> None:
        self._config = document

    def load_config(self) -> bytes:
        return self._config

    def save_sources(self, document: bytes) -> None:
        self._sources = document

    def load_sources(self) -> bytes:
        return self._sources

    def open_messages(self, *, first_seq: int = 1, sync_always: bool = False) -> MessageStore:
        """``sync_always`` changes nothing: there is nothing to sync."""
        if self._store is None:
            self._store = MemoryStore(first_seq=first_seq)
        return self._store

    def consumers(self) -> list[str]:
        return sorted(self._documents)

    def save_consumer(self, name: str, document: bytes) -> None:
        self._documents[_checked(name, "consumer")] = document

    def load_consumer(self, name: str) -> tuple[bytes, list[bytes]]:
        return self._documents[name], []

    def journal_consumer(self, name: str, entry: bytes) -> None:
        """Nothing is kept: no process will read it."""

    def flush_consumers(self) -> None:
        """Nothing waits."""

    def delete_consumer(self, name: str) -> None:
        self._documents.pop(name, None)

    def close(self) -> None:
        """Nothing is open."""

    def destroy(self) -> None:
        self._streams.pop(self._name, None)
        self._store = None


class MemoryStorage:
    """All memory streams of one server."""

    def __init__(self) -> None:
        self._accounts: dict[str, dict[str, MemoryDirectory]] = {}

    def accounts(self) -> list[str]:
        return sorted(self._accounts)

    def streams(self, account: str) -> list[str]:
        return sorted(self._accounts.get(account, ()))

    def create_stream(self, account: str, name: str) -> MemoryDirectory:
        streams = self._accounts.setdefault(_checked(account, "account"), {})
        if name in streams:
            raise StoreError(name, "create", "a stream is there already")
        directory = streams[_checked(name, "stream")] = MemoryDirectory(streams, name)
        return directory

    def open_stream(self, account: str, name: str) -> MemoryDirectory:
        directory = self._accounts.get(account, {}).get(name)
        if directory is None:
            raise StoreError(name, "open", "no stream is there")
        return directory

    def close(self) -> None:
        """Forget every stream."""
        self._accounts.clear()
