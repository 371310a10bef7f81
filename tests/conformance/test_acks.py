"""Acknowledgements: all kinds, redelivery, and the limits that hang on them."""

import asyncio
import itertools
import json

import pytest

from tests.conformance.client import MS, SECOND, Client, Message, eventually


async def with_consumer(client: Client, name: str, count: int, **config: object) -> None:
    await client.stream(name)
    await client.fill(name, count)
    await client.consumer(name, "c", **config)


async def ack_pending(client: Client, name: str) -> int:
    return int((await client.consumer_info(name, "c"))["num_ack_pending"])


async def floor(client: Client, name: str) -> tuple[int, int]:
    found = (await client.consumer_info(name, "c"))["ack_floor"]
    return found["consumer_seq"], found["stream_seq"]


@pytest.mark.parametrize("payload", [b"", b"+ACK", b"+OK"])
async def test_the_payload_acknowledges(client: Client, name: str, payload: bytes) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)

    answer = await client.ack(message, payload)

    assert (answer.payload, answer.header_block) == (b"", None)
    assert await ack_pending(client, name) == 0
    assert await floor(client, name) == (1, 1)


async def test_an_ack_without_reply_works_too(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)
    assert message.reply is not None

    await client.publish(message.reply, b"+ACK")

    async def is_acked() -> bool:
        return await ack_pending(client, name) == 0

    await eventually(is_acked)


async def test_the_floor_waits_for_the_gap_to_close(client: Client, name: str) -> None:
    await with_consumer(client, name, 4)
    got = await client.fetch(name, "c", 4)

    floors = []
    for index in (1, 2, 0, 3):
        await client.ack(got[index])
        floors.append(await floor(client, name))

    assert floors == [(0, 0), (0, 0), (3, 3), (4, 4)]


async def test_acking_twice_is_answered_twice(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message)
    again = await client.ack(message)

    assert (again.payload, again.header_block) == (b"", None)


async def test_ack_all_acknowledges_everything_up_to_it(client: Client, name: str) -> None:
    await with_consumer(client, name, 5, ack_policy="all")
    got = await client.fetch(name, "c", 5)

    await client.ack(got[2])

    assert await ack_pending(client, name) == 2
    assert await floor(client, name) == (3, 3)


async def test_ack_none_moves_the_floor_with_delivery(client: Client, name: str) -> None:
    await with_consumer(client, name, 3, ack_policy="none")
    await client.fetch(name, "c", 2)

    assert await ack_pending(client, name) == 0
    assert await floor(client, name) == (2, 2)


async def test_an_ack_for_a_consumer_without_acks_has_no_responders(
    client: Client, name: str
) -> None:
    await with_consumer(client, name, 1, ack_policy="none")
    [message] = await client.fetch(name, "c", 1)

    assert (await client.ack(message)).status == (503, "")


# --- redelivery


async def test_a_nak_redelivers_at_once(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"-NAK")
    [again] = await client.fetch(name, "c", 1)

    assert again.payload == message.payload
    assert (again.num_delivered, again.stream_seq, again.consumer_seq) == (2, 1, 2)


@pytest.mark.parametrize("payload", [b'-NAK {"delay": 200000000}', b"-NAK 200ms"])
async def test_a_nak_with_a_delay_waits(client: Client, name: str, payload: bytes) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)
    before = asyncio.get_running_loop().time()

    await client.ack(message, payload)
    [again] = await client.fetch(name, "c", 1)

    assert again.num_delivered == 2
    assert asyncio.get_running_loop().time() - before > 0.15


async def test_a_naked_message_comes_before_new_ones(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)
    [first, _] = await client.fetch(name, "c", 2)

    await client.ack(first, b"-NAK")
    got = await client.fetch(name, "c", 2)

    assert [message.payload for message in got] == [b"1", b"3"]


async def test_an_unacked_message_comes_again_after_ack_wait(client: Client, name: str) -> None:
    await with_consumer(client, name, 1, ack_wait=150 * MS)
    [first] = await client.fetch(name, "c", 1)

    [second] = await client.fetch(name, "c", 1)

    assert (first.num_delivered, second.num_delivered) == (1, 2)
    assert (await client.consumer_info(name, "c"))["num_redelivered"] == 1


