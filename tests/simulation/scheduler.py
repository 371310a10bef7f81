"""Virtual time: what happens next is the earliest thing that was arranged, and nothing else."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Scheduler:
    """A clock and what is to happen. Things arranged for one moment happen in that order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_events = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, when: float, action: Action) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when if when > self.now else self.now, self._count, action))

    def after(self, delay_s: float, action: Action) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, action))

    def run_until(self, when: float, num_events_max: int) -> bool:
        """Let everything happen up to a moment; False if that is more than so many events."""
        heap = self._heap
        while heap and heap[0][0] <= when:
            self.now, _, action = heapq.heappop(heap)
            self.num_events += 1
            action()
            if self.num_events > num_events_max:
                return False
        self.now = when
        return True
