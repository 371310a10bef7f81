"""Readers of what a member tells: each gets all of it, in order, until the end."""

import asyncio

from millstream_coordinator.readers import BACKLOG_MAX, Readers


async def _all(readers: Readers[int], first: tuple[int, ...] = ()) -> list[int]:
    return [one async for one in readers.read(first)]


async def test_every_reader_gets_what_is_told_from_its_beginning_on() -> None:
    readers = Readers[int]()
    async with asyncio.TaskGroup() as tasks:
        early = tasks.create_task(_all(readers))
        await asyncio.sleep(0)
        readers.tell(1)
        late = tasks.create_task(_all(readers, (0,)))
        await asyncio.sleep(0)
        readers.tell(2)
        readers.end()

    assert early.result() == [1, 2]
    assert late.result() == [0, 2]


async def test_who_comes_after_the_end_does_not_wait() -> None:
    readers = Readers[int]()
    readers.end()

    assert await _all(readers, (7,)) == [7]


async def test_a_reader_that_is_too_slow_misses_the_oldest() -> None:
    readers = Readers[int]()
    slow = readers.read((0,))
    assert await anext(slow) == 0

    for number in range(BACKLOG_MAX + 3):
        readers.tell(number)

    assert await anext(slow) == 3
    await slow.aclose()
