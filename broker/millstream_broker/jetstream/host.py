"""What every part of the engine shares: bus, clock reading, timers, and rounds of work.

The engine works in rounds. A round begins with what came in (publishes, API requests, acks, a
timer), changes stores and consumers, and ends in ``settle``: messages go out to whoever waits
for them, what changed reaches the operating system, and only then the answers that promise it
are sent. A sink called while a round runs (one part publishing to another) is queued and
becomes part of the same round, so no part ever sees another half done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..routing.port import Bus, Instant, Message, Sink
from .model import Identity, Limits

RandomBelow = Callable[[int], int]
"""An integer at or above 0 and below the argument."""

Report = Callable[[str, dict[str, Any]], None]
"""Takes what is worth a line in the log: an event's name and its facts."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Timed(Protocol):
    """Something with a deadline."""

    def on_timer(self) -> None:
        """The deadline set last has passed."""


class Worker(Protocol):
    """Something with messages to hand on."""

    def deliver(self) -> bool:
        """Hand on what can be handed on; True when more is left for the next round."""


class Saver(Protocol):
    """Something whose changes must reach the operating system before answers go out."""

    def save(self) -> None:
        """Write changes down and send the answers that waited for it."""


class Timers:
    """At most one deadline per owner, in monotonic seconds."""

    def __init__(self) -> None:
        self._deadlines: dict[Timed, float] = {}
        self._heap: list[tuple[float, int, Timed]] = []
        self._count = 0

    def set(self, owner: Timed, at_s: float | None) -> None:
        """Set or move the owner's deadline; None takes it away."""
        if at_s is None:
            self._deadlines.pop(owner, None)
        elif self._deadlines.get(owner) != at_s:
            self._deadlines[owner] = at_s
            self._count += 1
            heapq.heappush(self._heap, (at_s, self._count, owner))

    def next(self) -> float | None:
        """Give the nearest deadline."""
        while self._heap:
            at_s, _, owner = self._heap[0]
            if self._deadlines.get(owner) == at_s:
                return at_s
            heapq.heappop(self._heap)
        return None

    def due(self, now_s: float) -> list[Timed]:
        """Take out the owners whose deadline has passed, earliest first."""
        owners = []
        while (at_s := self.next()) is not None and at_s <= now_s:
            owner = heapq.heappop(self._heap)[2]
            del self._deadlines[owner]
            owners.append(owner)
        return owners


class Host:
    """Shared by all streams and consumers of one account."""

    def __init__(
        self,
        bus: Bus,
        *,
        identity: Identity,
        limits: Limits,
        random: RandomBelow,
        report: Report,
    ) -> None:
        self.bus = bus
        self.identity = identity
        self.limits = limits
        self.random = random
        self.report = report
        self.now = Instant(0.0, 0)
        self.timers = Timers()
        self._inbox: list[tuple[Callable[[Sequence[Message]], None], Sequence[Message]]] = []
        self._is_running = False
        self._workers: dict[Worker, None] = {}
        self._later: dict[Worker, None] = {}
        self._flushes: dict[Saver, None] = {}
        self._savers: dict[Saver, None] = {}

    def random_text(self, length: int) -> str:
        """Draw letters and digits, as names and ids need them."""
        return "".join(_ALPHABET[self.random(len(_ALPHABET))] for _ in range(length))

    def mono_of(self, wall_ns: int) -> float:
        """Say when a wall-clock time comes on the monotonic clock, as of this round."""
        return self.now.mono_s + (wall_ns - self.now.wall_ns) / 1e9

    def subscribe(
        self, pattern: str, handler: Callable[[Sequence[Message]], None]
    ) -> Callable[[], None]:
        """Subscribe on the bus; what arrives is handled inside a round."""

        def sink(messages: Sequence[Message], now: Instant) -> None:
            if self._is_running:
                self._inbox.append((handler, list(messages)))
                return
            self.now = now
            self.run(lambda: handler(messages))

        wrapped: Sink = sink
        return self.bus.subscribe(pattern, wrapped)

    def run(self, work: Callable[[], None]) -> None:
        """One round: do the work, then everything that follows from it."""
        self._is_running = True
        try:
            work()
            self._settle()
        finally:
            self._is_running = False

    def wake(self, worker: Worker) -> None:
        """Have ``worker.deliver`` called before the round ends."""
        self._workers[worker] = None

    def flush(self, saver: Saver) -> None:
        """Have ``saver.save`` called before the round ends, and before any answer waits on it."""
        self._flushes[saver] = None

    def save(self, saver: Saver) -> None:
        """Have ``saver.save`` called before the round ends, after all that is to be flushed."""
        self._savers[saver] = None

    def forget(self, owner: object) -> None:
        """Drop what is planned for something deleted."""
        self.timers.set(owner, None)  # type: ignore[arg-type]
        self._workers.pop(owner, None)  # type: ignore[call-overload]
        self._later.pop(owner, None)  # type: ignore[call-overload]
        self._flushes.pop(owner, None)  # type: ignore[call-overload]
        self._savers.pop(owner, None)  # type: ignore[call-overload]

    def next_deadline(self) -> float | None:
        """Say when ``advance`` is wanted: at once when work was cut into rounds."""
        return self.now.mono_s if self._later else self.timers.next()

    def advance(self, now: Instant) -> None:
        """Do what is due by now."""
        self.now = now
        later, self._later = self._later, {}

        def work() -> None:
            for worker in later:
                self.wake(worker)
            for owner in self.timers.due(now.mono_s):
                owner.on_timer()

        self.run(work)

    def _settle(self) -> None:
        while self._inbox or self._workers or self._flushes or self._savers:
            while self._inbox:
                handler, messages = self._inbox.pop(0)
                handler(messages)
            while self._workers:
                worker = next(iter(self._workers))
                del self._workers[worker]
                if worker.deliver():
                    self._later[worker] = None
            if self._inbox:
                continue
            savers = [*self._flushes, *self._savers]
            self._flushes, self._savers = {}, {}
            for saver in savers:
                saver.save()
