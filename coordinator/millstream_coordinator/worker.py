"""One member at work: the edge around its group machine, with clock, tasks and callbacks.

The machine says what to do, the port does what concerns the server, ``calls.py`` calls handlers,
``keepers.py`` what is kept per partition; this module joins them: it keeps the time and tells what
happens. Everything happens on the loop `Worker.run` is called on.

Handler calls are never cancelled when a partition is lost: an effect that is under way cannot be
taken back, and a fenced sink refuses it if it comes too late. A stop waits for the calls under way,
up to ``drain_timeout``; then they are cancelled, and their messages are not acked: whoever owns the
partition next handles them.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

from .calls import Calls, Handler, is_async
from .errors import GroupError
from .events import (
    GroupEvent,
    HandlerOverdue,
    PartitionAssigned,
    PartitionLost,
    PartitionRevoked,
    describe,
    event_name,
)
from .keepers import Keepers, PartitionCallback, StateFactory
from .machine.group import GroupMachine
from .model import MemberSettings, Message
from .ports import (
    Enter,
    Entered,
    Flush,
    Flushed,
    Handle,
    Handled,
    Happening,
    Port,
    Reply,
    Stop,
    Tell,
)
from .stats import Counters

logger = logging.getLogger(__name__)

_CANCEL_AGAIN_S = 0.05
_CANCELS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a user wants done: the handler, and what is kept and called per partition."""

    handler: Handler | None = None
    is_batch: bool = False
    deadline_s: float | None = None
    around: Callable[[Sequence[Message]], AbstractContextManager[None]] | None = None
    """Makes a context manager for a handler call (a span)."""
    state: StateFactory | None = None
    on_assigned: PartitionCallback | None = None
    on_revoked: PartitionCallback | None = None
    on_lost: PartitionCallback | None = None

    @property
    def has_hooks(self) -> bool:
        """Whether something of it may take its time when a partition comes or goes."""
        callbacks = (self.on_assigned, self.on_revoked, self.on_lost)
        return self.state is not None or any(is_async(it) for it in callbacks if it is not None)


