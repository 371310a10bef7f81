"""Blocking database connections for a loop: some threads, each with a connection of its own.

A connection is opened, used and closed in one thread, so that modules whose connections may not
change threads (sqlite3's default) work as well. What fails is rolled back; a connection that cannot
even do that is dropped, and the next work on that thread opens another. The threads are daemons: a
driver that hangs does not keep the process from ending.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .dbapi import Connection

T = TypeVar("T")


class ConnectFailed(Exception):
    """No connection could be opened; the cause is the module's error."""


class ConnectionLost(Exception):
    """The connection broke during the work, whose outcome is unknown; the cause is the error."""


class Sessions:
    """At most ``size`` connections, used by any number of tasks of one loop."""

    def __init__(self, connect: Callable[[], Connection], size: int, name: str) -> None:
        self._connect = connect
        self._name = name
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Session] = []
        self._made = 0
        self.is_closed = False

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in a thread, with a connection whose transaction it begins and ends.

        Raises ConnectFailed, ConnectionLost, and what ``work`` raises after a rollback. A caller
        that is cancelled leaves work that has begun to end by itself.
        """
        if self.is_closed:
            raise ConnectFailed from RuntimeError("it is closed")
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        if self._idle:
            session = self._idle.pop()
        else:
            self._made += 1
            session = _Session(self._connect, f"{self._name}-{self._made}")
            session.start()
        job = _Job(work)

        def free(_: object) -> None:
            self._idle.append(session)
            self._free.release()
            if self.is_closed:
                session.end()

        def done(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(free, None)

        job.outcome.add_done_callback(done)
        session.jobs.put(job.run)
        return await asyncio.wrap_future(job.outcome)

    async def close(self) -> None:
        """Close the idle connections now, and those at work as soon as they are done."""
        self.is_closed = True
        idle = list(self._idle)
        for session in idle:
            session.end()
        await asyncio.gather(*(asyncio.to_thread(session.join) for session in idle))


def is_awaitable(result: object) -> bool:
    """Whether somebody handed over async code where plain code is called; it is closed then."""
    if inspect.iscoroutine(result):
        result.close()
        return True
    return inspect.isawaitable(result)


class _Job(Generic[T]):
    """Work on its way to a thread, and its outcome on the way back."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self._work = work
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run(self, session: "_Session") -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            result = session.do(self._work)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class _Session(threading.Thread):
    """One thread and its connection."""

    def __init__(self, connect: Callable[[], Connection], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[_Session], None] | None] = queue.SimpleQueue()
        self._connect = connect
        self._connection: Connection | None = None

    def end(self) -> None:
        """Close the connection after what is in hand, and end the thread."""
        self.jobs.put(None)

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job(self)
            del job
        self._drop()

    def do(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._opened()
        try:
            return work(self._connection)
        except BaseException as error:
            try:
                self._connection.rollback()
            except Exception:  # noqa: BLE001 - a connection that can't roll back is of no use
                self._drop()
                raise ConnectionLost from error
            raise

    def _opened(self) -> Connection:
        try:
            connection = self._connect()
        except Exception as error:
            raise ConnectFailed from error
        if is_awaitable(connection):
            raise ConnectFailed from TypeError("connect gave an awaitable, not a plain connection")
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()
