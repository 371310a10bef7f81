"""Asking running bridges how they stand, over NATS, from wherever NATS can be reached.

Every running bridge answers requests on ``millstream.bridge.status``, once for each of its routes
(schema ``millstream.bridge.status/1``). Who asks cannot know how many there are: the answers of a
short time count. Nothing is asked of JetStream or Kafka, so it works while these are in trouble.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..errors import Unreachable
from ..jetstream.target import NatsTarget
from ..moving.runner import Bridge
from .figures import partition_figures
from .fleet import Fleet

logger = logging.getLogger(__name__)

SUBJECT: Final = "millstream.bridge.status"
SCHEMA: Final = "millstream.bridge.status/1"
CONNECT_S: Final = 5


def status_document(fleet: Fleet, bridge: Bridge, now_s: float) -> dict[str, Any]:
    """How one route stands in this process."""
    progress, route = bridge.progress, bridge.route
    error = fleet.error_of(bridge)
    figures = partition_figures(bridge, now_s)
    return {
        "schema": SCHEMA,
        "process": {
            "host": socket.gethostname(),
            "pid": os.getpid(),
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


@asynccontextmanager
async def answering(fleet: Fleet, target: NatsTarget) -> AsyncIterator[None]:
    """Answer while the block runs. That it cannot be done stops nothing: it is logged."""

    async def answer(message: Msg) -> None:
        if not message.reply:
            return
        for bridge in list(fleet.bridges.values()):
            document = status_document(fleet, bridge, time.time())
            await connection.publish(message.reply, msgspec.json.encode(document))

    connection = Client()
    connecting = asyncio.create_task(_connect(connection, target, -1), name="status")
    connecting.add_done_callback(_log_failure)
    subscribing = asyncio.create_task(_subscribe(connecting, connection, answer), name="answer")
    try:
        yield
    finally:
        subscribing.cancel()
        connecting.cancel()
        await asyncio.wait({subscribing, connecting})
        await connection.close()


async def ask(target: NatsTarget, *, wait_s: float) -> list[dict[str, Any]]:
    """What every running bridge says within ``wait_s``, by route, then process. Unreachable."""
    connection = Client()
    try:
        async with asyncio.timeout(CONNECT_S):
            await _connect(connection, target, 1)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await connection.close()
        reason = str(error) or type(error).__name__
        raise Unreachable("NATS", str(target), reason) from error
    found: list[dict[str, Any]] = []

    async def hear(message: Msg) -> None:
        if message.data:  # without, the server says that nobody listens
            found.append(msgspec.json.decode(message.data))

    try:
        inbox = connection.new_inbox()
        await connection.subscribe(inbox, cb=hear)
        await connection.publish(SUBJECT, b"", reply=inbox)
        await asyncio.sleep(wait_s)
    finally:
        await connection.close()
    found = [it for it in found if it.get("schema") == SCHEMA]
    return sorted(found, key=lambda it: (it["route"], it["process"]["host"], it["process"]["pid"]))


async def _connect(connection: Client, target: NatsTarget, attempts: int) -> None:
    options = target.nats_py_options()
    options |= {"connect_timeout": CONNECT_S, "reconnect_time_wait": 0.5}
    await connection.connect(
        **options,
        name="millstream bridge status",
        max_reconnect_attempts=attempts,
        error_cb=_on_error,
    )


async def _subscribe(connecting: "asyncio.Task[None]", connection: Client, answer: Any) -> None:
    await asyncio.wait({connecting})
    if not connecting.cancelled() and connecting.exception() is None:
        await connection.subscribe(SUBJECT, cb=answer)


def _log_failure(connecting: "asyncio.Task[None]") -> None:
    if not connecting.cancelled() and (error := connecting.exception()) is not None:
        logger.warning("no status for others: %s", error, extra={"event": "no_status"})


async def _on_error(error: Exception) -> None:
    logger.debug("status connection: %s", error, extra={"event": "status_connection_error"})
