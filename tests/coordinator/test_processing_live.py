"""Policies, back-pressure and fast handlers on real servers: what memory cannot show."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from nats.aio.client import Client

from millstream_coordinator import Group, Message, read_view
from millstream_coordinator.errors import GroupMissing
from millstream_coordinator.operation.letters import Choice, replay
from millstream_coordinator.operation.target import Target
from tests.helpers.servers import Server

from .members import running, until


async def fill(client: Client, name: str, keys: list[str], size: int = 0) -> None:
    stream = client.jetstream()
    await stream.add_stream(name=name.upper(), subjects=[f"{name}.*.*"])
    for number, key in enumerate(keys):
        body = str(number).encode().ljust(size, b" ")
        await stream.publish(f"{name}.0.{key}", body)


async def until_read(read: Callable[[], Awaitable[bool]], *, wanted: bool) -> None:
    async with asyncio.timeout(60):
        while await read() is not wanted:  # noqa: ASYNC110 - what a server shows is polled
            await asyncio.sleep(0.02)


async def is_parked(client: Client, name: str) -> bool:
    try:
        record = (await read_view(client, name)).parked.get(0)
    except GroupMissing:
        return False
    return record is not None and bool(record.keys)


async def has_unacked(client: Client, name: str, consumer: str) -> bool:
    info = await client.jetstream().consumer_info(name.upper(), consumer)
    return bool(info.num_ack_pending)


async def test_a_parked_key_outlives_its_bucket_and_is_replayed_in_order(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, ["bad", "good", "bad", "bad", "good"])
    is_mended = asyncio.Event()
    handled: list[tuple[bytes | None, int]] = []
    group = Group(
        server.url,
        stream=name.upper(),
        name=name,
        partitions=1,
        on_failure="park",
        max_attempts=1,
    )

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        if message.key == b"bad" and not is_mended.is_set():
            raise ValueError("not yet")
        handled.append((message.key, int(message.data)))

    async with running(group):
        await until(lambda: group.stats().parked == 3)
        await client.jetstream().delete_stream(f"KV_MILLSTREAM_{name}")
        await until_read(lambda: is_parked(client, name), wanted=True)
        is_mended.set()
        await replay(Target(client, name), Choice(key="bad"))
        await client.jetstream().publish(f"{name}.0.bad", b"5")
        await until(lambda: len(handled) == 6)
        await until_read(lambda: is_parked(client, name), wanted=False)

    assert [number for key, number in handled if key == b"bad"] == [0, 2, 3, 5]
    letters = await client.jetstream().stream_info(f"MILLSTREAM_DLQ_{name}")
    assert letters.state.messages == 0


async def test_bytes_in_hand_are_bounded_and_a_message_over_the_bound_comes_alone(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, [f"k{n}" for n in range(30)], size=20_000)
    await client.jetstream().publish(f"{name}.0.large", b"30".ljust(300_000, b" "))
    release = asyncio.Event()
    in_hand: Counter[str] = Counter()
    most = 0
    group = Group(
        server.url, stream=name.upper(), name=name, partitions=1, max_pending_bytes=100_000
    )

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        nonlocal most
        in_hand["now"] += len(message.data)
        most = max(most, in_hand["now"])
        await release.wait()
        in_hand["now"] -= len(message.data)
        in_hand["handled"] += 1

    async with running(group):
        await until(lambda: in_hand["now"] >= 60_000)
        release.set()
        await until(lambda: in_hand["handled"] == 31)

    assert most <= 320_000


async def test_many_fast_messages_are_each_handled_once_and_acked(
    server: Server, client: Client, name: str
) -> None:
    stream = client.jetstream()
    await stream.add_stream(name=name.upper(), subjects=[f"{name}.*.*"])
    for number in range(5000):
        await client.publish(f"{name}.0.k{number % 50}", str(number).encode())
    await client.flush()
    seen: Counter[int] = Counter()
    order: dict[bytes | None, list[int]] = {}
    group = Group(server.url, stream=name.upper(), name=name, partitions=1)

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        seen[int(message.data)] += 1
        order.setdefault(message.key, []).append(int(message.data))

    async with running(group):
        await until(lambda: len(seen) == 5000)
        consumer = f"{name}-p0-e{group.partitions[0]}"
        await until_read(lambda: has_unacked(client, name, consumer), wanted=False)

    assert set(seen.values()) == {1}
    assert all(numbers == sorted(numbers) for numbers in order.values())
