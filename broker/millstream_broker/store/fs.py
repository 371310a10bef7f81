"""The only module of the store that touches the operating system.

``FileSystem`` and ``File`` are the whole of what a store needs; tests put in one that fails at the
n-th call. Every ``OSError`` becomes a ``StoreError`` here, naming the file and what was tried.
A written byte is in the operating system when ``append`` or ``overwrite`` returns; it survives a
power loss after ``sync``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from .errors import StoreError, StoreLocked

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class File(Protocol):
    """One open file."""

    @property
    def path(self) -> str: ...

    def size(self) -> int: ...

    def append(self, data: bytes | bytearray, position: int) -> None:
        """Write all of ``data`` at ``position``, the end of the file; one write where it fits."""

    def overwrite(self, data: bytes, position: int) -> None:
        """Write over bytes that are there already."""

    def read(self, size: int, position: int) -> bytes:
        """At most ``size`` bytes; fewer at the end of the file."""

    def truncate(self, size: int) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class FileSystem(Protocol):
    """Files and folders by path. Everything raises StoreError."""

    def open(self, path: Path, *, create: bool = False) -> File:
        """Open for reading and writing. ``create`` starts an empty file, replacing any."""

    def replace(self, source: Path, target: Path) -> None:
        """Rename over ``target``, atomically."""

    def unlink(self, path: Path) -> None:
        """Delete a file; nothing happens when it is not there."""

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it; nothing happens when it is there."""

    def remove_folder(self, path: Path) -> None:
        """Delete a folder and everything in it; nothing happens when it is not there."""

    def names(self, path: Path) -> list[str]:
        """What is in a folder, sorted; empty when there is no such folder."""

    def exists(self, path: Path) -> bool: ...

    def sync_folder(self, path: Path) -> None:
        """Make renames, new and deleted files in it survive a power loss."""

    def lock(self, path: Path) -> File:
        """Hold a lock file until it is closed or the process ends. Raises StoreLocked."""


@contextmanager
def _named(action: str, path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(str(path), action, error.strerror or str(error)) from error


class LocalFile:
    """A file of this machine."""

    __slots__ = ("_fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path

    def size(self) -> int:
        with _named("measure", self.path):
            return os.fstat(self._fd).st_size

    def append(self, data: bytes | bytearray, position: int) -> None:
        self._write(data, position, "write")

    def overwrite(self, data: bytes, position: int) -> None:
        self._write(data, position, "overwrite")

    def _write(self, data: bytes | bytearray, position: int, action: str) -> None:
        # Not `with _named(…)`: this runs once per flush, and the context would cost as much as
        # everything around the system call.
        try:
            written = _write_at(self._fd, data, position)
            while written < len(data):
                with memoryview(data) as view:
                    written += _write_at(self._fd, view[written:], position + written)
        except OSError as error:
            raise StoreError(self.path, action, error.strerror or str(error)) from error

    def read(self, size: int, position: int) -> bytes:
        try:
            return _read_at(self._fd, size, position)
        except OSError as error:
            raise StoreError(self.path, "read", error.strerror or str(error)) from error

    def truncate(self, size: int) -> None:
        with _named("truncate", self.path):
            os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with _named("sync", self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with _named("close", self.path):
                os.close(fd)


if sys.platform == "win32":

    def _write_at(fd: int, data: bytes | bytearray | memoryview, position: int) -> int:
        os.lseek(fd, position, os.SEEK_SET)
        return os.write(fd, data)

    def _read_at(fd: int, size: int, position: int) -> bytes:
        os.lseek(fd, position, os.SEEK_SET)
        return os.read(fd, size)

    def _take_lock(fd: int) -> None:
        import msvcrt  # noqa: PLC0415 - exists on this platform only

        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _sync_folder(path: Path) -> None:
        """Folders cannot be synced on this platform."""

else:
    import fcntl

    _write_at = os.pwrite
    _read_at = os.pread

    def _take_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sync_folder(path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class LocalFiles:
    """The files of this machine."""

    def open(self, path: Path, *, create: bool = False) -> File:
        flags = _FLAGS | os.O_CREAT | os.O_TRUNC if create else _FLAGS
        with _named("create" if create else "open", path):
            return LocalFile(os.open(path, flags, 0o640), str(path))

    def replace(self, source: Path, target: Path) -> None:
        with _named("replace", target):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        with _named("delete", path):
            path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        with _named("create", path):
            path.mkdir(mode=0o750, parents=True, exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        with _named("delete", path):
            if path.exists():
                shutil.rmtree(path)

    def names(self, path: Path) -> list[str]:
        with _named("list", path):
            return sorted(os.listdir(path)) if path.exists() else []  # noqa: PTH208 - names only

    def exists(self, path: Path) -> bool:
        with _named("look for", path):
            return path.exists()

    def sync_folder(self, path: Path) -> None:
        with _named("sync", path):
            _sync_folder(path)

    def lock(self, path: Path) -> File:
        with _named("open", path):
            file = LocalFile(os.open(path, _FLAGS | os.O_CREAT, 0o640), str(path))
        try:
            _take_lock(file._fd)
        except OSError as error:
            file.close()
            raise StoreLocked(str(path)) from error
        return file
