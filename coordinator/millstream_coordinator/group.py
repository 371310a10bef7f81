"""``Group``: what users write. Its arguments, its handler, and what it is like while it runs.

One object is one member. What it does from `Group.run` on is in ``worker.py``.
"""

import asyncio
import functools
import importlib.metadata
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from nats.aio.client import Client

from .arguments import check_number, duration_s
from .calls import Handler, check_handler
from .errors import GroupError
from .events import GroupEvent
from .jetstream.api import api_prefix as api_prefix_of
from .jetstream.port import JetStreamPort
from .keepers import PartitionCallback, StateFactory
from .machine.group import Phase
from .model import ConfigRecord, FailurePolicy, Limits, MemberSettings, Timing
from .naming import check_name
from .partitioning.key import KeyRule
from .partitioning.layout import config_record
from .ports import Port, PortMaker
from .readers import Readers
from .signals import stopped_by_signals
from .stats import Counters, GroupStats
from .tracing import Tracing
from .worker import Work, Worker

EventCallback = Callable[[GroupEvent], None]
H = TypeVar("H", bound=Handler)


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
        replicas: int = 1,
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
            ("replicas", replicas, 1),
        ):
            check_number(argument, number, least)
        if on_failure not in list(FailurePolicy):
            known = ", ".join(repr(str(it)) for it in FailurePolicy)
            raise ValueError(f"on_failure must be one of {known}, not {on_failure!r}")
        if not all(isinstance(it, str) for label in (labels or {}).items() for it in label):
            raise ValueError(f"labels must be texts by their names, not {labels!r}")
        self._timing = Timing(
            heartbeat_interval_s=duration_s("heartbeat_interval", heartbeat_interval),
            heartbeat_timeout_s=duration_s("heartbeat_timeout", heartbeat_timeout),
            static_grace_s=duration_s("static_grace", static_grace),
            drain_timeout_s=duration_s("drain_timeout", drain_timeout),
            retry_min_s=duration_s("retry_min", retry_min),
            retry_max_s=duration_s("retry_max", retry_max),
        )
        self.name = check_name("group", name)
        self.instance = secrets.token_hex(6)
        self.member = check_name("member", member or f"{_host_name()}-{self.instance}")
        self._connection = connection
        self._config = config
        self._prefix = api_prefix_of(domain, api_prefix)
        self._stream = stream
        self._replicas = replicas
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
        self._work = Work(
            around=Tracing(self.name).around if tracing else None,
            state=state,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            on_lost=on_lost,
        )
        self._on_event = on_event
        self._rule: KeyRule | None = None
        self._worker: Worker | None = None
        self._readers = Readers[GroupEvent]()
        self._is_stopping = False
        self._ended: asyncio.Event | None = None
        self._counters = Counters()
        is_port_maker = not isinstance(connection, str | Client)
        self._now: Callable[[], float] = connection.now if is_port_maker else time.monotonic  # type: ignore[union-attr]
        self._wall_ns: Callable[[], int] = connection.wall_ns if is_port_maker else time.time_ns  # type: ignore[union-attr]

    def handler(self, key: str | KeyRule, *, deadline: timedelta | None = None) -> Callable[[H], H]:
        """Register the handler; ``key`` says where a message's key and partition are (`KeyRule`).

        It is called with one `Message`: an async function on this loop, a plain one in a thread.
        ``deadline`` bounds each call (see ``calls.py`` for what becomes of one that passes it).

        Raises KeyRuleError for a rule that cannot be read, ValueError for a second handler and for
        one that yields.
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
        check_number("max_messages", max_messages, 2)
        self._limits = replace(
            self._limits, batch_messages=max_messages, batch_wait_s=duration_s("max_wait", max_wait)
        )
        return self._register(key, deadline, is_batch=True)

    def _register(
        self, key: str | KeyRule, deadline: timedelta | None, *, is_batch: bool = False
    ) -> Callable[[H], H]:
        rule = KeyRule.parse(key) if isinstance(key, str) else key
        if not isinstance(rule, KeyRule):
            raise ValueError(f"the key is a rule's text or a KeyRule, not {key!r}")  # noqa: TRY004
        deadline_s = None if deadline is None else duration_s("deadline", deadline)
        if deadline_s == 0:
            raise ValueError("a deadline must be above 0")

        def register(handler: H) -> H:
            if self._work.handler is not None:
                raise ValueError("a group has one handler")
            check_handler(handler)
            self._rule = rule
            self._work = replace(
                self._work, handler=handler, is_batch=is_batch, deadline_s=deadline_s
            )
            return handler

        return register

    def stats(self) -> GroupStats:
        """Return this member's counters since it began, and where its partitions stand."""
        owner = None if self._worker is None else self._worker.machine.owner
        return self._counters.snapshot(
            {} if owner is None else owner.owned,
            0 if owner is None else owner.num_running,
            self._wall_ns(),
        )

    def state(self, partition: int) -> Any:
        """Return what ``state`` made for a partition this member serves; None: it does not."""
        epoch = self.partitions.get(partition)
        if self._worker is None or epoch is None:
            return None
        return self._worker.state_of(partition, epoch)

    @property
    def partitions(self) -> dict[int, int]:
        """Partitions this member serves now, with their epochs."""
        if self._worker is None or self._worker.machine.phase is Phase.GONE:
            return {}
        return self._worker.machine.partitions

    @property
    def is_leader(self) -> bool:
        """Whether this member leads the group, as far as it knows."""
        return self._worker is not None and self._worker.machine.is_leader

    @property
    def is_healthy(self) -> bool:
        """Whether this is a member with a connection, and sure of what it owns."""
        if self._worker is None:
            return False
        machine = self._worker.machine
        context = machine.context
        return machine.phase is Phase.MEMBER and context.is_connected and not context.is_fenced

    def events(self) -> AsyncIterator[GroupEvent]:
        """Yield what happens from now on, until the group has ended.

        A reader that is more than ``readers.BACKLOG_MAX`` events behind misses the oldest.
        """
        return self._readers.read()

    async def stop(self) -> None:
        """Drain, give the partitions away and leave; returns when `run` is at its end."""
        self._begin_stop()
        if self._ended is not None:
            await self._ended.wait()

    async def run(self, *, handle_signals: bool = True) -> None:
        """Join and work until `stop`, SIGTERM or SIGINT, which all groups of a process obey.

        Raises GroupError (ServerUnreachable, StreamMissing, StreamUnfit, ConfigMismatch,
        MemberReplaced, KeyRuleError), nothing of which leaves anything half done behind; and what
        a callback raised.
        """
        if self._ended is not None:
            raise RuntimeError("a group runs once")
        self._ended = asyncio.Event()
        try:
            signals = stopped_by_signals(self._begin_stop) if handle_signals else nullcontext()
            with signals:
                await self._run()
        finally:
            self._ended.set()
            self._readers.end()

    async def _run(self) -> None:
        settings = self._settings()
        if self._is_stopping:
            return
        self._worker = Worker(
            settings,
            self._work,
            self._port(settings),
            now=self._now,
            wall_ns=self._wall_ns,
            counters=self._counters,
            heard=self._hear,
        )
        await self._worker.run()

    def _begin_stop(self) -> None:
        self._is_stopping = True
        if self._worker is not None and self._ended is not None and not self._ended.is_set():
            self._worker.stop()

    def _port(self, settings: MemberSettings) -> Port:
        if isinstance(self._connection, str | Client):
            return JetStreamPort(self._connection, settings, self._rule, prefix=self._prefix)
        return self._connection.port(settings, self._rule)

    def _settings(self) -> MemberSettings:
        if self._stream is not None and self._work.handler is None and self._capacity:
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
            replicas=self._replicas,
            has_hooks=self._work.has_hooks,
            takes_calls=True,
        )

    def _hear(self, event: GroupEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
        self._readers.tell(event)


@functools.cache
def _software() -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"millstream {importlib.metadata.version('millstream')}"
    return "millstream"


def _host_name() -> str:
    name = socket.gethostname().split(".")[0]
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40]
