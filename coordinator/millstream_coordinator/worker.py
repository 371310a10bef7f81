"""``Group``: what users write. The edge around one group machine: clock, tasks, signals.

The machine says what to do, the port does what concerns the server, ``calls.py`` calls handlers,
``keepers.py`` what is kept per partition; this module joins them: it keeps the time and tells the
callbacks. One object is one member; everything happens on the loop `run` is called on.

Handler calls are never cancelled when a partition is lost: an effect that is under way cannot be
taken back, and a fenced sink refuses it if it comes too late. A stop waits for the calls under way,
up to ``drain_timeout``; then they are cancelled, and their messages are not acked: whoever owns the
partition next handles them.
"""

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any, TypeVar

from nats.aio.client import Client

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
from .jetstream.api import api_prefix as api_prefix_of
from .jetstream.port import JetStreamPort
from .keepers import Keepers, PartitionCallback, StateFactory
from .machine.group import GroupMachine, Phase
from .model import ConfigRecord, FailurePolicy, Limits, MemberSettings, Message, Timing, seconds
from .naming import check_name
from .partitioning.key import KeyRule
from .partitioning.layout import config_record
from .ports import (
    Enter,
    Entered,
    Flush,
    Flushed,
    Handle,
    Handled,
    Happening,
    Port,
    PortMaker,
    Reply,
    Stop,
    Tell,
)
from .stats import Counters, GroupStats
from .tracing import Tracing

logger = logging.getLogger(__name__)

EventCallback = Callable[[GroupEvent], None]
H = TypeVar("H", bound=Handler)

