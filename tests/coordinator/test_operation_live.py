"""Operators and a running group: what is written to the bucket is what the members then do."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from millstream_coordinator.group import Group
from millstream_coordinator.model import FailurePolicy, Message
from millstream_coordinator.operation import admin, letters
from millstream_coordinator.operation.letters import Choice
from millstream_coordinator.operation.metrics import Metrics
from millstream_coordinator.operation.overview import PartitionRow, read_overview
from millstream_coordinator.operation.positions import reset
from millstream_coordinator.operation.target import Target
from millstream_coordinator.operation.waiting import drained, moved, resized, wait
from millstream_coordinator.partitioning.topic import Start
from tests.coordinator.made_group import make_stream
from tests.coordinator.test_web import get
from tests.helpers.servers import Server

T = TypeVar("T")

WAIT_S = 20.0
PARTITIONS = 4


async def _is(value: Awaitable[T], test: Callable[[T], bool]) -> bool:
    return test(await value)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until it is so."""
    async with asyncio.timeout(WAIT_S):
        while not await is_so():  # noqa: ASYNC110 - a bounded poll
            await asyncio.sleep(0.02)


class Team:
    """Two members, and what they handled; messages whose body is in ``bad`` fail."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.target = Target(client, name)
        self.groups: list[Group] = []
        self.handled: list[str] = []
        self.bad: set[str] = set()

    async def handle(self, message: Message) -> None:
        text = message.data.decode()
        if text in self.bad:
            raise ValueError(text)
        self.handled.append(text)

    async def publish(self, partition: int, key: str, *texts: str) -> None:
        for text in texts:
            subject = f"{self.name}.{partition}.{key}"
            await self.client.jetstream().publish(subject, text.encode())

    async def handles(self, *texts: str) -> None:
        """Wait until it has handled these, all of them, in this order per call."""

        async def has() -> bool:
            return len(self.handled) >= len(texts)

        await until(has)
        assert tuple(self.handled) == texts

    async def stands_still(self, number: int) -> bool:
        """Whether its owner has read that the partition is paused."""
        return any(
            stats.is_paused
            for group in self.groups
            for partition, stats in group.stats().partitions.items()
            if partition == number
        )

    async def row(self, number: int) -> PartitionRow:
        return (await read_overview(self.target, listen=False)).partitions[number]

    async def owners(self) -> dict[int, str | None]:
        rows = (await read_overview(self.target, listen=False)).partitions
        return {it.partition: it.owner for it in rows}


@asynccontextmanager
async def team(
    server: Server,
    client: Client,
    name: str,
    policy: FailurePolicy = FailurePolicy.DEAD_LETTER,
    *,
    rule: str = "{partition}.{key}",
) -> AsyncIterator[Team]:
    """Members ``a`` and ``b`` who share four partitions, from when they do."""
    await make_stream(client, name)
    one = Team(client, name)
    groups = [
        Group(
            server.url,
            stream=name,
            name=name,
            partitions=PARTITIONS,
            member=member,
            on_failure=policy,
            max_attempts=1,
        )
        for member in "ab"
    ]
    one.groups = groups
    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            group.handler(key=f"{name}.{rule}")(one.handle)
            tasks.create_task(group.run(handle_signals=False))
        try:

            async def is_shared() -> bool:
                return all(len(group.partitions) == 2 for group in groups)

            await until(is_shared)
            yield one
        finally:
            await asyncio.gather(*(group.stop() for group in groups))


async def test_a_paused_partition_hands_nothing_out_until_it_is_resumed(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        await admin.pause(one.target, partitions=[0])
        await until(lambda: _is(one.row(0), lambda row: row.is_paused))
        await until(lambda: _is(one.stands_still(0), bool))
        await one.publish(0, "k", "held")
        await one.publish(1, "k", "free")
        await one.handles("free")
        await admin.resume(one.target)
        await one.handles("free", "held")


async def test_a_drained_member_gives_away_what_it_has_and_takes_it_back_when_undrained(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        await admin.drain(one.target, "a")
        assert await wait(one.target, drained("a"), timeout_s=WAIT_S) is None
        assert "a" not in (await one.owners()).values()
        await until(lambda: _is(one.owners(), lambda it: set(it.values()) == {"b"}))
        await admin.undrain(one.target, "a")
        await until(lambda: _is(one.owners(), lambda it: [*it.values()].count("a") == 2))


async def test_a_moved_partition_goes_to_its_member_and_the_others_are_balanced(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        mine = [number for number, owner in (await one.owners()).items() if owner == "a"]
        await admin.move(one.target, mine, "b")
        assert await wait(one.target, moved(mine, "b"), timeout_s=WAIT_S) is None
        owners = await one.owners()
        assert {owners[number] for number in mine} == {"b"}
        await until(lambda: _is(one.owners(), lambda it: None not in it.values()))
        owners = await one.owners()

    assert sorted(str(it) for it in owners.values()) == ["a", "a", "b", "b"]


async def test_a_reset_has_a_running_partition_handled_again(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        await one.publish(2, "k", "1", "2", "3")
        await one.handles("1", "2", "3")
        await reset(one.target, Start.parse("sequence:2"), partitions=[2])
        await one.handles("1", "2", "3", "2", "3")


async def test_a_stopped_partition_tries_again_when_resumed_and_goes_on(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name, FailurePolicy.STOP) as one:
        one.bad.add("odd")
        await one.publish(0, "k", "odd", "next")
        await until(lambda: _is(one.row(0), lambda row: row.stopped_seq == 1))
        row = await one.row(0)
        one.bad.clear()
        await admin.resume(one.target)
        await one.handles("odd", "next")

    assert row.stopped_error == "ValueError: odd"


async def test_a_stopped_partition_goes_on_without_the_message_that_is_skipped(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name, FailurePolicy.STOP) as one:
        one.bad.add("odd")
        await one.publish(0, "k", "odd", "next")
        await until(lambda: _is(one.row(0), lambda row: row.stopped_seq == 1))
        await admin.resume(one.target, skip=True)
        await one.handles("next")
        (letter,) = (await letters.list_letters(one.target)).letters

    assert (letter.data, letter.reason) == (b"odd", "skip")


async def test_a_dead_letter_is_handled_when_it_is_replayed(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        one.bad.add("odd")
        await one.publish(0, "k", "odd", "next")
        await one.handles("next")
        one.bad.clear()
        await letters.replay(one.target, Choice(key="k"))
        await one.handles("next", "odd")
        left = (await letters.list_letters(one.target)).letters

    assert left == ()


async def test_a_parked_key_is_handled_in_its_order_when_it_is_replayed_and_goes_on(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name, FailurePolicy.PARK) as one:
        one.bad.add("odd")
        await one.publish(0, "k", "odd", "2", "3")
        await one.publish(0, "other", "free")
        await one.handles("free")
        await until(lambda: _is(letters.list_letters(one.target), lambda it: len(it.letters) == 3))
        one.bad.clear()
        await letters.replay(one.target, Choice(key="k"))
        await one.handles("free", "odd", "2", "3")
        await until(lambda: _is(letters.list_letters(one.target), lambda it: not it.parked))
        await one.publish(0, "k", "4")
        await one.handles("free", "odd", "2", "3", "4")


async def test_a_parked_key_goes_on_when_its_letters_are_dropped(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name, FailurePolicy.PARK) as one:
        one.bad.add("odd")
        await one.publish(0, "k", "odd")
        await until(lambda: _is(letters.list_letters(one.target), lambda it: bool(it.parked)))
        await letters.drop(one.target, Choice(key="k"))
        await until(lambda: _is(letters.list_letters(one.target), lambda it: not it.parked))
        await one.publish(0, "k", "next")
        await one.handles("next")


async def test_a_resize_under_load_keeps_the_order_of_each_key(
    server: Server, client: Client, name: str
) -> None:
    keys = {f"k{number}": number for number in range(8)}
    texts: dict[str, list[str]] = {key: [] for key in keys}
    async with team(server, client, name, rule="{partition}.{partition:8}.{key}") as one:

        async def publish(count: int) -> None:
            for _ in range(count):
                for key, fine in keys.items():
                    texts[key].append(f"{key}:{len(texts[key])}")
                    subject = f"{name}.{fine % PARTITIONS}.{fine}.{key}"
                    await client.jetstream().publish(subject, texts[key][-1].encode())

        await publish(10)
        await admin.resize(one.target, 8)
        await publish(10)
        assert await wait(one.target, resized(8), timeout_s=WAIT_S) is None
        assert (await one.target.config()).active == 8
        await publish(5)
        await until(lambda: _is(_count(one), lambda count: count >= 200))
        owners = await one.owners()

    handled = {key: [it for it in one.handled if it.startswith(f"{key}:")] for key in keys}
    assert handled == texts
    assert sorted(str(it) for it in owners.values()) == ["a"] * 4 + ["b"] * 4


async def _count(one: Team) -> int:
    return len(one.handled)


async def test_a_worker_that_serves_is_healthy_and_counts_what_it_handles(
    server: Server, client: Client, name: str
) -> None:
    async with team(server, client, name) as one:
        metrics = Metrics(one.groups[1], registry=CollectorRegistry())
        async with metrics.serve("127.0.0.1:0") as url:
            for number in range(PARTITIONS):
                await one.publish(number, "k", "x")
            await until(lambda: _is(_counted(one), lambda count: count == PARTITIONS))
            status, _, health = await get(url, "/healthz")
            _, _, page = await get(url, "/metrics")

    assert status.endswith("200 OK")
    assert json.loads(health)["member"] == "b"
    assert f'millstream_handled_messages_total{{group="{name}"}} 2.0' in page.decode()
    assert f'millstream_partitions{{group="{name}"}} 2.0' in page.decode()


async def _counted(one: Team) -> int:
    return sum(group.stats().handled for group in one.groups)
