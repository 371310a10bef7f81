"""Ordered consumers as nats-py runs them on top of plain ones."""

import asyncio

from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from tests.conformance.client import Client


async def test_an_ordered_consumer_reads_a_stream_in_order(
    client: Client, js: JetStreamContext, name: str
) -> None:
    await client.stream(name)
    await client.fill(name, 300)

    subscription = await js.subscribe(f"{name}.>", ordered_consumer=True)
    got = [await subscription.next_msg(timeout=5) for _ in range(300)]

    assert [message.data for message in got] == [b"%d" % n for n in range(1, 301)]
    await subscription.unsubscribe()


async def test_an_ordered_consumer_is_an_ephemeral_with_flow_control(
    client: Client, js: JetStreamContext, name: str
) -> None:
    await client.stream(name)

    subscription = await js.subscribe(f"{name}.>", ordered_consumer=True)
    config = (await subscription.consumer_info()).config

    assert config.ack_policy == api.AckPolicy.NONE
    assert config.flow_control is True
    assert config.mem_storage is True
    assert config.max_deliver == 1
    await subscription.unsubscribe()


async def test_an_ordered_consumer_goes_on_after_its_consumer_was_deleted(
    client: Client, js: JetStreamContext, name: str
) -> None:
    await client.stream(name)
    await client.fill(name, 3)
    seen: list[bytes] = []
    enough = asyncio.Event()

    async def take(message: Msg) -> None:
        seen.append(message.data)
        if len(seen) == 5:
            enough.set()

    subscription = await js.subscribe(
        f"{name}.>", ordered_consumer=True, cb=take, idle_heartbeat=0.5
    )
    names = (await client.ok(f"CONSUMER.NAMES.{name}"))["consumers"]
    await client.ok(f"CONSUMER.DELETE.{name}.{names[0]}")
    for payload in (b"4", b"5"):
        await client.stored(f"{name}.a", payload)

    async with asyncio.timeout(20):
        await enough.wait()
    assert seen == [b"1", b"2", b"3", b"4", b"5"]
    await subscription.unsubscribe()


async def test_large_messages_flow_under_flow_control(
    client: Client, js: JetStreamContext, name: str
) -> None:
    await client.stream(name, storage="memory")
    for number in range(80):
        await client.publish(f"{name}.a", b"%02d" % number + b"x" * 100_000)
    await client.settle()

    subscription = await js.subscribe(f"{name}.>", ordered_consumer=True)
    got = [(await subscription.next_msg(timeout=10)).data[:2] for _ in range(80)]

    assert got == [b"%02d" % number for number in range(80)]
    await subscription.unsubscribe()


async def test_a_pull_subscription_fetches_and_acks(
    client: Client, nc: NatsClient, name: str
) -> None:
    await client.stream(name)
    await client.fill(name, 10)
    subscription = await nc.jetstream().pull_subscribe(f"{name}.>", durable="c")

    got = await subscription.fetch(10, timeout=5)
    for message in got:
        await message.ack_sync()

    assert [message.data for message in got] == [b"%d" % n for n in range(1, 11)]
    assert [message.metadata.sequence.stream for message in got] == list(range(1, 11))
    info = await subscription.consumer_info()
    assert info.num_ack_pending == 0
    assert info.ack_floor is not None
    assert info.ack_floor.stream_seq == 10
