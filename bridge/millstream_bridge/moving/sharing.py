"""Several processes at one route: who moves which partitions, by the coordinator's membership.

Every process of a ``group`` runs the same routes. The group has slots, and the coordinator gives
each slot to one live process, under an epoch that grows with every change of owner. A slot stands
for partitions:

* a dense or a shared route is divided partition by partition, each to its slot;
* a route under the chain has one writer, so the whole of it is one slot's. The other processes
  stand by.

**What keeps a late process harmless.** A session is bound to the epochs it was begun under: they
are asked for right before records are sent, and one that is over, or not sure any more, ends the
session, also if the slot came back under a higher one. Between the question and the write a process
may still be paused. Then the stream refuses it, because its chain or its checkpoint has moved on
(see `window` and `checkpoint`), or takes what its next owner would have sent, and refuses the next
owner's, who reads the position anew. So a takeover may be quick and wrong about who is alive, and
still nothing is stored twice or out of order. The stream itself knows no epochs: a group whose
bucket is lost begins them anew, and would be locked out by its own past.

**Handing over.** When slots come or go, the session in which their partitions were is drained and
ended, and the next one begins with those there are then. A slot is given away only after that, so
its next owner finds all that was sent.

**How many slots** is settled by the first process of a group: one for each thing that can be
divided then. Those that come later take the number from the group. A partition's slot is computed
from the route's name and its own number, so partitions and topics that come later have slots too.
"""

import asyncio
import logging
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from nats.aio.client import Client

from millstream_coordinator import (
    ConfigMismatch,
    GroupError,
    GroupMissing,
    Membership,
    ServerUnreachable,
    Target,
)

from ..errors import BridgeError, ConfigurationError, Unreachable
from ..jetstream.client import connect
from ..jetstream.target import NatsTarget
from ..model import Route

logger = logging.getLogger(__name__)

_LOOK_S: Final = 0.25
"""A move that is called off gives a slot back without an event, so it is looked for."""
_JOIN_TRIES: Final = 5


def slots_of(routes: Sequence[Route], partitions: Mapping[str, int]) -> int:
    """How many parts the routes can be divided into; ``partitions`` are those of each topic."""
    return max(1, sum([partitions.get(it.topic, 1) if _is_divided(it) else 1 for it in routes]))


def _is_divided(route: Route) -> bool:
    return route.shared or route.mode == "dense"


