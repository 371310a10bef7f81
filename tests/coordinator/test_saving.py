"""How often a member saves what it has handled: one value for all its partitions, seldom."""

import asyncio
from functools import partial
from itertools import pairwise

import pytest

from millstream_coordinator import Group, MemoryServer, Message, naming, run_virtual
from millstream_coordinator.memory import MemoryClient, Observer
from millstream_coordinator.model import Timing
from millstream_coordinator.ports import Command, WriteKey

from .members import running
from .plane import STREAM, Plane, Process

PARTITIONS = 50
TIMING = Timing()


@pytest.fixture
def plane() -> Plane:
    plane = Plane(PARTITIONS)
    plane.settle("a")
    return plane


def saves(plane: Plane) -> list[float]:
    """When somebody's progress is written, from now on."""
    times: list[float] = []

    def note(_: Process, command: Command) -> bool:
        if isinstance(command, WriteKey) and command.key.startswith(naming.DONE_PREFIX):
            times.append(plane.now)
        return False

    plane.loses = note
    return times


def publish(plane: Plane, number: int, key: str = "k") -> None:
    plane.server.publish(STREAM, f"s.{number % PARTITIONS}.{key}", b"")


def progress(plane: Plane, member: str) -> int:
    """Up to which message of the stream the member's saved progress reaches."""
    saved = plane.saved(member)
    return 0 if saved is None else max(one.floor for one in saved.partitions.values())


def test_all_partitions_are_saved_together_once_in_an_interval(plane: Plane) -> None:
    times = saves(plane)
    for number in range(500):
        plane.after(number * 0.002, partial(publish, plane, number))
    plane.run(1.5)

    assert len(plane.handled) == 500
    assert progress(plane, "a") == 500
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert min(waits) >= TIMING.save_interval_s - 1e-9
    assert 10 <= len(times) <= 12


def test_a_burst_is_saved_once_in_so_many_messages(plane: Plane) -> None:
    times = saves(plane)
    plane.handler_s = 0.001
    for number in range(10_000):
        publish(plane, number)
    began = plane.now
    plane.until(lambda: len(plane.handled) == 10_000)

    by_time = (plane.now - began) / TIMING.save_interval_s
    by_count = 10_000 / TIMING.save_every
    assert by_count / 2 <= len(times) <= by_count + by_time + 1


def test_nothing_is_saved_while_nothing_is_handled(plane: Plane) -> None:
    publish(plane, 0)
    plane.run(1.0)
    times = saves(plane)
    plane.run(60.0)

    assert times == []


class Writes(Observer):
    """How often progress was saved."""

    def __init__(self) -> None:
        self.count = 0

    def wrote(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        self.count += key.startswith(naming.DONE_PREFIX)


def test_partitions_that_are_given_away_together_share_a_save() -> None:
    async def main() -> int:
        writes = Writes()
        server = MemoryServer(writes, seed=1)  # answers take a moment, as on a network
        server.add_stream(STREAM)
        ends = asyncio.Event()

        async def handle(message: Message) -> None:
            if message.key == b"slow":
                await ends.wait()

        a, b = (
            Group(server, stream=STREAM, name="g", partitions=PARTITIONS, member=member)
            for member in ("a", "b")
        )
        for group in (a, b):
            group.handler(key="s.*.{key}")(handle)
        # What is done stands above a message that waits in its lane, and is handled by the next.
        for key in ("slow", "slow", "fast"):
            for partition in range(PARTITIONS):
                server.publish(STREAM, f"s.{partition}.{key}", b"")
        async with running(a):
            await server.until(lambda: a.stats().handled == PARTITIONS)
            async with running(b):
                await asyncio.sleep(2.0)
                writes.count = 0
                ends.set()
                await server.until(lambda: len(b.partitions) == PARTITIONS // 2)
                count = writes.count
        return count

    assert 1 <= run_virtual(main()) <= 5
