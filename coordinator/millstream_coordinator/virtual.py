"""An asyncio loop whose clock stands still while anything is ready, and then jumps.

`run_virtual` is ``asyncio.run`` in virtual time: when every task waits and nothing is ready, time
goes on to the next timer at once. A program that sleeps for an hour is done in a millisecond, does
the same things in the same order each time, and never waits by the wall clock. What it gives up:

* **no sockets.** A peer outside knows nothing of virtual time; a `MemoryServer` lives in it.
* **no threads.** ``asyncio.to_thread`` and ``run_in_executor`` call the function at once, on the
  loop: in virtual time a call takes no time.
* **no waiting for nothing.** When nothing is ready and no timer is set, what the program waits for
  cannot come: `Stalled` is raised instead of hanging.

A group in virtual time never runs out of timers (it has heartbeats), so put ``asyncio.timeout``
around what may not happen; it runs out in no time.
"""

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Returned = TypeVar("Returned")
Given = TypeVarTuple("Given")

WALL_START_NS = 1_000_000_000_000_000_000
"""The wall clock at virtual time 0: 2001-09-09 01:46:40 UTC."""


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set: the program waits for what cannot come."""

    def __init__(self, now: float) -> None:
        super().__init__(f"at {now:.3f} s of virtual time everything waits and no timer is set")
        self.now = now


class _Selector(selectors.SelectSelector):
    """Never waits: what a real one would sleep through is added to the loop's clock."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise Stalled(self.loop.time())
        self.loop.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop of `run_virtual`; its time starts at 0."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        # The real one, a nanosecond, is lost in a float of some days: a timer that is due would
        # never be.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_now

    def wall_ns(self) -> int:
        """Return the wall clock that goes with `time`."""
        return WALL_START_NS + int(self._virtual_now * 1e9)

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self._virtual_now += seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Given], Returned], *args: *Given
    ) -> "asyncio.Future[Returned]":
        """Call ``func`` now, here; the future is done when this returns."""
        future: asyncio.Future[Returned] = self.create_future()
        try:
            future.set_result(contextvars.copy_context().run(func, *args))
        except Exception as error:  # noqa: BLE001 - the caller gets it where it awaits
            future.set_exception(error)
        return future


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end in virtual time and return its result.

    Raises what ``main`` raises, and `Stalled`. Not inside a running loop.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