async def test_expired_messages_come_again_in_order(client: Client, name: str) -> None:
    await with_consumer(client, name, 5, ack_wait=150 * MS)
    await client.fetch(name, "c", 5)

    again = await client.fetch(name, "c", 5)

    assert [message.stream_seq for message in again] == [1, 2, 3, 4, 5]
    assert {message.num_delivered for message in again} == {2}


async def test_in_progress_resets_the_ack_timer(client: Client, name: str) -> None:
    await with_consumer(client, name, 1, ack_wait=3 * SECOND)
    [message] = await client.fetch(name, "c", 1)
    started = asyncio.get_running_loop().time()
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 10 * SECOND})
    assert await inbox.quiet(0.5)

    await client.ack(message, b"+WPI")
    again = await inbox.next()

    assert again.num_delivered == 2
    assert asyncio.get_running_loop().time() - started > 3.4


async def test_an_ack_ends_the_timer(client: Client, name: str) -> None:
    await with_consumer(client, name, 1, ack_wait=2 * SECOND)
    [message] = await client.fetch(name, "c", 1)
    await client.ack(message)

    inbox = await client.pull(name, "c", {"batch": 1, "expires": 3 * SECOND})
    got, end = await inbox.until_status()

    assert got == []
    assert end.status == (408, "Request Timeout")


async def test_backoff_sets_the_wait_of_each_delivery(client: Client, name: str) -> None:
    await with_consumer(client, name, 1, backoff=[100 * MS, SECOND], max_deliver=5)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(3):
        await client.fetch(name, "c", 1)
        times.append(loop.time())

    first, second = (later - earlier for earlier, later in itertools.pairwise(times))
    assert first > 0.08
    assert second > max(0.9, first)


async def test_max_deliver_ends_redelivery(client: Client, name: str) -> None:
    await with_consumer(client, name, 1, max_deliver=2)
    for _ in range(2):
        [message] = await client.fetch(name, "c", 1)
        await client.ack(message, b"-NAK")

    inbox = await client.pull(name, "c", {"batch": 1, "expires": 200 * MS})
    got, _ = await inbox.until_status()

    assert got == []
    assert (await client.state(name))["messages"] == 1


async def test_max_deliver_is_told_once(client: Client, name: str) -> None:
    events = await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{name}.c")
    await with_consumer(client, name, 1, max_deliver=1, ack_wait=100 * MS)
    await client.fetch(name, "c", 1)
    await client.pull(name, "c", {"batch": 1, "expires": 2 * SECOND})

    event = json.loads((await events.next()).payload)

    assert event["type"] == "io.nats.jetstream.advisory.v1.max_deliver"
    assert (event["stream"], event["consumer"]) == (name, "c")
    assert (event["stream_seq"], event["deliveries"]) == (1, 1)
    assert await events.quiet(0.2)


async def test_a_terminated_message_does_not_come_again(client: Client, name: str) -> None:
    await with_consumer(client, name, 2, ack_wait=100 * MS)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"+TERM bad content")
    [other] = await client.fetch(name, "c", 1)
    await client.ack(other)

    assert other.payload == b"2"
    assert await floor(client, name) == (2, 2)


async def test_term_is_told_with_its_reason(client: Client, name: str) -> None:
    events = await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{name}.c")
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"+TERM bad content")

    event = json.loads((await events.next()).payload)
    assert event["type"] == "io.nats.jetstream.advisory.v1.terminated"
    assert (event["stream_seq"], event["reason"]) == (1, "bad content")


async def test_nak_is_told(client: Client, name: str) -> None:
    events = await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.{name}.c")
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"-NAK")

    event = json.loads((await events.next()).payload)
    assert event["type"] == "io.nats.jetstream.advisory.v1.nak"
    assert (event["consumer_seq"], event["stream_seq"], event["deliveries"]) == (1, 1, 1)