_CANCEL_AGAIN_S = 0.05
_CANCELS_MAX = 20

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
        prefer_label: str | None = None,
        can_lead: bool = True,
        heartbeat_interval: timedelta = timedelta(seconds=0.25),
        heartbeat_timeout: timedelta = timedelta(seconds=1),
        static_grace: timedelta = timedelta(0),
        drain_timeout: timedelta = timedelta(seconds=30),
        max_ack_pending: int = 256,
        max_pending_bytes: int = 64 * 1024 * 1024,
        max_lanes: int = 128,
        on_failure: FailurePolicy | str = FailurePolicy.RETRY,
        max_attempts: int = 5,
        retry_min: timedelta = timedelta(seconds=0.1),
        retry_max: timedelta = timedelta(seconds=10),
        max_parked_keys: int = 1000,
        state: StateFactory | None = None,
        on_assigned: PartitionCallback | None = None,
        on_revoked: PartitionCallback | None = None,
        on_lost: PartitionCallback | None = None,
        on_event: EventCallback | None = None,
        tracing: bool = False,
        domain: str | None = None,
        api_prefix: str | None = None,
        config: ConfigRecord | None = None,
    ) -> None:
        """See the table in ``docs/reference/settings.md``.

        ``connection`` may also be a `MemoryServer` (or anything that makes ports). ``config`` is
        for who joins a group as its bucket describes it, whatever the other arguments say.

        Raises BadName, or ValueError for a number out of range or an unknown policy; GroupError
        when ``tracing`` is asked for and OpenTelemetry is not installed.
        """
        for argument, number, least in (
            ("partitions", partitions, 1),
            ("capacity", capacity, 0),
            ("max_ack_pending", max_ack_pending, 1),
            ("max_lanes", max_lanes, 1),
            ("max_attempts", max_attempts, 1),
            ("max_pending_bytes", max_pending_bytes, 1),
            ("max_parked_keys", max_parked_keys, 1),
        ):
            _check_number(argument, number, least)
        if on_failure not in list(FailurePolicy):
            known = ", ".join(repr(str(it)) for it in FailurePolicy)
            raise ValueError(f"on_failure must be one of {known}, not {on_failure!r}")
        if not all(isinstance(it, str) for label in (labels or {}).items() for it in label):
            raise ValueError(f"labels must be texts by their names, not {labels!r}")
        self._timing = Timing(
            heartbeat_interval_s=_seconds("heartbeat_interval", heartbeat_interval),
            heartbeat_timeout_s=_seconds("heartbeat_timeout", heartbeat_timeout),
            static_grace_s=_seconds("static_grace", static_grace),
            drain_timeout_s=_seconds("drain_timeout", drain_timeout),
            retry_min_s=_seconds("retry_min", retry_min),
            retry_max_s=_seconds("retry_max", retry_max),
        )
        self.name = check_name("group", name)
        self.instance = secrets.token_hex(6)
        self.member = check_name("member", member or f"{_host_name()}-{self.instance}")
        self._connection = connection
        self._config = config
        self._prefix = api_prefix_of(domain, api_prefix)
        self._stream = stream
        self._partitions = partitions
        self._is_static = member is not None
        self._capacity = capacity
        self._labels = dict(labels or {})
        self._prefer_label = prefer_label
        self._can_lead = can_lead
        self._on_failure = FailurePolicy(on_failure)
        self._max_attempts = max_attempts
        self._limits = Limits(
            max_ack_pending=max_ack_pending,
            max_lanes=max_lanes,
            max_pending_bytes=max_pending_bytes,
            max_parked_keys=max_parked_keys,
        )
        self._callbacks = {
            PartitionAssigned: on_assigned,
            PartitionRevoked: on_revoked,
            PartitionLost: on_lost,
        }
        self._state = state
        self._has_hooks = state is not None or any(
            callback is not None and is_async(callback) for callback in self._callbacks.values()
        )
        self._on_event = on_event
        self._tracing = Tracing(self.name) if tracing else None
        self._port: Port | None = None
        self._handler: Handler | None = None
        self._is_batch = False
        self._deadline_s: float | None = None
        self._rule: KeyRule | None = None
        self._machine: GroupMachine | None = None
        self._readers: list[asyncio.Queue[GroupEvent | None]] = []
        self._is_stopping = False
        self._ended: asyncio.Event | None = None
        self._error: Exception | None = None
        self._counters = Counters()
        self._calls: Calls | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._is_timing = False
        self._is_flushing = False
        is_port_maker = not isinstance(connection, str | Client)
        self.now: Callable[[], float] = connection.now if is_port_maker else time.monotonic  # type: ignore[union-attr]
        self._wall_ns: Callable[[], int] = connection.wall_ns if is_port_maker else time.time_ns  # type: ignore[union-attr]

    # ---- for users ----

    def handler(self, key: str | KeyRule, *, deadline: timedelta | None = None) -> Callable[[H], H]:
        """Register the handler; ``key`` says where a message's key and partition are (`KeyRule`).

        It is called with one `Message`: an async function on this loop, a plain one in a thread.
        ``deadline`` bounds each call (see ``calls.py`` for what becomes of one that passes it).

        Raises KeyRuleError for a rule that cannot be read, ValueError for a second handler.
        """
        return self._register(key, deadline)

    def batch_handler(
        self,
        key: str | KeyRule,
        *,
        max_messages: int = 100,
        max_wait: timedelta = timedelta(0),
        deadline: timedelta | None = None,
    ) -> Callable[[H], H]:
        """Register a handler that takes a list of messages of one partition, in order per key.

        A call gets what is ready, up to ``max_messages``; ``max_wait`` is how long a call that
        would get fewer waits for more. While it runs, no other call gets messages of its keys.
        When it raises, each of its messages is tried again in a call of its own: one bad message
        does not take its neighbours with it, and policies are applied to it alone.

        Raises KeyRuleError and ValueError, as `handler` does.
        """
        if max_messages < 2:
            raise ValueError(f"max_messages must be at least 2, not {max_messages}")
        self._limits = replace(
            self._limits, batch_messages=max_messages, batch_wait_s=_seconds("max_wait", max_wait)
        )
        self._is_batch = True
        return self._register(key, deadline)

    def _register(self, key: str | KeyRule, deadline: timedelta | None) -> Callable[[H], H]:
        rule = KeyRule.parse(key) if isinstance(key, str) else key
        if not isinstance(rule, KeyRule):
            raise ValueError(f"the key is a rule's text or a KeyRule, not {key!r}")  # noqa: TRY004
        deadline_s = None if deadline is None else _seconds("deadline", deadline)
        if deadline_s == 0:
            raise ValueError("a deadline must be above 0")

        def register(handler: H) -> H:
            if self._handler is not None:
                raise ValueError("a group has one handler")
            self._handler, self._rule = handler, rule
            self._deadline_s = deadline_s
            return handler

        return register

    def stats(self) -> GroupStats:
        """Return this member's counters since it began, and where its partitions stand."""
        owner = None if self._machine is None else self._machine.owner
        return self._counters.snapshot(
            {} if owner is None else owner.owned,
            0 if owner is None else owner.num_running,
            self._wall_ns(),
        )

    def state(self, partition: int) -> Any:
        """Return what ``state`` made for a partition this member serves; None: it does not."""
        epoch = self.partitions.get(partition)
        return None if epoch is None else self.state_of(partition, epoch)

    @property
    def partitions(self) -> dict[int, int]:
        """Partitions this member serves now, with their epochs."""
        return {} if self._machine is None else self._machine.partitions

    @property
    def is_leader(self) -> bool:
        """Whether this member leads the group, as far as it knows."""
        return self._machine is not None and self._machine.is_leader

    @property
    def is_healthy(self) -> bool:
        """Whether this is a member with a connection, and sure of what it owns."""
        machine = self._machine
        return (
            machine is not None
            and machine.phase is Phase.MEMBER
            and machine.context.is_connected
            and not machine.context.is_fenced
        )

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
            port = JetStreamPort(self._connection, settings, self._rule, prefix=self._prefix)
        else:
            port = self._connection.port(settings, self._rule)
        self._port = port
        self._machine = GroupMachine(settings)
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers = Keepers(
            self._state,
            self._callbacks[PartitionAssigned],
            self._callbacks[PartitionRevoked],
            self._callbacks[PartitionLost],
            self._spawn_kept,
        )
        if self._handler is not None:
            self._calls = Calls(
                self,
                self._handler,
                self._counters,
                limit=settings.limits.max_lanes,
                is_batch=self._is_batch,
                deadline_s=self._deadline_s,
                spawn=self._spawn,
                has_state=self._state is not None,
                around=None if self._tracing is None else self._tracing.around,
            )
        try:
            async with asyncio.TaskGroup() as tasks:
                self._task_group = tasks
                try:
                    if await self._open(port, tasks):
                        machine = self._machine
                        self._step(lambda: machine.start(self.now(), self._wall_ns()))
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
            await port.close()

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
        config = self._config
        if config is None:
            made = config_record(
                self._rule,
                self._stream,
                self._partitions,
                on_failure=self._on_failure,
                max_attempts=self._max_attempts,
            )
            config = replace(made, prefer_label=self._prefer_label)
        return MemberSettings(
            group=self.name,
            member=self.member,
            instance=self.instance,
            config=config,
            is_static=self._is_static,
            capacity=self._capacity,
            labels=self._labels,
            host=_host_name(),
            pid=os.getpid(),
            software=_software(),
            joined_ns=self._wall_ns(),
            can_lead=self._can_lead,
            timing=self._timing,
            limits=self._limits,
            has_hooks=self._has_hooks,
            takes_calls=True,
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
            self._step(lambda: machine.stop(self.now(), self._wall_ns()))

    def _receive(self, event: Happening | Reply) -> None:
        assert self._machine is not None
        machine = self._machine
        self._step(lambda: machine.receive(event, self.now(), self._wall_ns()))

    def _tick(self) -> None:
        assert self._machine is not None
        machine = self._machine
        self._timer = None
        self._timer_at = float("inf")
        self._step(lambda: machine.tick(self.now(), self._wall_ns()))

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
                    self._tell_given_up(self._machine.owner.num_running)
                case _:
                    self._port.execute(command)
        if self._calls is not None:
            self._calls.notice()
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
            delay_s = max(0.0, deadline - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    # ---- what is kept per partition ----

    def _enter(self, command: Enter) -> None:
        entered = Entered(partition=command.partition, epoch=command.epoch)
        self._keepers.enter(command.partition, command.epoch, lambda: self._receive(entered))

    def _flush(self, command: Flush) -> None:
        flushed = Flushed(partition=command.partition, epoch=command.epoch)
        self._keepers.flush(command.partition, command.epoch, lambda: self._receive(flushed))

    def _spawn_kept(self, task: Coroutine[None, None, None], name: str) -> None:
        """Run a user's callback. It is not cancelled by the member's end: `run` waits for it."""

        async def run() -> None:
            try:
                await task
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits `run`
                self._error = self._error or error
                self._stopped.set()

        self._task_group.create_task(run(), name=f"{self.name} {name}")

    # ---- the desk of the handler calls ----

    def may_begin(self, message: Message, now: float) -> bool:
        """Whether a call may still begin (for ``calls.py``)."""
        assert self._machine is not None
        return self._machine.may_begin(message, now)

    def num_callable(self) -> int:
        """How many calls there is work and room for (for ``calls.py``)."""
        assert self._machine is not None
        return self._machine.num_callable

    def next_call(self, now: float) -> tuple[Message, ...] | None:
        """Take the messages of a call that begins now (for ``calls.py``)."""
        assert self._machine is not None
        self._flush_soon()
        return self._machine.next_call(now)

    def handled(self, message: Message, now: float) -> Message | None:
        """Take a call that returned (for ``calls.py``); returns the next message."""
        assert self._machine is not None
        self._flush_soon()
        return self._machine.handled(message, now)

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush_handled)

    def _flush_handled(self) -> None:
        self._is_flushing = False
        machine = self._machine
        if machine is not None and not self._stopped.is_set():
            self._step(lambda: machine.flush(self.now()))

    def report(self, event: Handled) -> None:
        """Take any other end of a call (for ``calls.py``)."""
        self._receive(event)

    def state_of(self, partition: int, epoch: int) -> Any:
        """What is kept for a partition under an epoch (for ``calls.py``)."""
        return self._keepers.state_of(partition, epoch)

    # ---- telling ----

    def tell(self, event: GroupEvent) -> None:
        """Tell the world: log, counters, callbacks, readers of `events`."""
        level = logging.WARNING if isinstance(event, HandlerOverdue) else logging.INFO
        if logger.isEnabledFor(level):
            self._log(level, event)
        self._counters.told(event)
        if isinstance(event, PartitionAssigned | PartitionRevoked | PartitionLost):
            self._call_back(event)
        if self._on_event is not None:
            self._on_event(event)
        for queue in self._readers:
            _put(queue, event)

    def _tell_given_up(self, num_calls: int) -> None:
        if num_calls:
            logger.warning(
                "group %s member %s: handler calls that did not end in time: %d; the next owner"
                " handles their messages",
                self.name,
                self.member,
                num_calls,
                extra={"event": "calls_given_up", "group": self.name, "member": self.member},
            )

    def _log(self, level: int, event: GroupEvent) -> None:
        logger.log(
            level,
            "group %s member %s: %s",
            self.name,
            self.member,
            describe(event),
            extra={
                "event": event_name(event),
                "group": self.name,
                "member": self.member,
                "partition": getattr(event, "partition", None),
                "epoch": getattr(event, "epoch", None),
                "facts": {one.name: getattr(event, one.name) for one in fields(event)},
            },
        )

    def _call_back(self, event: PartitionAssigned | PartitionRevoked | PartitionLost) -> None:
        if not self._has_hooks:
            callback = self._callbacks[type(event)]
            if callback is not None:
                callback(event.partition, event.epoch)
        elif not isinstance(event, PartitionAssigned):
            is_lost = isinstance(event, PartitionLost)
            self._keepers.leave(event.partition, event.epoch, is_lost=is_lost)


def _check_number(argument: str, given: object, least: int) -> None:
    if not isinstance(given, int) or given < least:
        raise ValueError(f"{argument} must be at least {least}, not {given!r}")


def _seconds(argument: str, given: object) -> float:
    """A duration in seconds. Raises ValueError; a bare number is one that many users write."""
    if not isinstance(given, timedelta) or given < timedelta(0):
        raise ValueError(f"{argument} must be a timedelta of 0 or more, not {given!r}")
    return seconds(given)


def _put(queue: asyncio.Queue[GroupEvent | None], event: GroupEvent | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)


@functools.cache
def _software() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"millstream {importlib.metadata.version('millstream')}"
    return "millstream"


def _host_name() -> str:
    name = socket.gethostname().split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40]
