"""A file system that fails, or is cut off, at the n-th change."""

import errno
import os
from pathlib import Path

from millstream_broker.store.errors import StoreError
from millstream_broker.store.fs import File, LocalFiles


class Crashed(BaseException):
    """The process is gone: no handler of the store may run on."""


class FaultyFile:
    def __init__(self, inner: File, faults: "FaultyFiles") -> None:
        self._inner, self._faults = inner, faults

    @property
    def path(self) -> str:
        return self._inner.path

    def size(self) -> int:
        return self._inner.size()

    def append(self, data: bytes | bytearray, position: int) -> None:
        part = self._faults.count("write", self.path)
        if part is not None:
            self._inner.append(bytes(data[: int(len(data) * part)]), position)
            self._faults.strike("write", self.path)
        self._inner.append(data, position)
        self._faults.writes.append((Path(self.path).name, len(data)))

    def overwrite(self, data: bytes, position: int) -> None:
        self._faults.change("overwrite", self.path)
        self._inner.overwrite(data, position)

    def read(self, size: int, position: int) -> bytes:
        return self._inner.read(size, position)

    def truncate(self, size: int) -> None:
        self._faults.change("truncate", self.path)
        self._inner.truncate(size)

    def sync(self) -> None:
        self._faults.change("sync", self.path)
        self._faults.syncs.append(Path(self.path).name)

    def close(self) -> None:
        self._faults.opened.discard(self._inner)
        self._inner.close()


class FaultyFiles(LocalFiles):
    """Real files; ``fail_at`` or ``crash_at`` counts changes down to the one that goes wrong.

    A failing or crashing write leaves ``part`` (0 to 1) of its bytes in the file. With ``last`` the
    disk recovers after that many failures. Syncs are recorded, not done.
    """

    def __init__(self) -> None:
        self.opened: set[File] = set()
        self.writes: list[tuple[str, int]] = []
        self.syncs: list[str] = []
        self.reset()

    def reset(self) -> None:
        self._countdown = 0
        self._crash = False
        self._failures = 0
        self._part = 0.0
        self._code = errno.ENOSPC

    def fail_at(
        self, nth: int, *, failures: int = 1, part: float = 0.0, code: int = errno.ENOSPC
    ) -> None:
        self.reset()
        self._countdown, self._failures, self._part, self._code = nth, failures, part, code

    def crash_at(self, nth: int, *, part: float = 0.0) -> None:
        self.reset()
        self._countdown, self._crash, self._part = nth, True, part

    def count(self, action: str, path: str) -> float | None:
        """How much of a write is done when this change is the one that goes wrong."""
        if self._countdown == 0:
            return None
        self._countdown -= 1
        if self._countdown > 0:
            return None
        return self._part

    def strike(self, action: str, path: str) -> None:
        if self._crash:
            raise Crashed
        self._failures -= 1
        self._countdown = 1 if self._failures > 0 else 0
        error = OSError(self._code, os.strerror(self._code))
        raise StoreError(path, action, error.strerror or "") from error

    def change(self, action: str, path: str) -> None:
        if self.count(action, path) is not None:
            self.strike(action, path)

    def let_go(self) -> None:
        """What the operating system does for a process that is gone."""
        for file in self.opened:
            file.close()
        self.opened.clear()
        self.reset()

    def open(self, path: Path, *, create: bool = False) -> File:
        if create:
            self.change("create", str(path))
        file = super().open(path, create=create)
        self.opened.add(file)
        return FaultyFile(file, self)

    def lock(self, path: Path) -> File:
        file = super().lock(path)
        self.opened.add(file)
        return file

    def replace(self, source: Path, target: Path) -> None:
        self.change("replace", str(target))
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self.change("delete", str(path))
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self.change("sync", str(path))
        self.syncs.append(path.name)
