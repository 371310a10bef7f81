"""Members that run beside a test, and what they come to show."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from millstream_coordinator import Group


@asynccontextmanager
async def running(*groups: Group) -> AsyncIterator[None]:
    """Run members beside the block; they stop with it, and their errors come out of it."""
    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            tasks.create_task(group.run(handle_signals=False))
        try:
            yield
        finally:
            await asyncio.gather(*(group.stop() for group in groups))


async def until(is_so: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Look again and again until it is so: well before a lease or a drain's time runs out.

    What only those brought about would pass for working.
    """
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110 - what a group shows is polled, by users too
            await asyncio.sleep(0.01)
