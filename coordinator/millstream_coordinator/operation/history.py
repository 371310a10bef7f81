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

    subscription = await target.listen(naming.event(target.group, "*"), hear)
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


_WORDS = {
    "joined": "{member} joined",
    "left": "{member} left",
    "leader_changed": "{leader} leads",
    "member_dead": "{member} is dead: {reason}",
    "partition_moved": "partition {partition} from {previous} to {owner}, epoch {epoch}: {cause}",
    "partition_begun_anew": "partition {partition} anew for {owner}, epoch {epoch}: {cause}",
    "partition_assigned": (
        "partition {partition} served, epoch {epoch}: {cause}, still for {stopped_s} s"
    ),
    "partition_revoked": "partition {partition} given away, epoch {epoch}",
    "partition_lost": "partition {partition} taken away, epoch {epoch}",
    "fenced": "{member} is not sure of what it owns: nothing is handed out",
    "unfenced": "{member} is sure again",
    "paused": "paused: {partitions}",
    "resumed": "resumed: {partitions}",
    "resizing": "resizing from {partitions} to {resize_to} partitions",
    "resized": "resized from {previous} to {partitions} partitions",
    "message_retried": "partition {partition} message {seq} again in {delay_s} s: {error}",
    "message_given_up": "partition {partition} message {seq} given up ({reason}): {error}",
    "partition_stopped": "partition {partition} stopped at message {seq}: {error}",
    "partition_resumed": "partition {partition} goes on",
    "handler_overdue": "partition {partition} message {seq} runs for longer than {deadline_s} s",
    "key_replayed": "partition {partition} key {key}: {count} letters handled again",
    "key_parked_again": "partition {partition} key {key} failed again, and stays parked",
    "record_too_new": "{key} is of version {record_version}, too new for this member: let be",
    "join_refused": "{member} cannot join yet: {reason}",
    "stream_doubtful": "{text}",
    "consumer_reconciled": "deleted consumer {consumer}, whose epoch is over",
}
"""How an event is told to people; one that is not here is told by its fields.

Two are said otherwise at times: ``partition_begun_anew`` is a ``partition_moved`` to who had it (a
reset), ``key_parked_again`` a ``key_replayed`` that failed.
"""


def describe(event: Event) -> str:
    """One line: when, who tells it, what."""
    at = datetime.fromtimestamp(event.get("at_ns", 0) / 1e9, UTC).astimezone()
    when = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"
    return f"{when} {event.get('teller', '?')}: {sentence(event)}"


def sentence(event: Event) -> str:
    """What happened, in words for people."""
    facts = {name: _value(name, it) for name, it in event.items() if name not in _COMMON}
    name = str(event.get("event", "?"))
    is_moved = name == "partition_moved" and event.get("owner") is not None
    if is_moved and event["owner"] == event.get("previous"):
        name = "partition_begun_anew"
    if name == "key_replayed" and event.get("is_parked"):
        name = "key_parked_again"
    try:
        return _WORDS[name].format(**facts)
    except KeyError:  # a newer member's event, or one without the fields it has today
        words = " ".join(f"{name}={value}" for name, value in facts.items())
        return f"{name.replace('_', ' ')}: {words}"


def _value(name: str, value: object) -> str:
    match name, value:
        case "partitions", None:
            return "all partitions"
        case (("leader" | "owner" | "previous"), None):
            return "nobody"
        case _, None:
            return "?"
        case _, float():
            return f"{value:.3f}"
        case _, [*numbers]:
            return f"partition {', '.join(map(str, numbers))}"
        case _:
            return " ".join(str(value).split())


def _decoded(value: bytes) -> list[Event]:
    """Events of an entry or a message; nothing when it is neither (a newer version's, a stray)."""
    try:
        return decode_events(value)
    except ValueError:
        return []