class Worker:
    """One member at work, from `run` to its end; to be made on the loop it runs on."""

    def __init__(
        self,
        settings: MemberSettings,
        work: Work,
        port: Port,
        *,
        now: Callable[[], float],
        wall_ns: Callable[[], int],
        counters: Counters,
        heard: Callable[[GroupEvent], None],
    ) -> None:
        """``heard`` is told every event, after the log, the counters and the callbacks."""
        self.settings = settings
        self.machine = GroupMachine(settings)
        self.now = now
        self._wall_ns = wall_ns
        self._port = port
        self._counters = counters
        self._heard = heard
        self._callbacks = {
            PartitionAssigned: work.on_assigned,
            PartitionRevoked: work.on_revoked,
            PartitionLost: work.on_lost,
        }
        self._stopped = asyncio.Event()
        self._error: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_timing = False
        self._is_flushing = False
        self._keepers = Keepers(
            work.state, work.on_assigned, work.on_revoked, work.on_lost, self._spawn_kept
        )
        self._calls: Calls | None = None
        if work.handler is not None:
            self._calls = Calls(
                self,
                work.handler,
                counters,
                limit=settings.limits.max_lanes,
                is_batch=work.is_batch,
                deadline_s=work.deadline_s,
                spawn=self._spawn,
                has_state=work.state is not None,
                around=work.around,
            )

    async def run(self) -> None:
        """Open the port, join and work until the machine stops; raises what ended it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._task_group = tasks
                try:
                    if await self._open(tasks):
                        self._step(lambda: self.machine.start(self.now(), self._wall_ns()))
                        await self._stopped.wait()
                finally:
                    await self._cancel_tasks()
                    if self._timer is not None:
                        self._timer.cancel()
                    if self._calls is not None:
                        self._calls.close()
        except* GroupError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            assert isinstance(first, GroupError)
            self._error = self._error or first
        finally:
            self._stopped.set()
            await self._keepers.close()
            await self._port.close()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin to drain and leave; `run` returns when that is done."""
        self._step(lambda: self.machine.stop(self.now(), self._wall_ns()))

    async def _cancel_tasks(self) -> None:
        """End what still runs; more than once, for a cancellation may be swallowed.

        By nats-py, while a publish waits for room, and by handlers that catch everything.
        """
        for _ in range(_CANCELS_MAX):
            tasks = list(self._tasks)
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_S)

    async def _open(self, tasks: asyncio.TaskGroup) -> bool:
        """Open the port; False if the member was stopped before that."""
        opening = tasks.create_task(self._port.open(self.receive, self._spawn), name="open")
        stopped = tasks.create_task(self._stopped.wait(), name="stopped")
        try:
            await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if not self._stopped.is_set():
            return True
        while not opening.done():
            # More than once: wait_for of Python 3.11, which the client uses, drops a cancellation
            # that comes at the same moment as its result.
            opening.cancel()
            await asyncio.wait((opening,), timeout=_CANCEL_AGAIN_S)
        return False

    def _spawn(self, task: Coroutine[None, None, None], name: str) -> None:
        if self._stopped.is_set():
            task.close()
            return
        started = self._task_group.create_task(task, name=f"{self.settings.group} {name}")
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)

    def receive(self, event: Happening | Reply) -> None:
        """Take what the port has, or what came of what the machine asked for."""
        self._step(lambda: self.machine.receive(event, self.now(), self._wall_ns()))

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self._step(lambda: self.machine.tick(self.now(), self._wall_ns()))

    def _step(self, step: Callable[[], None]) -> None:
        """Move the machine on. What it or a callback raises ends the member, and `run` raises it.

        The caller is often a client's callback, where an exception would only be logged.
        """
        try:
            step()
            self._carry_out()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits `run`
            self._error = self._error or error
            self._stopped.set()

    def _carry_out(self) -> None:
        for command in self.machine.take_commands():
            match command:
                case Handle():
                    assert self._calls is not None
                    self._calls.add(command.messages)
                case Tell():
                    self.tell(command.event)
                case Enter():
                    self._enter(command)
                case Flush():
                    self._flush(command)
                case Stop():
                    self._error = command.error
                    self._stopped.set()
                    self._tell_given_up(self.machine.owner.num_running)
                case _:
                    self._port.execute(command)
        if self._calls is not None:
            self._calls.notice()
        if not self._is_timing:
            self._is_timing = True
            asyncio.get_running_loop().call_soon(self._set_timer)

    def _set_timer(self) -> None:
        """Arrange the next tick; once per round of the loop, however much came in."""
        self._is_timing = False
        deadline = self.machine.next_deadline
        if self._stopped.is_set() or deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline != float("inf"):
            delay_s = max(0.0, deadline - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    # ---- what is kept per partition ----

    def _enter(self, command: Enter) -> None:
        entered = Entered(partition=command.partition, epoch=command.epoch)
        self._keepers.enter(command.partition, command.epoch, lambda: self.receive(entered))

    def _flush(self, command: Flush) -> None:
        flushed = Flushed(partition=command.partition, epoch=command.epoch)
        self._keepers.flush(command.partition, command.epoch, lambda: self.receive(flushed))

    def _spawn_kept(self, task: Coroutine[None, None, None], name: str) -> None:
        """Run a user's callback. It is not cancelled by the member's end: `run` waits for it."""

        async def run() -> None:
            try:
                await task
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits `run`
                self._error = self._error or error
                self._stopped.set()

        self._task_group.create_task(run(), name=f"{self.settings.group} {name}")

    # ---- the desk of the handler calls ----

    def may_begin(self, message: Message, now: float) -> bool:
        """Whether a call may still begin (for ``calls.py``)."""
        return self.machine.may_begin(message, now)

    def num_callable(self) -> int:
        """How many calls there is work and room for (for ``calls.py``)."""
        return self.machine.num_callable

    def next_call(self, now: float) -> tuple[Message, ...] | None:
        """Take the messages of a call that begins now (for ``calls.py``)."""
        self._flush_soon()
        return self.machine.next_call(now)

    def handled(self, message: Message, now: float) -> Message | None:
        """Take a call that returned (for ``calls.py``); returns the next message."""
        self._flush_soon()
        return self.machine.handled(message, now)

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush_handled)

    def _flush_handled(self) -> None:
        self._is_flushing = False
        if not self._stopped.is_set():
            self._step(lambda: self.machine.flush(self.now()))

    def report(self, event: Handled) -> None:
        """Take any other end of a call (for ``calls.py``)."""
        self.receive(event)

    def state_of(self, partition: int, epoch: int) -> Any:
        """What is kept for a partition under an epoch (for ``calls.py``)."""
        return self._keepers.state_of(partition, epoch)

    # ---- telling ----

    def tell(self, event: GroupEvent) -> None:
        """Tell the world: log, counters, callbacks, whoever listens."""
        level = logging.WARNING if isinstance(event, HandlerOverdue) else logging.INFO
        if logger.isEnabledFor(level):
            self._log(level, event)
        self._counters.told(event)
        if isinstance(event, PartitionAssigned | PartitionRevoked | PartitionLost):
            self._call_back(event)
        self._heard(event)

    def _tell_given_up(self, num_calls: int) -> None:
        if num_calls:
            logger.warning(
                "group %s member %s: handler calls that did not end in time: %d; the next owner"
                " handles their messages",
                self.settings.group,
                self.settings.member,
                num_calls,
                extra={
                    "event": "calls_given_up",
                    "group": self.settings.group,
                    "member": self.settings.member,
                },
            )

    def _log(self, level: int, event: GroupEvent) -> None:
        logger.log(
            level,
            "group %s member %s: %s",
            self.settings.group,
            self.settings.member,
            describe(event),
            extra={
                "event": event_name(event),
                "group": self.settings.group,
                "member": self.settings.member,
                "partition": getattr(event, "partition", None),
                "epoch": getattr(event, "epoch", None),
                "facts": {one.name: getattr(event, one.name) for one in fields(event)},
            },
        )

    def _call_back(self, event: PartitionAssigned | PartitionRevoked | PartitionLost) -> None:
        if not self.settings.has_hooks:
            callback = self._callbacks[type(event)]
            if callback is not None:
                callback(event.partition, event.epoch)
        elif not isinstance(event, PartitionAssigned):
            is_lost = isinstance(event, PartitionLost)
            self._keepers.leave(event.partition, event.epoch, is_lost=is_lost)
