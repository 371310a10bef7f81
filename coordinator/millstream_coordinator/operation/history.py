"""What happened in a group and what happens now: the leader's ring, then the members' own voices.

The leader keeps what concerns the group in a ring of bucket keys (``event.<i>``), numbered without
gaps; each member also tells its own events on ``millstream.group.<group>.event.<member>`` as they
happen, and nobody keeps those. An event here is the JSON object of `events.event_object`::

    {"version": 1, "number": 17, "at_ns": …, "group": "delays", "teller": "w1",
     "event": "partition_moved", "partition": 3, "epoch": 8, "owner": "w2", "previous": "w1", …}

``number`` is None for what only its teller knew. `follow` begins to listen before it reads the
ring, so nothing falls between the two, and tells each numbered event once.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg

from .. import naming
from ..events import decode_events
from .target import Target

Event = dict[str, Any]

BACKLOG_MAX = 10_000
"""Live events kept for a reader that does not keep up; then the oldest go."""
_COMMON = ("version", "number", "at_ns", "group", "teller", "event")


async def read_history(target: Target) -> list[Event]:
    """What the leader's ring holds, oldest first. Raises GroupMissing, ServerUnreachable."""
    await target.config()
    with target.errors():
        entries = await target.api.read_all(target.bucket, naming.EVENT_PREFIX)
    events = [event for entry in entries.values() for event in _decoded(entry)]
    return sorted(events, key=lambda event: event.get("number") or 0)


async def follow(target: Target, *, with_history: bool = True) -> AsyncGenerator[Event, None]:
    """The ring (if wanted), then what is told from now on, without end."""
    queue: asyncio.Queue[Event] = asyncio.Queue(BACKLOG_MAX)

    async def hear(message: Msg) -> None:
        for event in _decoded(message.data):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    with target.errors():
        subject = naming.event(target.group, "*")
        subscription = await target.connection.subscribe(subject, cb=hear)
        await target.connection.flush()
    try:
        last = 0
        for event in await read_history(target):
            last = event.get("number") or last
            if with_history:
                yield event
        while True:
            event = await queue.get()
            number = event.get("number")
            if number is None or number > last:
                last = number or last
                yield event
    finally:
        if not target.connection.is_closed:
            await subscription.unsubscribe()


def describe(event: Event) -> str:
    """One line: when, what, its facts, and who tells it when that is not in the facts."""
    at = datetime.fromtimestamp(event.get("at_ns", 0) / 1e9, UTC).astimezone()
    facts = {name: value for name, value in event.items() if name not in _COMMON}
    words = " ".join(f"{name}={_value(value)}" for name, value in facts.items())
    teller = event.get("teller", "?")
    by = "" if teller in facts.values() else f" ({teller})"
    name = str(event.get("event", "?")).replace("_", " ")
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} {name}: {words}{by}"


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return f'"{text}"' if " " in text else text


def _decoded(value: bytes) -> list[Event]:
    """Events of an entry or a message; nothing when it is neither (a newer version's, a stray)."""
    try:
        return decode_events(value)
    except ValueError:
        return []
