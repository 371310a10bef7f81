"""A sink in a dictionary: for tests and simulations, and what the contract looks like bare.

It has no fence beside the keys' marks. In a test::

    sink = MemorySink()
    await sink.apply(message, lambda value: (value or b"") + message.data)
    assert await sink.value(message.key) == message.data
"""

from .contract import SinkCounters, Update, admits
from .mark import Entry, Fenced, Verdict, entry_key, entry_of_key


class MemorySink:
    """It is as atomic as a dictionary: within one thread. ``entries`` is by `entry_key`."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.counters = SinkCounters()
        self.entries: dict[str, Entry] = {}

    async def apply(self, message: Fenced, update: Update, /) -> Verdict:
        """See `Sink`."""
        return self.apply_now(message, update)

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        """`apply` without a loop."""
        self.counters.attempts += 1
        where = entry_key(message)
        entry = self.entries.get(where, Entry())
        if not admits(message, entry.marks.get(message.mark), self.counters):
            return Verdict.REPEAT
        value = update(entry.value)
        self.entries[where] = Entry(value, entry.marks_after(message), entry.revision + 1)
        self.counters.applied += 1
        return Verdict.APPLY

    async def value(self, key: bytes) -> bytes | None:
        """See `ValueSink`."""
        return self.entries.get(entry_of_key(key), Entry()).value
