"""What every member sees of the group, as events: found by comparing with what was seen before.

Each member tells these for itself, to whoever asks in its process; the leader keeps them for the
group. What was there before this member looked is no news.
"""

from ..events import (
    Cause,
    GroupEvent,
    LeaderChanged,
    PartitionMoved,
    Paused,
    RecordTooNew,
    Resized,
    Resizing,
    Resumed,
)
from ..model import ConfigRecord, ControlRecord
from .context import Context


class Witness:
    """One member's memory of what it has seen."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._leader: str | None = None
        self._owners: dict[int, tuple[int, str | None]] = {}
        self._config: ConfigRecord | None = None
        self._control = ControlRecord()
        self._too_new: set[tuple[str, int]] = set()

    def look(self) -> None:
        """Take whom the partitions belong to for seen."""
        for partition, record in self._context.book.partitions.items():
            self._owners.setdefault(partition, (record.epoch, record.owner))

    def see_key(self, key: str) -> GroupEvent | None:
        """A key changed: say so, once, if it is too new to be read."""
        version = self._context.book.too_new.get(key)
        if version is None or (key, version) in self._too_new:
            return None
        self._too_new.add((key, version))
        return RecordTooNew(key=key, record_version=version)

    def see_leader(self) -> GroupEvent | None:
        """Somebody else leads, or nobody."""
        leader = self._context.book.leader
        name = leader.member if leader is not None else None
        if name == self._leader:
            return None
        self._leader = name
        return LeaderChanged(leader=name)

    def see_config(self) -> list[GroupEvent]:
        """The number of partitions changed, or is to change."""
        known, config = self._config, self._context.config
        self._config = config
        events: list[GroupEvent] = []
        if known is not None and known.active != config.active:
            events.append(Resized(previous=known.active, partitions=config.active))
        to = self._context.resize_to
        if to is not None and (known is None or known.resize_to != config.resize_to):
            events.append(Resizing(partitions=config.active, resize_to=to))
        return events

    def see_control(self) -> list[GroupEvent]:
        """Operators asked for something else."""
        known, control = self._control, self._context.book.control
        self._control = control
        events: list[GroupEvent] = []
        if known.is_paused != control.is_paused:
            events.append(Paused() if control.is_paused else Resumed())
        paused = tuple(n for n in control.paused if n not in known.paused)
        resumed = tuple(n for n in known.paused if n not in control.paused)
        if paused:
            events.append(Paused(partitions=paused))
        if resumed:
            events.append(Resumed(partitions=resumed))
        return events

    def see_partition(self, partition: int) -> tuple[PartitionMoved | None, bool]:
        """A partition's record changed; also whether that is worth keeping.

        That a new group gives its partitions out is not: they are as many as there are.
        """
        record = self._context.book.partitions.get(partition)
        if record is None or not self._context.is_current(record):
            return None, False
        known = self._owners.get(partition)
        self._owners[partition] = (record.epoch, record.owner)
        if known == (record.epoch, record.owner):
            return None, False
        event = PartitionMoved(
            partition=partition,
            epoch=record.epoch,
            owner=record.owner,
            previous=known[1] if known is not None else None,
            cause=record.cause,
        )
        return event, known is not None or record.cause != Cause.JOINED
