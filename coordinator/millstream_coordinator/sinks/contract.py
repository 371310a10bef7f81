"""What a fenced sink is to its users: the protocol, what it counts, how it fails.

A sink of your own is an object with ``name``, ``counters`` and ``apply``; `admits` is its judgement
and its bookkeeping of refusals, and `testing` is the contract as tests, to be run against it. ::

    class FileSink:
        name = "file:delays"

        def __init__(self) -> None:
            self.counters = SinkCounters()

        async def apply(self, message: Fenced, line: str, /) -> Verdict:
            self.counters.attempts += 1
            async with self.locked(message.key) as file:  # read, judged and written as one step
                if not admits(message, file.mark(message.mark), self.counters):
                    return Verdict.REPEAT
                file.replace(file.lines + [line], message)
            self.counters.applied += 1
            return Verdict.APPLY
"""

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..errors import GroupError
from .mark import Fenced, Mark, Verdict, judge

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.002, 0.25

Update = Callable[[bytes | None], bytes | None]
"""The value before (None: there is none) to the value after (None: delete it, the mark stays).

Called again when another write came between or the connection broke, so it must have no effects of
its own.
"""


class SinkError(GroupError):
    """An effect could not be applied, and nothing says whether it was: apply it again."""


class SinkUnavailable(SinkError):
    """The sink did not answer, or answered with an error."""

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"sink {sink!r} is unavailable: {reason}")
        self.sink, self.reason = sink, reason


class SinkDisconnected(SinkUnavailable):
    """The connection to the sink is down, or went before the answer."""


class SinkContended(SinkError):
    """The entry was changed by others each time between reading and writing it."""

    def __init__(self, sink: str, entry: str, attempts: int) -> None:
        super().__init__(f"sink {sink!r}: entry {entry!r} changed {attempts} times while updating")
        self.sink, self.entry, self.attempts = sink, entry, attempts


class BadMark(SinkError):
    """An entry's mark cannot be read, so nothing can be said about its value."""

    def __init__(self, sink: str, entry: str, text: str) -> None:
        super().__init__(f"sink {sink!r}: entry {entry!r} has no readable mark: {text!r}")
        self.sink, self.entry, self.text = sink, entry, text


class SinkUnfit(GroupError):
    """What is there cannot carry a fenced sink; told before anything is changed."""

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"sink {sink!r} cannot be used: {reason}")
        self.sink, self.reason = sink, reason


class BadEffect(GroupError, ValueError):
    """The effect is not one this sink can apply, however often it is tried; nothing was done."""

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"sink {sink!r} cannot apply this effect: {reason}")
        self.sink, self.reason = sink, reason


class StaleEpoch(GroupError):
    """There is an effect of a higher epoch already; the message may not be acknowledged.

    ``seen_epoch`` is that epoch: whoever still owns the partition needs one above it.
    """

    def __init__(self, partition: int, epoch: int, seen_epoch: int) -> None:
        super().__init__(
            f"effect of epoch {epoch} in partition {partition} refused: epoch {seen_epoch} was here"
        )
        self.partition, self.epoch, self.seen_epoch = partition, epoch, seen_epoch


@dataclass(slots=True)
class SinkCounters:
    """What one sink object saw; attempts = applied + refused + those that ended in an error."""

    attempts: int = 0
    applied: int = 0
    refused_repeat: int = 0
    refused_stale: int = 0


E_contra = TypeVar("E_contra", contravariant=True)


class Sink(Protocol[E_contra]):
    """The contract; `testing.SinkContract` says it in tests any sink can run.

    What an effect is differs: a new value (KvSink, MemorySink), statements (SqlSink), messages
    (PublishSink, BatchSink).
    """

    @property
    def name(self) -> str:
        """What the sink is called in errors and metrics: ``<kind>:<where>``."""

    @property
    def counters(self) -> SinkCounters:
        """What this object counted since it was made."""

    async def apply(self, message: Fenced, effect: E_contra, /) -> Verdict:
        """Apply the effect of a message, and say whether it was needed.

        APPLY: the effect is stored now. REPEAT: it was there. Either way the message is done with.
        Raises StaleEpoch (refused, not done with), SinkError when nothing is known: applying it
        again is always safe; and what the effect itself raises, with nothing done.
        """


class ValueSink(Sink[Update], Protocol):
    """A sink of one value per key."""

    async def value(self, key: bytes) -> bytes | None:
        """What the key's value is now; None if there is none."""


def admits(
    message: Fenced, mark: Mark | None, counters: SinkCounters, *, fence_epoch: int = 0
) -> bool:
    """Whether the effect may be applied; False: it is a repeat. Raises StaleEpoch.

    ``mark`` is what the sink holds for the message's entry and `Fenced.mark`, ``fence_epoch`` what
    it holds for the partition. Refusals are counted here, the rest by who stores it.
    """
    if message.epoch < fence_epoch:
        raise refused_stale(message, fence_epoch, counters)
    if mark is None:
        return True
    verdict = judge(mark, message.epoch, message.seq)
    if message.key is None:
        verdict = Verdict.REPEAT
    match verdict:
        case Verdict.APPLY:
            return True
        case Verdict.REPEAT:
            counters.refused_repeat += 1
            return False
        case Verdict.STALE:
            raise refused_stale(message, mark.epoch, counters)


def refused_stale(message: Fenced, seen_epoch: int, counters: SinkCounters) -> StaleEpoch:
    """Count a stale effect; the error to raise."""
    counters.refused_stale += 1
    return StaleEpoch(message.partition, message.epoch, seen_epoch)


def pause_s(attempt: int) -> float:
    """How long to wait after attempt 0, 1, … met another's: at most a quarter of a second."""
    longest_s: float = min(_PAUSE_MIN_S * 2**attempt, _PAUSE_MAX_S)
    return longest_s * random.random()  # noqa: S311 - jitter


class Unconfirmed:
    """What one sink object wrote without hearing whether it is there, by entry.

    The next attempt at such a message may find its own mark: the effect counts as applied then, not
    as a repeat. At most ``size_max`` are kept, the last ones.
    """

    def __init__(self, size_max: int = 1024) -> None:
        self._marks: OrderedDict[tuple[str, int], Mark] = OrderedDict()
        self._size_max = size_max

    def add(self, entry: str, message: Fenced) -> None:
        """The message's effect was sent and no answer came."""
        self._marks[entry, message.mark] = Mark(message.epoch, message.seq)
        while len(self._marks) > self._size_max:
            self._marks.popitem(last=False)

    def found(self, entry: str, message: Fenced, mark: Mark | None) -> bool:
        """Whether ``mark``, as it is stored, is one that was added; it is forgotten then."""
        written = self._marks.get((entry, message.mark))
        if written is None or written != mark or written != Mark(message.epoch, message.seq):
            return False
        del self._marks[entry, message.mark]
        return True

    def forget(self, entry: str, message: Fenced) -> None:
        """The entry's effect is known now."""
        self._marks.pop((entry, message.mark), None)
