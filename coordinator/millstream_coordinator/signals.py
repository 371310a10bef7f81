"""SIGTERM and SIGINT for as many groups as a process runs: each of them is told.

A loop keeps one handler per signal, so groups that each set their own would take it from one
another: one would stop, and the process go on with the rest.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_stops: list[Callable[[], None]] = []


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have a signal call ``stop`` while the block runs; on a loop of the main thread."""
    loop = asyncio.get_running_loop()
    for one in _SIGNALS:
        loop.add_signal_handler(one, _stop_all)
    _stops.append(stop)
    try:
        yield
    finally:
        _stops.remove(stop)
        if not _stops:
            for one in _SIGNALS:
                loop.remove_signal_handler(one)


def _stop_all() -> None:
    for stop in _stops:
        stop()
