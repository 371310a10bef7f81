"""Asking running bridges how they stand, over NATS, from wherever NATS can be reached.

Every running bridge answers requests on ``millstream.bridge.status``, once for each of its routes
(schema ``millstream.bridge.status/1``; `back` with ``millstream.bridge.back-status/1``). Who asks
cannot know how many there are: the answers of a short time count, unless the server says that
nobody listens. Nothing is asked of JetStream or Kafka, so it works while these are in trouble.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..back.runner import BackBridge
from ..errors import BridgeError, ConnectionLost, Unreachable
from ..jetstream.client import connect
from ..jetstream.connection import Connection, Message
from ..jetstream.reader import NO_RESPONDERS
from ..jetstream.target import NatsTarget
from ..moving.runner import Bridge
from .figures import back_figures, partition_figures
from .fleet import Fleet

logger = logging.getLogger(__name__)

SUBJECT: Final = "millstream.bridge.status"
SCHEMA: Final = "millstream.bridge.status/1"
BACK_SCHEMA: Final = "millstream.bridge.back-status/1"
AGAIN_S: Final = 5.0
_CANCEL_AGAIN_S: Final = 0.05
_STARTED: Final = time.monotonic()
_RUN: Final = secrets.token_hex(4)
"""Who this is beside others: containers often have one name, and all of them process 1."""


def fleet_status(fleet: Fleet) -> list[dict[str, Any]]:
    """How each route stands in this process."""
    return [_status(fleet, bridge, time.time()) for bridge in fleet.bridges.values()]


def back_status(bridges: Sequence[BackBridge]) -> list[dict[str, Any]]:
    """How each way back stands in this process."""
    return [_back_status(bridge, time.time()) for bridge in bridges]


def _status(fleet: Fleet, bridge: Bridge, now_s: float) -> dict[str, Any]:
    progress, route = bridge.progress, bridge.route
    error = fleet.error_of(bridge)
    figures = partition_figures(bridge, now_s)
    return {
        "schema": SCHEMA,
        "process": {
            **_process(),
            "group": fleet.members.group if fleet.members else None,
            "member": fleet.members.name if fleet.members else None,
        },
        "route": route.name,
        "topic": route.topic,
        "stream": route.stream,
        "state": str(progress.state),
        "error": None if error is None else str(error),
        "records": progress.records,
        "payload_bytes": progress.payload_bytes,
        "sessions": progress.sessions,
        "refusals": progress.refusals,
        "stood_back": progress.stood_back,
        "parked": progress.parked,
        "skipped": progress.skipped,
        "missed": progress.missed,
        "lag": sum(it.lag for it in figures.values()),
        "partitions": {str(partition): it._asdict() for partition, it in figures.items()},
    }


def _back_status(bridge: BackBridge, now_s: float) -> dict[str, Any]:
    progress = bridge.progress
    return {
        "schema": BACK_SCHEMA,
        "process": _process(),
        "route": bridge.route.name,
        "topic": bridge.topic,
        "stream": bridge.route.stream,
        "state": str(progress.state),
        "error": None if progress.error is None else str(progress.error),
        "records": progress.records,
        "payload_bytes": progress.payload_bytes,
        "from_kafka": progress.from_kafka,
        "passed_over": progress.passed_over,
        "transactions": progress.transactions,
        "sessions": progress.sessions,
        **back_figures(progress, now_s)._asdict(),
        "positions": {it.stream: it.next_seq for _, it in sorted(progress.positions.items())},
    }


def _process() -> dict[str, Any]:
    uptime_s = round(time.monotonic() - _STARTED, 6)
    return {"host": socket.gethostname(), "pid": os.getpid(), "run": _RUN, "uptime_s": uptime_s}


@asynccontextmanager
async def answering(
    target: NatsTarget, documents: Callable[[], Sequence[dict[str, Any]]]
) -> AsyncIterator[None]:
    """Answer while the block runs. That it cannot be done stops nothing: it is logged."""
    connection: Client | None = None
    is_over = False

    async def answer(message: Msg) -> None:
        if not message.reply:
            return
        for document in documents():
            await message.respond(msgspec.json.encode(document))

    async def keep() -> None:
        nonlocal connection
        while connection is None and not is_over:
            try:
                connection = await connect(target, name="millstream bridge status")
                await connection.subscribe(SUBJECT, cb=answer)
            except BridgeError as error:
                # That NATS is away the bridge itself says.
                level = logging.INFO if isinstance(error, Unreachable) else logging.WARNING
                told = "no status for others: %s"
                logger.log(level, told, error, extra={"event": "no_status"})
                await asyncio.sleep(AGAIN_S)

    keeping = asyncio.create_task(keep(), name="status")
    try:
        yield
    finally:
        is_over = True
        while not keeping.done():
            # More than once: nats-py swallows it now and then while it connects.
            keeping.cancel()
            await asyncio.wait({keeping}, timeout=_CANCEL_AGAIN_S)
        if connection is not None:
            await connection.close()


async def ask(target: NatsTarget, *, wait_s: float) -> list[dict[str, Any]]:
    """What every running bridge says within ``wait_s``, by route, then process.

    After half of it they are asked again: ``records_per_second`` is what came in between, None of
    one that answered once. Of both schemas; what others say on the subject is passed over.
    Unreachable; ConfigurationError: the user may not ask, or a file cannot be used.
    """
    connection = await Connection.open(target, name="millstream bridge status")
    heard: dict[tuple[str, ...], tuple[_Answer, _Answer, dict[str, Any]]] = {}
    nobody = asyncio.Event()

    def hear(message: Message) -> None:
        if message.status == NO_RESPONDERS:
            nobody.set()
            return
        with suppress(ValueError, RecursionError):
            answer = msgspec.json.decode(message.payload, type=_RouteAnswer | _BackAnswer)
            first, *_ = heard.get(answer.key, (answer,))
            heard[answer.key] = first, answer, msgspec.json.decode(message.payload)

    try:
        for _ in range(2):
            inbox = connection.new_inbox()
            connection.subscribe(inbox, hear)
            connection.write(f"PUB {SUBJECT} {inbox} 0\r\n\r\n".encode())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s / 2):
                    await nobody.wait()
            connection.check()
            if nobody.is_set():
                break
    except ConnectionLost as lost:
        raise Unreachable("NATS", str(target), str(lost)) from lost
    finally:
        await connection.close()
    return [
        {**document, "records_per_second": newest.rate_since(first)}
        for _, (first, newest, document) in sorted(heard.items())
    ]


class _Process(msgspec.Struct, frozen=True):
    host: str
    pid: int
    run: str = ""
    uptime_s: float = 0.0
    member: str | None = None


class _Answer(msgspec.Struct, frozen=True, tag_field="schema"):
    """What is needed of an answer, whichever of the schemas it is of."""

    route: str
    topic: str
    state: str
    error: str | None
    records: int
    lag: int
    process: _Process

    @property
    def key(self) -> tuple[str, ...]:
        who = self.process
        return self.route, who.host, f"{who.pid:10}", who.run, type(self).__name__, self.topic

    def rate_since(self, earlier: "_Answer") -> float | None:
        """Records a second, by the process's own clock: an answer may have been long on its way.

        None: it is the same answer, or one without a clock.
        """
        seconds = self.process.uptime_s - earlier.process.uptime_s
        return round((self.records - earlier.records) / seconds, 1) if seconds > 0 else None


class _Figures(msgspec.Struct, frozen=True):
    position: int | None
    end: int
    lag: int
    lag_seconds: float | None


class _RouteAnswer(_Answer, frozen=True, tag=SCHEMA):
    partitions: dict[str, _Figures]


class _BackAnswer(_Answer, frozen=True, tag=BACK_SCHEMA):
    lag_seconds: float | None
    positions: dict[str, int]
