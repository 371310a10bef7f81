"""Membership without a stream: join a group, be told which of N slots are mine under which epoch.

    members = Membership("nats://127.0.0.1:4222", name="crawlers", slots=64)
    async with members:
        async for change in members.changes():
            match change.kind:
                case SlotChangeKind.GAINED:
                    begin(change.slot, change.epoch)
                case SlotChangeKind.RELEASED | SlotChangeKind.LOST:
                    end(change.slot)

It is a `Group` without a data plane: the same members, leader, leases, detection, assignment with
the fewest moves, graceful and forced change of owner, and the same bucket, so ``describe``,
``drain``, ``move``, ``resize`` and ``events`` work on it. A slot is what a partition is there.

**What a slot's epoch is good for.** It grows with every change of owner. Whoever writes somewhere
for a slot carries the epoch along and has the lower one refused there (compare-and-set, a fencing
token); then nothing a paused process does late can do harm. Where that is not possible, ask `holds`
right before each effect: it is False as soon as this process cannot be sure any more, and others
wait for that before they take over. Between the question and the effect a process may still be
paused; only a fence at the other end covers that.

**Handing over.** A slot is given away when ``flush`` has returned (or after ``drain_timeout``), so
what it saves is there for the next owner. From its call on nothing more may be done for the slot,
and `holds` says so; should the move be called off meanwhile, it is held again. ``on_released`` and
``on_lost`` come after the fact: somebody else has the slot.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from types import TracebackType

from nats.aio.client import Client

from .events import GroupEvent, PartitionAssigned, PartitionLost, PartitionRevoked
from .group import Group
from .keepers import PartitionCallback
from .ports import PortMaker
from .readers import Readers


class SlotChangeKind(StrEnum):
    """What became of a slot."""

    GAINED = "gained"
    RELEASED = "released"
    """Given back, after ``flush``."""
    LOST = "lost"
    """Taken away: this process was thought dead, or took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotChange:
    """A slot that is this member's now, or is not any more."""

    kind: SlotChangeKind
    slot: int
    epoch: int
    """Gained: the new one. Else the one that is over."""
    cause: str = ""
    """Why it was gained (`events.Cause`)."""
    stopped_s: float | None = None
    """Gained: how long nobody had it; None: not known."""


class _Slot:
    """What is kept of a slot, as `Group` asks it: only that it is to be flushed."""

    def __init__(self, flush: PartitionCallback, slot: int, epoch: int) -> None:
        self._flush = partial(flush, slot, epoch)

    def flush(self) -> Awaitable[None] | None:
        return self._flush()


class Membership:
    """One member of a group that divides ``slots`` among its members."""

    def __init__(
        self,
        connection: str | Client | PortMaker,
        *,
        name: str,
        slots: int,
        member: str | None = None,
        capacity: int = 1,
        labels: Mapping[str, str] | None = None,
        prefer_label: str | None = None,
        can_lead: bool = True,
        heartbeat_interval: timedelta = timedelta(seconds=0.25),
        heartbeat_timeout: timedelta = timedelta(seconds=1),
        static_grace: timedelta = timedelta(0),
        drain_timeout: timedelta = timedelta(seconds=30),
        flush: PartitionCallback | None = None,
        on_gained: PartitionCallback | None = None,
        on_released: PartitionCallback | None = None,
        on_lost: PartitionCallback | None = None,
        replicas: int = 1,
        domain: str | None = None,
        api_prefix: str | None = None,
    ) -> None:
        """Everything as for `Group`; callbacks are ``(slot, epoch) -> None``, async or not.

        ``replicas``: on how many nodes of a cluster the group's bucket is to be, where this member
        makes it. With one nobody is taken over from while that node is gone.

        Raises BadName, or ValueError for a number out of range.
        """
        self._held: dict[int, SlotChange] = {}
        self._readers = Readers[SlotChange]()
        self._group = Group(
            connection,
            stream=None,
            name=name,
            partitions=slots,
            member=member,
            capacity=capacity,
            labels=labels,
            prefer_label=prefer_label,
            can_lead=can_lead,
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=heartbeat_timeout,
            static_grace=static_grace,
            drain_timeout=drain_timeout,
            state=None if flush is None else partial(_Slot, flush),
            on_assigned=on_gained,
            on_revoked=on_released,
            on_lost=on_lost,
            on_event=self._on_event,
            replicas=replicas,
            domain=domain,
            api_prefix=api_prefix,
        )
        self._running: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The group's name."""
        return self._group.name

    @property
    def member(self) -> str:
        """Its own name in the group."""
        return self._group.member

    @property
    def slots(self) -> dict[int, int]:
        """The slots that are this member's now, with their epochs."""
        return self._group.partitions

    @property
    def is_leader(self) -> bool:
        """Whether this member leads the group, as far as it knows."""
        return self._group.is_leader

    def holds(self, slot: int, epoch: int) -> bool:
        """Whether the slot is this member's under this epoch, and that is sure at this moment."""
        worker = self._group._worker
        return worker is not None and worker.machine.serves(slot, epoch)

    def changes(self) -> AsyncIterator[SlotChange]:
        """Yield the slots held now as gained, then each change, until the member has ended.

        A reader that is more than ``readers.BACKLOG_MAX`` changes behind misses the oldest.
        """
        return self._readers.read(self._held.values())

    def _on_event(self, event: GroupEvent) -> None:
        change = _change(event)
        if change is None:
            return
        self._held.pop(change.slot, None)
        if change.kind is SlotChangeKind.GAINED:
            self._held[change.slot] = change
        self._readers.tell(change)

    async def run(self, *, handle_signals: bool = True) -> None:
        """Be a member until `stop`, SIGTERM or SIGINT; raises what `Group.run` raises."""
        try:
            await self._group.run(handle_signals=handle_signals)
        finally:
            self._readers.end()

    async def stop(self) -> None:
        """Give the slots away and leave; returns when `run` is at its end."""
        await self._group.stop()

    async def __aenter__(self) -> "Membership":
        """Begin to be a member, beside the block."""
        self._running = asyncio.create_task(
            self.run(handle_signals=False), name=f"membership {self.name}"
        )
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; raises what ended the member, if that was not this."""
        assert self._running is not None
        await self.stop()
        await self._running


def _change(event: GroupEvent) -> SlotChange | None:
    match event:
        case PartitionAssigned():
            return SlotChange(
                kind=SlotChangeKind.GAINED,
                slot=event.partition,
                epoch=event.epoch,
                cause=event.cause,
                stopped_s=event.stopped_s,
            )
        case PartitionRevoked():
            kind = SlotChangeKind.RELEASED
        case PartitionLost():
            kind = SlotChangeKind.LOST
        case _:
            return None
    return SlotChange(kind=kind, slot=event.partition, epoch=event.epoch)
