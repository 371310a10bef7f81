"""nats-py as the client: what people use must work."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from millstream_broker import Broker, ServerOptions


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker() as broker:
        yield broker


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[Client]:
    client = await nats.connect(broker.url)
    yield client
    await client.close()


async def test_publish_and_subscribe_with_headers(client: Client) -> None:
    subscription = await client.subscribe("a.*")

    await client.publish("a.1", b"hello", headers={"Key": "value"})

    message = await subscription.next_msg(timeout=5)
    assert (message.subject, message.data, message.headers) == ("a.1", b"hello", {"Key": "value"})


async def test_a_request_is_answered(client: Client) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(b"re: " + message.data)

    await client.subscribe("service", cb=answer)

    assert (await client.request("service", b"x", timeout=5)).data == b"re: x"


async def test_a_request_to_nobody_fails_at_once(client: Client) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("nobody", b"x", timeout=5)


async def test_a_queue_group_shares_the_messages(broker: Broker, client: Client) -> None:
    seen: Counter[int] = Counter()
    workers = [await nats.connect(broker.url) for _ in range(3)]
    done = asyncio.Event()

    for number, worker in enumerate(workers):

        async def work(message: Msg, number: int = number) -> None:
            seen[number] += 1
            if seen.total() == 300:
                done.set()

        await worker.subscribe("work", queue="group", cb=work)
        await worker.flush()

    for _ in range(300):
        await client.publish("work")
    async with asyncio.timeout(10):
        await done.wait()

    assert set(seen) == {0, 1, 2}
    for worker in workers:
        await worker.close()


async def test_draining_hands_over_what_has_come(broker: Broker, client: Client) -> None:
    got: list[bytes] = []
    other = await nats.connect(broker.url)

    async def take(message: Msg) -> None:
        await asyncio.sleep(0)
        got.append(message.data)

    await other.subscribe("a", cb=take)
    await other.flush()
    for number in range(500):
        await client.publish("a", b"%d" % number)
    await client.flush()

    await other.drain()

    assert got == [b"%d" % number for number in range(500)]


async def test_unsubscribe_after_a_count(client: Client) -> None:
    subscription = await client.subscribe("a")
    await subscription.unsubscribe(limit=2)
    for _ in range(5):
        await client.publish("a")
    await client.flush()

    assert subscription.pending_msgs == 2


async def test_a_payload_at_the_limit_passes(client: Client) -> None:
    subscription = await client.subscribe("big")
    payload = bytes(1_048_576)

    await client.publish("big", payload)

    assert (await subscription.next_msg(timeout=5)).data == payload


async def test_a_client_reconnects_to_a_server_that_came_back() -> None:
    async with Broker() as broker:
        port = broker.port
        back = asyncio.Event()

        async def reconnected() -> None:
            back.set()

        client = await nats.connect(
            broker.url, reconnect_time_wait=0.02, reconnected_cb=reconnected
        )
        subscription = await client.subscribe("a")
        await client.flush()
    async with Broker(port=port):
        async with asyncio.timeout(10):
            await back.wait()
        await client.publish("a", b"again")

        assert (await subscription.next_msg(timeout=5)).data == b"again"
        await client.close()


async def test_credentials_in_the_url() -> None:
    settings = ServerOptions(host="127.0.0.1", port=0, user="u", password="p")
    async with Broker(options=settings) as broker:
        client = await nats.connect(broker.url.replace("//", "//u:p@"))
        await client.flush()
        await client.close()
