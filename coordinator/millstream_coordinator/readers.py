"""Who reads along in this process: each reader gets everything that is told while it reads."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Generic, TypeVar

BACKLOG_MAX = 10_000
"""So much is kept for one slow reader; then the oldest go."""

T = TypeVar("T")


class Readers(Generic[T]):
    """The readers of one member's news."""

    def __init__(self) -> None:
        self._queues: list[asyncio.Queue[T | None]] = []
        self._is_over = False

    def tell(self, news: T) -> None:
        """Hand something on to everybody who reads."""
        for queue in self._queues:
            _put(queue, news)

    def end(self) -> None:
        """Nothing more will come: readers end when they have read what there is."""
        self._is_over = True
        for queue in self._queues:
            _put(queue, None)

    async def read(self, first: Iterable[T] = ()) -> AsyncGenerator[T, None]:
        """Yield ``first`` and then what is told, until the end."""
        queue: asyncio.Queue[T | None] = asyncio.Queue(BACKLOG_MAX)
        for news in first:
            _put(queue, news)
        if self._is_over:
            _put(queue, None)
        self._queues.append(queue)
        try:
            while (news_or_end := await queue.get()) is not None:
                yield news_or_end
        finally:
            self._queues.remove(queue)


def _put(queue: asyncio.Queue[T | None], news: T | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(news)