class Members:
    """One process among those that share routes: a member from `join` to `leave`.

    ``slots`` and ``replicas`` are what the group and its bucket get if they are not there yet;
    ``member`` is this process's name in it, a random one by default.
    """

    def __init__(
        self,
        target: str | NatsTarget,
        *,
        group: str,
        slots: int,
        replicas: int = 1,
        member: str | None = None,
    ) -> None:
        self.group = group
        self._target = NatsTarget.of(target)
        self._wanted_slots, self._replicas = slots, replicas
        self._member = member
        self._connection: Client | None = None
        self._membership: Membership | None = None
        self._running: asyncio.Task[None] | None = None
        self._slots = 0
        self._moved = asyncio.Event()
        self._shares: dict[str, Share] = {}

    async def join(self) -> None:
        """Become a member. Unreachable; ConfigurationError: the group is another kind of group."""
        try:
            name = f"millstream bridge, group {self.group}"
            self._connection = await connect(self._target, name=name)
            await self._enter()
        except GroupError as error:
            await self.leave()
            raise self._told(error) from error
        except BaseException:
            await self.leave()
            raise

    async def _enter(self) -> None:
        for left in reversed(range(_JOIN_TRIES)):
            try:
                self._slots = await self._settled_slots()
                await self._begin()
            except (ConfigMismatch, ServerUnreachable):
                # Another process makes the group in this moment: it may be of another size, and a
                # cluster answers nobody who asks for what is being made.
                if not left:
                    raise
            else:
                return

    async def leave(self) -> None:
        """Give the slots away and end; after every share's session has ended.

        Cut short by a cancellation, it goes on when it is called again.
        """
        if self._membership is not None and self._running is not None:
            await self._membership.stop()
            await asyncio.wait({self._running})
            if not self._running.cancelled():
                self._running.exception()  # whoever waited for a slot was told
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> "Members":
        await self.join()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave()

    @property
    def name(self) -> str:
        """The process's name in the group."""
        return self._membership.member if self._membership is not None else ""

    def share(self, route: Route) -> "Share":
        """The process's part of a route; the same one each time."""
        return self._shares.setdefault(route.name, Share(self, route))

    def slot(self, route: Route, partition: int) -> int:
        """The slot that stands for a partition of a route."""
        first = zlib.crc32(route.name.encode())
        return (first + (partition if _is_divided(route) else 0)) % self._slots

    @property
    def held(self) -> dict[int, int]:
        """The slots that are surely this process's at this moment, with their epochs."""
        membership = self._membership
        if membership is None:
            return {}
        return {it: epoch for it, epoch in membership.slots.items() if membership.holds(it, epoch)}

    def check(self) -> None:
        """Raise what ended the membership, if anything did."""
        running = self._running
        if running is None or not running.done():
            return
        error = None if running.cancelled() else running.exception()
        if isinstance(error, GroupError):
            raise self._told(error)
        raise ConfigurationError(f"group {self.group}: this process is no member any more")

    async def moved(self) -> None:
        """Return when slots may have come or gone, soon at the latest."""
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._moved.wait()

    def wake(self) -> None:
        """Something that others wait for has happened."""
        self._moved.set()

    async def _settled_slots(self) -> int:
        """The slots the group has, or is to have."""
        assert self._connection is not None
        prefix = self._target.jetstream_prefix
        try:
            config = await Target(self._connection, self.group, prefix=prefix).config()
        except GroupMissing:
            return self._wanted_slots
        if config.stream is not None:
            raise ConfigurationError(
                f"group {self.group} is a consumer group of stream {config.stream};"
                " processes of a bridge need one of their own"
            )
        return config.partitions

    async def _begin(self) -> None:
        """Start the membership; returns when it works, or raises why it cannot."""
        assert self._connection is not None
        membership = self._membership = Membership(
            self._connection,
            name=self.group,
            slots=self._slots,
            member=self._member,
            flush=self._flush,
            on_gained=self._on_change,
            on_released=self._on_change,
            on_lost=self._on_change,
            replicas=self._replicas,
            domain=self._target.domain or None,
            api_prefix=self._target.api_prefix or None,
        )
        self._running = asyncio.create_task(
            membership.run(handle_signals=False), name=f"group {self.group}"
        )
        self._running.add_done_callback(lambda _: self.wake())
        # It answers within a moment what it will not do at all.
        await asyncio.wait({self._running}, timeout=_LOOK_S)
        if self._running.done():
            await self._running

    def _on_change(self, slot: int, epoch: int) -> None:
        logger.info(
            "group %s: slot %d epoch %d: %s",
            self.group,
            slot,
            epoch,
            "ours" if self.held.get(slot) == epoch else "not ours any more",
            extra={"event": "slot_moved", "slot": slot, "epoch": epoch},
        )
        self.wake()

    async def _flush(self, slot: int, epoch: int) -> None:
        """Wait until no session has the slot: what it sent is stored then."""
        self.wake()
        while any(share.taken.get(slot) == epoch for share in self._shares.values()):
            await self.moved()

    def _told(self, error: GroupError) -> BridgeError:
        if isinstance(error, ServerUnreachable):
            return Unreachable("NATS", str(self._target), str(error))
        return ConfigurationError(str(error))


class Share:
    """One process's part of one route. A session lies between `take` and `settle`."""

    def __init__(self, members: Members, route: Route) -> None:
        self._members = members
        self._route = route
        self._partitions: Sequence[int] = ()
        self.taken: Mapping[int, int] = {}
        """The session's slots, with the epochs they were taken under."""

    async def take(self, partitions: Sequence[int]) -> dict[int, int]:
        """Those of ``partitions`` that are this process's, with their epochs; waits for one.

        Raises what ended the membership.
        """
        self._partitions = partitions
        while True:
            self._members.check()
            held = self._held()
            if held:
                break
            await self._members.moved()
        self.taken = held
        slots = {p: self._members.slot(self._route, p) for p in partitions}
        return {p: held[slot] for p, slot in slots.items() if slot in held}

    @property
    def has_changed(self) -> bool:
        """Whether the session no longer has just what is this process's.

        To be asked right before each effect.
        """
        self._members.check()
        return self._held() != self.taken

    def settle(self) -> None:
        """The session is over: nothing more is sent for what it had."""
        self.taken = {}
        self._members.wake()

    def _held(self) -> dict[int, int]:
        own = {self._members.slot(self._route, p) for p in self._partitions}
        return {slot: epoch for slot, epoch in self._members.held.items() if slot in own}
