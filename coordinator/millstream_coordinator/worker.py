"""``Group``: what users write. The edge around one group machine: clock, tasks, signals.

The machine says what to do, the port does what concerns the server, and this module does the rest:
it calls handlers, keeps the time, tells the callbacks. One object is one member; everything happens
on the loop `run` is called on.

Handler calls are never cancelled when a partition is lost: an effect that is under way cannot be
taken back, and a fenced sink refuses it if it comes too late.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta

from nats.aio.client import Client

from .errors import GroupError
from .events import (
    GroupEvent,
    PartitionAssigned,
    PartitionLost,
    PartitionRevoked,
    describe,
)
from .jetstream.port import JetStreamPort
from .machine.group import GroupMachine
from .model import ConfigRecord, Limits, MemberSettings, Message, Timing, seconds
from .naming import check_name
from .partitioning.key import KeyRule
from .ports import Handle, Handled, Happening, Port, PortMaker, Reply, Stop, Tell
from .sinks.contract import StaleEpoch

logger = logging.getLogger(__name__)

Handler = Callable[[Message], Awaitable[None]]
PartitionCallback = Callable[[int, int], None]
EventCallback = Callable[[GroupEvent], None]

_CANCEL_AGAIN_S = 0.05

EVENT_BACKLOG_MAX = 10_000
"""Events kept for one slow reader of `Group.events`; then the oldest go."""


class Group:
    """One member of a partitioned consumer group."""

    def __init__(
        self,
        connection: str | Client | PortMaker,
        *,
        stream: str | None,
        name: str,
        partitions: int,
        member: str | None = None,
        capacity: int = 1,
        labels: Mapping[str, str] | None = None,
        can_lead: bool = True,
        heartbeat_interval: timedelta = timedelta(seconds=0.25),
        heartbeat_timeout: timedelta = timedelta(seconds=1),
        static_grace: timedelta = timedelta(0),
        drain_timeout: timedelta = timedelta(seconds=30),
        max_ack_pending: int = 256,
        max_lanes: int = 128,
        on_assigned: PartitionCallback | None = None,
        on_revoked: PartitionCallback | None = None,
        on_lost: PartitionCallback | None = None,
        on_event: EventCallback | None = None,
    ) -> None:
        """See the table in the package's README.

        ``connection`` may also be a `MemoryServer` (or anything that makes ports).

        Raises BadName, or ValueError for a number out of range.
        """
        if partitions < 1:
            raise ValueError(f"a group needs at least one partition, not {partitions}")
        if min(max_ack_pending, max_lanes) < 1 or capacity < 0:
            raise ValueError("max_ack_pending and max_lanes must be at least 1, capacity 0")
        if heartbeat_interval * 2 > heartbeat_timeout:
            raise ValueError("heartbeat_timeout must be at least twice heartbeat_interval")
        self.name = check_name("group", name)
        self.instance = secrets.token_hex(6)
        self.member = check_name("member", member or f"{_host_name()}-{self.instance}")
        self._connection = connection
        self._stream = stream
        self._partitions = partitions
        self._is_static = member is not None
        self._capacity = capacity
        self._labels = dict(labels or {})
        self._can_lead = can_lead
        self._timing = Timing(
            heartbeat_interval_s=seconds(heartbeat_interval),
            heartbeat_timeout_s=seconds(heartbeat_timeout),
            static_grace_s=seconds(static_grace),
            drain_timeout_s=seconds(drain_timeout),
        )
        self._limits = Limits(max_ack_pending=max_ack_pending, max_lanes=max_lanes)
        self._callbacks = {
            PartitionAssigned: on_assigned,
            PartitionRevoked: on_revoked,
            PartitionLost: on_lost,
        }
        self._on_event = on_event
        self._port: Port | None = None
        self._handler: Handler | None = None
        self._rule: KeyRule | None = None
        self._machine: GroupMachine | None = None
        self._readers: list[asyncio.Queue[GroupEvent | None]] = []
        self._is_stopping = False
        self._ended: asyncio.Event | None = None
        self._error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_timing = False

    # ---- for users ----

    def handler(self, key: str | KeyRule) -> Callable[[Handler], Handler]:
        """Register the handler; ``key`` says where a message's key and partition are (`KeyRule`).

        Raises KeyRuleError for a rule that cannot be read, ValueError for a second handler.
        """
        rule = KeyRule.parse(key) if isinstance(key, str) else key

        def register(handler: Handler) -> Handler:
            if self._handler is not None:
                raise ValueError("a group has one handler")
            self._handler, self._rule = handler, rule
            return handler

        return register

    @property
    def partitions(self) -> dict[int, int]:
        """Partitions this member serves now, with their epochs."""
        return {} if self._machine is None else self._machine.partitions

    @property
    def is_leader(self) -> bool:
        """Whether this member leads the group, as far as it knows."""
        return self._machine is not None and self._machine.is_leader

    async def events(self) -> AsyncIterator[GroupEvent]:
        """Yield what happens from now on, until the group has ended.

        A reader that is more than EVENT_BACKLOG_MAX events behind misses the oldest.
        """
        queue: asyncio.Queue[GroupEvent | None] = asyncio.Queue(EVENT_BACKLOG_MAX)
        self._readers.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._readers.remove(queue)

    async def stop(self) -> None:
        """Drain, give the partitions away and leave; returns when `run` is at its end."""
        self._begin_stop()
        if self._ended is not None:
            await self._ended.wait()

    async def run(self, *, handle_signals: bool = True) -> None:
        """Join and work until `stop`, SIGTERM or SIGINT.

        Raises GroupError (ServerUnreachable, StreamMissing, StreamUnfit, ConfigMismatch,
        MemberReplaced, KeyRuleError), nothing of which leaves anything half done behind; and what
        a callback raised.
        """
        if self._ended is not None:
            raise RuntimeError("a group runs once")
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
        for one in signals:
            loop.add_signal_handler(one, self._begin_stop)
        try:
            await self._run()
        finally:
            for one in signals:
                loop.remove_signal_handler(one)
            self._ended.set()
            for queue in self._readers:
                _put(queue, None)
        if self._error is not None:
            raise self._error

    # ---- the loop ----

    async def _run(self) -> None:
        settings = self._settings()
        port: Port
        if isinstance(self._connection, str | Client):
            port = JetStreamPort(self._connection, settings, self._rule)
        else:
            port = self._connection.port(settings, self._rule)
        self._port = port
        self._machine = GroupMachine(settings)
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._task_group = tasks
                try:
                    if await self._open(port, tasks):
                        machine = self._machine
                        self._step(lambda: machine.start(time.monotonic()))
                        await self._stopped.wait()
                finally:
                    for task in list(self._tasks):
                        task.cancel()
                    if self._timer is not None:
                        self._timer.cancel()
        except* GroupError as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            assert isinstance(first, GroupError)
            self._error = self._error or first
        finally:
            self._stopped.set()
            await port.close()

    async def _open(self, port: Port, tasks: asyncio.TaskGroup) -> bool:
        """Open the port; False if the member was stopped before that."""
        if self._is_stopping:
            return False
        opening = tasks.create_task(port.open(self._receive, self._spawn), name="open")
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

    def _settings(self) -> MemberSettings:
        if self._stream is not None and self._handler is None and self._capacity:
            raise GroupError(f"group {self.name!r} has a stream and no handler")
        rule = self._rule
        return MemberSettings(
            group=self.name,
            member=self.member,
            instance=self.instance,
            config=ConfigRecord(
                partitions=self._partitions,
                stream=self._stream,
                filter=None if rule is None else _filter_text(rule),
            ),
            is_static=self._is_static,
            capacity=self._capacity,
            labels=self._labels,
            host=_host_name(),
            pid=os.getpid(),
            joined_ns=time.time_ns(),
            can_lead=self._can_lead,
            timing=self._timing,
            limits=self._limits,
        )

    def _spawn(self, task: Coroutine[None, None, None], name: str) -> None:
        if self._stopped.is_set():
            task.close()
            return
        started = self._task_group.create_task(task, name=f"{self.name} {name}")
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)

    def _begin_stop(self) -> None:
        self._is_stopping = True
        machine = self._machine
        if machine is not None and self._ended is not None and not self._ended.is_set():
            self._step(lambda: machine.stop(time.monotonic()))

    def _receive(self, event: Happening | Reply) -> None:
        assert self._machine is not None
        machine = self._machine
        self._step(lambda: machine.receive(event, time.monotonic()))

    def _tick(self) -> None:
        assert self._machine is not None
        machine = self._machine
        self._timer = None
        self._timer_at = float("inf")
        self._step(lambda: machine.tick(time.monotonic()))

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
        assert self._machine is not None
        assert self._port is not None
        for command in self._machine.take_commands():
            match command:
                case Handle():
                    self._spawn(self._handle(command.message), "handler")
                case Tell():
                    self._tell(command.event)
                case Stop():
                    self._error = command.error
                    self._stopped.set()
                case _:
                    self._port.execute(command)
        if not self._is_timing:
            self._is_timing = True
            asyncio.get_running_loop().call_soon(self._set_timer)

    def _set_timer(self) -> None:
        """Arrange the next tick; once per round of the loop, however much came in."""
        assert self._machine is not None
        self._is_timing = False
        deadline = self._machine.next_deadline
        if self._stopped.is_set() or deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline != float("inf"):
            delay_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    async def _handle(self, message: Message) -> None:
        assert self._handler is not None
        error: str | None = None
        seen_epoch: int | None = None
        try:
            await self._handler(message)
        except StaleEpoch as stale:
            error, seen_epoch = str(stale), stale.seen_epoch
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something inside the handler was cancelled, not the call: as good as any other error.
            error = "CancelledError"
        except Exception as raised:  # noqa: BLE001 - a handler may raise anything; it is told and retried
            error = f"{type(raised).__name__}: {raised}"
        self._receive(Handled(message=message, error=error, seen_epoch=seen_epoch))

    def _tell(self, event: GroupEvent) -> None:
        logger.info(
            "group %s member %s: %s",
            self.name,
            self.member,
            describe(event),
            extra={"event": type(event).__name__},
        )
        if isinstance(event, PartitionAssigned | PartitionRevoked | PartitionLost):
            callback = self._callbacks[type(event)]
            if callback is not None:
                callback(event.partition, event.epoch)
        if self._on_event is not None:
            self._on_event(event)
        for queue in self._readers:
            _put(queue, event)


def _put(queue: asyncio.Queue[GroupEvent | None], event: GroupEvent | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)


def _filter_text(rule: KeyRule) -> str:
    tokens = list(rule.subject_filter().split("."))
    if rule.partition_place is not None:
        tokens[rule.partition_place] = "{partition}"
    return ".".join(tokens)


def _host_name() -> str:
    name = socket.gethostname().split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40]
