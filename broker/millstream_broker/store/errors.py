"""What can go wrong with a store.

```
StoreError               a file could not be used: which, what was tried, why
├── StoreLocked          another server holds the folder
├── StoreBroken          a failed write could not be taken back; nothing more may be written
└── DamagedRecord        bytes read back are not the bytes that were written
```
"""


class StoreError(Exception):
    """A file or folder of the store could not be used.

    ``path`` is the file, ``action`` what was tried ("write", "open", …), ``reason`` the operating
    system's or our own words.
    """

    def __init__(self, path: str, action: str, reason: str) -> None:
        super().__init__(f"cannot {action} {path}: {reason}")
        self.path, self.action, self.reason = path, action, reason


class StoreLocked(StoreError):
    """Another process uses the folder; two servers never share one."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "lock", "another server is using this folder")


class StoreBroken(StoreError):
    """A write failed half way and could not be taken back: reading goes on, writing does not."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, "write", f"an earlier write could not be taken back ({reason})")


class DamagedRecord(StoreError):
    """The record of ``seq`` (0 when unknown) at ``position`` does not carry its checksum."""

    def __init__(self, path: str, position: int, seq: int) -> None:
        super().__init__(path, "read", f"record of sequence {seq} at byte {position} is damaged")
        self.position, self.seq = position, seq
