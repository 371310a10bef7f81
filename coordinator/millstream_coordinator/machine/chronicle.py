"""The group's last events, kept by its leader in a ring of keys, and announced as they are kept.

Entry e is the value of ``event.<e mod 256>``: a JSON array of up to EVENTS_PER_ENTRY events with
numbers that grow by one. One write is under way at a time, and what happens meanwhile goes into the
next entry together, so a thousand partitions that move at once are a few writes. Of what members
announce, only how long a partition stood still is kept beside the leader's own.

A new leader must find where the one before it stopped. The ring needs no pointer for that: from
slot 0 on, the entries of the current lap come first and then what is left of the lap before, so the
last entry is found by halving (`_find_end`), eight reads. Two leaders that both write are kept
apart by compare-and-set: who meets a conflict looks for the end anew.
"""

from collections import deque
from collections.abc import Generator

from ..events import (
    EVENTS_PER_ENTRY,
    GroupEvent,
    PartitionAssigned,
    decode_events,
    encode_events,
    event_name,
)
from ..naming import EVENTS_KEPT, event_key
from ..ports import Announce, Command, KeyRead, ReadKey, Reply, WriteKey, Written
from .context import Context
from .handoff import RETRY_S
from .steps import Pause, Script

WAITING_MAX = EVENTS_KEPT * EVENTS_PER_ENTRY
"""Events that wait to be kept; more would overwrite each other anyway."""

_ASSIGNED = event_name(PartitionAssigned)

Read = Generator[Command | Pause, Reply, KeyRead | None]


class Chronicle:
    """The ring as its only writer sees it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: deque[dict[str, object]] = deque(maxlen=WAITING_MAX)
        self._entry: int | None = None
        """The next entry; None: not looked for."""
        self._number = 0
        """The next event's number."""

    def keep(self, event: GroupEvent) -> None:
        """Keep an event, with the time it has now."""
        self._add(self._context.event_object(event))

    def _add(self, event: dict[str, object]) -> None:
        self._waiting.append(event)
        if ("lead", "chronicle") not in self._context.steps:
            self._context.steps.start(("lead", "chronicle"), self._write(), self._context.now)

    def hear(self, value: bytes) -> None:
        """Keep what a member announced, if it tells how long a partition stood still."""
        try:
            events = decode_events(value)
        except ValueError:
            return
        for event in events:
            if event["event"] == _ASSIGNED and event.get("stopped_s") is not None:
                self._add(event)

    def _write(self) -> Script:
        context = self._context
        yield Pause(0.0)  # so that what happens in one step is kept together
        while self._waiting:
            if self._entry is None and not (yield from self._find_end()):
                yield Pause(RETRY_S)
                continue
            assert self._entry is not None
            slot = yield from self._read(self._entry)
            if slot is None:
                yield Pause(RETRY_S)
                continue
            count = min(EVENTS_PER_ENTRY, len(self._waiting))
            events = [
                {**self._waiting[place], "number": self._number + place} for place in range(count)
            ]
            reply = yield WriteKey(
                id=context.steps.take_id(),
                key=event_key(self._entry),
                value=encode_events(events),
                revision=slot.revision,
            )
            if not isinstance(reply, Written):
                self._entry = None
                yield Pause(RETRY_S)
                continue
            for event in events:
                self._waiting.popleft()
                if event["event"] != _ASSIGNED:  # who told it has announced it
                    context.out.append(Announce(value=encode_events(event)))
            self._entry += 1
            self._number += count

    def _find_end(self) -> Generator[Command | Pause, Reply, bool]:
        """Find the last entry of the current lap; the next one and its first number follow it."""
        first = yield from self._last_number(0)
        if first is None:
            return False
        low, high, last = 0, EVENTS_KEPT, first
        while first >= 0 and high - low > 1:
            middle = (low + high) // 2
            number = yield from self._last_number(middle)
            if number is None:
                return False
            if number >= first:
                low, last = middle, number
            else:
                high = middle
        self._entry = 0 if last < 0 else low + 1
        self._number = last + 1
        return True

    def _last_number(self, entry: int) -> Generator[Command | Pause, Reply, int | None]:
        """Return the number of an entry's last event, -1 if there is none, None if nobody knows."""
        slot = yield from self._read(entry)
        if slot is None:
            return None
        if slot.value is None:
            return -1
        try:
            return int(decode_events(slot.value)[-1]["number"])
        except (ValueError, TypeError, LookupError):
            return -1

    def _read(self, entry: int) -> Read:
        context = self._context
        slot = yield ReadKey(id=context.steps.take_id(), key=event_key(entry))
        return slot if isinstance(slot, KeyRead) else None
