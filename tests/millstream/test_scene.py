"""The scene's pacing, without servers: every fault gets the backlog it waits for."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from millstream.demo.processes import Family
from millstream.demo.producer import FlightProducer
from millstream.demo.scene import Scene
from millstream.demo.settings import DemoSettings, Names

RECORDS = 1500
PARTITIONS = 10


class PromptKafka:
    """A producer whose records are acknowledged at once, to the partitions in turn."""

    in_flight = 0

    def __init__(self) -> None:
        self.fed = 0
        self.acknowledged: Counter[int] = Counter()

    def feed(self, count: int) -> None:
        for number in range(self.fed, min(RECORDS, self.fed + count)):
            self.acknowledged[number % PARTITIONS] += 1
            self.fed += 1


def handle_everything(scene: Scene) -> None:
    """What workers do that are quicker than the scene looks."""
    for number, line in scene.board.partitions.items():
        scene.board.settled.update((number, offset) for offset in range(line.produced))
        line.settled = line.produced


async def pumped_until(scene: Scene, kafka: PromptKafka, is_so: Callable[[], bool]) -> None:
    pump = asyncio.create_task(scene._pump(cast(FlightProducer, kafka)))
    try:
        async with asyncio.timeout(60):
            while not is_so():  # noqa: ASYNC110 - what the scene does is polled
                await asyncio.sleep(0.001)
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    one = Scene(DemoSettings(records=RECORDS), Names(), [], Family(tmp_path))
    one._check = lambda: None
    return one


async def test_a_fault_whose_backlog_was_handled_before_it_looked_gets_another(
    scene: Scene,
) -> None:
    kafka = PromptKafka()
    cap = scene._produced_max

    async def work_off_all() -> None:
        while kafka.fed < cap:
            await asyncio.sleep(0.001)
            handle_everything(scene)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work_off_all())
        tasks.create_task(pumped_until(scene, kafka, lambda: kafka.fed >= cap))
    handle_everything(scene)
    assert not scene.board.backlog

    due = asyncio.create_task(scene._due("kill", "the first fault"))
    await asyncio.sleep(0)
    scene._produced_max = cap  # the moment after this one is as near as can be
    await pumped_until(scene, kafka, due.done)

    await due
    assert scene.board.backlog >= scene._ahead // 2


async def test_nothing_is_produced_past_the_next_fault_while_no_fault_waits(scene: Scene) -> None:
    kafka = PromptKafka()
    looks = 0

    def looked_often() -> bool:
        nonlocal looks
        looks += 1
        handle_everything(scene)
        return looks > 200

    await pumped_until(scene, kafka, looked_often)

    assert kafka.fed == scene._produced_max
