"""What a user keeps per partition, and the callbacks around it.

``Group(state=Factory)`` makes one object per ownership of a partition, ``Factory(partition,
epoch)``; of its methods, all optional and sync or async, are called

    open()    before the partition's first message is handled
    flush()   after its last one, before the partition is given away
    close()   at the end of the ownership, after a flush or, when the partition was lost, without

``on_assigned`` comes after ``open``, ``on_revoked`` and ``on_lost`` before ``close``. For one
partition everything happens one after the other, also across ownerships: what is lost is closed
before the same partition opens again here. Handler calls that still run when a partition is lost
see their state closed under them; whoever needs otherwise keeps that in the object.

What any of it raises ends the member, and ``Group.run`` raises it.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

PartitionCallback = Callable[[int, int], Awaitable[None] | None]
StateFactory = Callable[[int, int], Any]


class Keepers:
    """Everything kept for the partitions of one member."""

    def __init__(
        self,
        factory: StateFactory | None,
        on_assigned: PartitionCallback | None,
        on_revoked: PartitionCallback | None,
        on_lost: PartitionCallback | None,
        spawn: Callable[[Coroutine[None, None, None], str], None],
    ) -> None:
        self._factory = factory
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._on_lost = on_lost
        self._spawn = spawn
        self._states: dict[tuple[int, int], Any] = {}
        self._turns: dict[int, asyncio.Lock] = {}

    def state_of(self, partition: int, epoch: int) -> Any:
        """What is kept; None: nothing, or nothing any more."""
        return self._states.get((partition, epoch))

    def enter(self, partition: int, epoch: int, then: Callable[[], None]) -> None:
        """Open, and call ``on_assigned``; then go on."""
        self._spawn(self._in_turn(partition, self._enter(partition, epoch), then), "enter")

    def flush(self, partition: int, epoch: int, then: Callable[[], None]) -> None:
        """Flush; then go on."""
        state = (partition, epoch)
        self._spawn(self._in_turn(partition, self._ask(state, "flush"), then), "flush")

    def leave(self, partition: int, epoch: int, *, is_lost: bool) -> None:
        """Close, after the callback."""
        task = self._leave(partition, epoch, is_lost=is_lost)
        self._spawn(self._in_turn(partition, task, None), "leave")

    async def close(self) -> None:
        """Close what is left when the member ends."""
        for state in list(self._states):
            async with self._turn(state[0]):
                await self._ask(state, "close")
            self._states.pop(state, None)

    def _turn(self, partition: int) -> asyncio.Lock:
        return self._turns.setdefault(partition, asyncio.Lock())

    async def _in_turn(
        self, partition: int, task: Coroutine[None, None, None], then: Callable[[], None] | None
    ) -> None:
        try:
            async with self._turn(partition):
                await task
        finally:
            task.close()
        if then is not None:
            then()

    async def _enter(self, partition: int, epoch: int) -> None:
        if self._factory is not None:
            self._states[partition, epoch] = self._factory(partition, epoch)
            await self._ask((partition, epoch), "open")
        await _call(self._on_assigned, partition, epoch)

    async def _leave(self, partition: int, epoch: int, *, is_lost: bool) -> None:
        await _call(self._on_lost if is_lost else self._on_revoked, partition, epoch)
        await self._ask((partition, epoch), "close")
        self._states.pop((partition, epoch), None)

    async def _ask(self, state: tuple[int, int], method: str) -> None:
        await _call(getattr(self._states.get(state), method, None))


async def _call(function: Callable[..., Any] | None, *args: int) -> None:
    if function is None:
        return
    result = function(*args)
    if inspect.isawaitable(result):
        await result
