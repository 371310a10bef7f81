"""One daemon thread for a client that blocks, called from a loop in order.

Not a `ThreadPoolExecutor`: the interpreter waits for an executor's threads when it ends, and a
call into a client whose servers are gone takes seconds to give up. A process that is told to end,
or whose parent is gone, must not wait for that.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Call = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class WorkerThread:
    """Runs calls one after the other; ends with `stop` or, whatever it does, with the process."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result, or its exception. Cancelling leaves the call to finish unheard."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((call, future, loop))
        return await future

    def stop(self) -> None:
        """End after the calls that were made before."""
        self._calls.put(None)

    async def end(self, last: Callable[[], object], wait_s: float) -> None:
        """Make a last call and end; a call that takes longer than ``wait_s`` is left to itself."""
        try:
            async with asyncio.timeout(wait_s):
                await self.run(last)
        except TimeoutError:
            logger.debug("the Kafka client is still waiting for somebody; left to itself")
        self.stop()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future, loop = item
            try:
                result, error = call(), None
            except Exception as failure:  # noqa: BLE001 - it is handed to the caller
                result, error = None, failure
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more


def _settle(future: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
