"""The buckets of groups in memory: revisions, compare-and-set, keys that run out, watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .. import naming
from ..ports import (
    BucketGone,
    Conflict,
    DeleteKey,
    Failed,
    Failure,
    KeyChanged,
    KeyNames,
    KeyRead,
    ListKeys,
    ReadKey,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)
from .client import MemoryClient, Observer

WATCH_SILENCE_S = 3.0
"""A watch on a bucket that is gone falls silent; so long it takes to look."""


@dataclass(slots=True)
class MemoryBucket:
    """A group's bucket; another one by the same name is another."""

    begins_at: int
    revision: int
    values: dict[str, tuple[bytes | None, int, float | None]] = field(default_factory=dict)
    """Key → value (None: deleted), revision, when it runs out."""

    def value(self, key: str) -> bytes | None:
        """Return a key's value; None: it is not there."""
        return self.values.get(key, (None, 0, None))[0]

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that are there, in the order of their first writes."""
        return [
            key
            for key, (value, _, _) in self.values.items()
            if value is not None and key.startswith(prefix)
        ]


class MemoryBuckets:
    """The buckets by their groups, and who watches them."""

    def __init__(
        self,
        clients: Mapping[str, MemoryClient],
        observer: Observer,
        now: Callable[[], float],
        *,
        has_key_ttl: bool,
    ) -> None:
        """``clients``: those that are attached, as they come and go."""
        self._clients = clients
        self._observer = observer
        self._now = now
        self._has_key_ttl = has_key_ttl
        self._buckets: dict[str, MemoryBucket] = {}

    def get(self, group: str) -> MemoryBucket | None:
        """Return the group's bucket; None: it has none."""
        return self._buckets.get(group)

    def make(self, group: str) -> MemoryBucket:
        """Return the group's bucket, made if there is none."""
        if group not in self._buckets:
            # Revisions grow from one bucket to the next, as the adapter has it: an old one
            # must never hit by chance.
            last = int(self._now() * 1e6)
            self._buckets[group] = MemoryBucket(begins_at=last + 1, revision=last)
        return self._buckets[group]

    def delete(self, group: str) -> None:
        """Lose the group's bucket; a watch on it notices when it was silent for a while."""
        gone = self._buckets.pop(group, None)
        for client in self._clients.values():
            if gone is not None and client.watched is gone:
                client.silent_at = self._now() + WATCH_SILENCE_S

    def tick(self, now: float) -> None:
        """Delete what has run out."""
        for bucket in self._buckets.values():
            for key, (value, _, ends_at) in list(bucket.values.items()):
                if value is not None and ends_at is not None and now >= ends_at:
                    self.put(bucket, key, None)

    def execute(
        self, client: MemoryClient, command: ReadKey | WriteKey | DeleteKey | ListKeys | Watch
    ) -> None:
        """Carry out a command on the bucket of the client's group."""
        bucket = self._buckets.get(client.settings.group)
        if isinstance(command, Watch):
            self._watch(client, bucket)
            return
        if bucket is None:
            client.send(Failed(id=command.id, reason=Failure.BUCKET_GONE))
            return
        match command:
            case ReadKey():
                value, revision, _ = bucket.values.get(command.key, (None, 0, None))
                self._observer.read(client, command.key, value)
                client.send(KeyRead(id=command.id, value=value, revision=revision))
            case ListKeys():
                client.send(KeyNames(id=command.id, keys=tuple(bucket.keys(command.prefix))))
            case WriteKey() | DeleteKey():
                self._write(client, bucket, command)

    def _watch(self, client: MemoryClient, bucket: MemoryBucket | None) -> None:
        client.watched = None
        client.num_watches += 1
        client.silent_at = float("inf")
        if bucket is None or (client.bucket is not None and client.bucket is not bucket):
            client.send(BucketGone())
            return
        client.watched = bucket
        for key, (value, revision, _) in list(bucket.values.items()):
            if _is_watched(key):
                client.send(KeyChanged(key=key, value=value, revision=revision))
        client.send(WatchCaughtUp())

    def _write(
        self, client: MemoryClient, bucket: MemoryBucket, command: WriteKey | DeleteKey
    ) -> None:
        _, revision, _ = bucket.values.get(command.key, (None, 0, None))
        if revision != command.revision:
            client.send(Conflict(id=command.id))
            return
        value = command.value if isinstance(command, WriteKey) else None
        ttl_s = command.ttl_s if isinstance(command, WriteKey) else None
        self._observer.wrote(client, command.key, value)
        written = self.put(bucket, command.key, value, ttl_s)
        client.send(Written(id=command.id, revision=written))

    def put(
        self, bucket: MemoryBucket, key: str, value: bytes | None, ttl_s: float | None = None
    ) -> int:
        """Write a key, or delete it with None; returns its revision."""
        bucket.revision += 1
        ends_at = self._now() + ttl_s if ttl_s is not None and self._has_key_ttl else None
        bucket.values[key] = (value, bucket.revision, ends_at)
        if _is_watched(key):
            changed = KeyChanged(key=key, value=value, revision=bucket.revision)
            for client in list(self._clients.values()):
                if client.watched is bucket:
                    client.send(changed)
        return bucket.revision


def _is_watched(key: str) -> bool:
    return not key.startswith((naming.DONE_PREFIX, naming.EVENT_PREFIX))