async def test_ack_and_next_brings_the_next_message(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)
    [message] = await client.fetch(name, "c", 1)
    inbox = await client.subscribe()
    assert message.reply is not None

    await client.publish(message.reply, b"+NXT", reply=inbox.subject)

    assert (await inbox.next()).payload == b"2"
    assert await floor(client, name) == (1, 1)


@pytest.mark.parametrize("body", [b"+NXT 2", b'+NXT {"batch": 2}'])
async def test_ack_and_next_may_ask_for_more(client: Client, name: str, body: bytes) -> None:
    await with_consumer(client, name, 3)
    [message] = await client.fetch(name, "c", 1)
    inbox = await client.subscribe()
    assert message.reply is not None

    await client.publish(message.reply, body, reply=inbox.subject)

    assert [got.payload for got in await inbox.take(2)] == [b"2", b"3"]


async def test_a_garbled_ack_changes_nothing(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)
    assert message.reply is not None

    await client.publish(message.reply, b"perhaps")
    await client.settle()

    assert await ack_pending(client, name) == 1


async def test_an_ack_for_a_deleted_consumer_has_no_responders(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    [message] = await client.fetch(name, "c", 1)
    await client.ok(f"CONSUMER.DELETE.{name}.c")

    assert (await client.ack(message)).status == (503, "")


# --- max_ack_pending


async def test_max_ack_pending_holds_new_messages_back(client: Client, name: str) -> None:
    await with_consumer(client, name, 5, max_ack_pending=2)
    inbox = await client.pull(name, "c", {"batch": 5, "expires": 5 * SECOND})
    first, _ = await inbox.take(2)
    assert await inbox.quiet()

    await client.ack(first)

    assert (await inbox.next()).payload == b"3"
    assert await inbox.quiet(0.05)


async def test_redeliveries_pass_max_ack_pending(client: Client, name: str) -> None:
    await with_consumer(client, name, 3, max_ack_pending=1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"-NAK")
    [again] = await client.fetch(name, "c", 1)

    assert (again.payload, again.num_delivered) == (b"1", 2)


async def test_max_ack_pending_1_keeps_strict_order(client: Client, name: str) -> None:
    await with_consumer(client, name, 4, max_ack_pending=1)
    inbox = await client.pull(name, "c", {"batch": 10, "expires": 10 * SECOND})
    seen: list[tuple[bytes, int]] = []
    naked: set[bytes] = set()

    async def handle(message: Message) -> None:
        seen.append((message.payload, message.num_delivered))
        if message.payload in naked:
            await client.ack(message)
        else:
            naked.add(message.payload)
            await client.ack(message, b"-NAK")

    for _ in range(8):
        await handle(await inbox.next())

    assert seen == [(b"%d" % n, d) for n in range(1, 5) for d in (1, 2)]


async def test_a_stalled_pull_with_expires_times_out(client: Client, name: str) -> None:
    await with_consumer(client, name, 3, max_ack_pending=1)
    await client.fetch(name, "c", 1)

    inbox = await client.pull(name, "c", {"batch": 1, "expires": 150 * MS})
    _, end = await inbox.until_status()

    assert end.status == (408, "Request Timeout")


async def test_removing_a_message_ends_its_pending_ack(client: Client, name: str) -> None:
    await with_consumer(client, name, 2, ack_wait=200 * MS)
    await client.fetch(name, "c", 2)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    got = await client.fetch(name, "c", 1)

    assert [message.payload for message in got] == [b"2"]


async def test_a_purge_ends_all_pending_acks(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)
    await client.fetch(name, "c", 2)
    await client.ok(f"STREAM.PURGE.{name}")

    async def is_clear() -> bool:
        info = await client.consumer_info(name, "c")
        return bool(info["num_ack_pending"] == 0 and info["num_pending"] == 0)

    await eventually(is_clear)
    assert await client.stored(f"{name}.a", b"new") == 4
    assert [message.payload for message in await client.fetch(name, "c", 1)] == [b"new"]
