"""Push delivery: interest, queue groups, heartbeats, flow control."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.conformance.client import MS, SECOND, Client, Inbox, eventually


async def pushed(client: Client, name: str, count: int = 0, **config: object) -> Inbox:
    """A stream of ``count`` messages and a push consumer ``c`` that delivers to the inbox."""
    inbox = await client.subscribe()
    await client.settle()
    await client.stream(name)
    await client.fill(name, count)
    await client.consumer(name, "c", deliver_subject=inbox.subject, **config)
    return inbox


async def test_messages_come_without_being_asked_for(client: Client, name: str) -> None:
    inbox = await pushed(client, name, 2)
    await client.stored(f"{name}.a", b"3")

    got = await inbox.take(3)

    assert [message.payload for message in got] == [b"1", b"2", b"3"]
    assert {message.subject for message in got} == {f"{name}.a"}
    assert [message.num_pending for message in got[:2]] == [1, 0]


async def test_nothing_is_delivered_before_somebody_listens(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 1)
    made = await client.consumer(name, "c", deliver_subject=f"later.{name}")
    assert "push_bound" not in made

    inbox = await client.subscribe(f"later.{name}")

    assert (await inbox.next()).num_delivered == 1
    assert (await client.consumer_info(name, "c"))["push_bound"] is True


async def test_delivery_stops_with_interest_and_goes_on_with_it(client: Client, name: str) -> None:
    inbox = await pushed(client, name, 1, ack_policy="none")
    await inbox.next()
    await inbox.unsubscribe()

    async def is_unbound() -> bool:
        return "push_bound" not in await client.consumer_info(name, "c")

    await eventually(is_unbound)
    await client.stored(f"{name}.a", b"2")
    again = await client.subscribe(inbox.subject)

    assert (await again.next()).payload == b"2"


async def test_a_deliver_group_shares_the_messages(client: Client, name: str) -> None:
    subject = f"group.{name}"
    one = await client.subscribe(subject, queue="g")
    two = await client.subscribe(subject, queue="g")
    await client.settle()
    await client.stream(name)
    await client.consumer(name, "c", deliver_subject=subject, deliver_group="g", ack_policy="none")
    await client.fill(name, 60)

    async def all_came() -> bool:
        await client.settle()
        return len(one.waiting) + len(two.waiting) == 60

    await eventually(all_came)
    assert one.waiting
    assert two.waiting


async def test_a_deliver_group_needs_a_member_of_the_group(client: Client, name: str) -> None:
    subject = f"group.{name}"
    plain = await client.subscribe(subject)
    await client.settle()
    await client.stream(name)
    await client.fill(name, 1)
    await client.consumer(name, "c", deliver_subject=subject, deliver_group="g")

    assert await plain.quiet()

    member = await client.subscribe(subject, queue="g")
    assert (await member.next()).payload == b"1"


async def test_max_ack_pending_holds_delivery_back(client: Client, name: str) -> None:
    inbox = await pushed(client, name, 4, max_ack_pending=2)
    first, _ = await inbox.take(2)
    assert await inbox.quiet()

    await client.ack(first)

    assert (await inbox.next()).payload == b"3"


async def test_unacked_messages_are_pushed_again(client: Client, name: str) -> None:
    inbox = await pushed(client, name, 1, ack_wait=150 * MS)

    first, second = await inbox.take(2)

    assert (first.num_delivered, second.num_delivered) == (1, 2)


async def test_heartbeats_come_while_idle(client: Client, name: str) -> None:
    inbox = await pushed(client, name, 1, idle_heartbeat=150 * MS, ack_policy="none")
    assert (await inbox.next()).payload == b"1"

    beat = await inbox.next()

    assert beat.status == (100, "Idle Heartbeat")
    assert beat.headers == [("Nats-Last-Consumer", "1"), ("Nats-Last-Stream", "1")]
    assert beat.reply is None


async def test_flow_control_asks_and_waits_for_the_answer(client: Client, name: str) -> None:
    """The first window is 2 MiB: over half of it an answer is asked for, above it nothing comes."""
    inbox = await client.subscribe()
    await client.settle()
    await client.stream(name, storage="memory")
    payload = b"x" * 100_000
    for _ in range(60):
        await client.publish(f"{name}.a", payload)
    await client.settle()
    await client.consumer(
        name,
        "c",
        deliver_subject=inbox.subject,
        ack_policy="none",
        flow_control=True,
        idle_heartbeat=500 * MS,
    )
    size, request = 0, None
    while request is None:
        message = await inbox.next()
        if message.status is None:
            size += len(message.payload)
        elif message.status == (100, "FlowControl Request"):
            request = message
    assert size <= 2_200_000
    assert request.reply is not None
    assert request.reply.startswith(f"$JS.FC.{name}.c.")
    assert len(request.reply.split(".")[-1]) == 4

    received = size // 100_000
    stalled = None
    while stalled is None:
        message = await inbox.next()
        received += message.status is None
        stalled = message.header("Nats-Consumer-Stalled")
    assert stalled == request.reply
    assert received < 60

    await client.publish(request.reply)
    while received < 60:
        message = await inbox.next()
        if message.status == (100, "FlowControl Request") and message.reply:
            await client.publish(message.reply)
        elif message.status is None:
            received += 1
        elif message.header("Nats-Consumer-Stalled"):
            await client.publish(message.header("Nats-Consumer-Stalled") or "")


async def test_an_ephemeral_push_consumer_goes_with_its_listener(client: Client, name: str) -> None:
    inbox = await pushed(client, name, durable_name=None, inactive_threshold=100 * MS)

    await inbox.unsubscribe()

    async def is_gone() -> bool:
        return "error" in await client.api(f"CONSUMER.INFO.{name}.c")

    await eventually(is_gone)


async def test_last_per_subject_is_what_a_watcher_needs(client: Client, name: str) -> None:
    inbox = await client.subscribe()
    await client.settle()
    await client.stream(name)
    for number, subject in enumerate("abac", start=1):
        await client.stored(f"{name}.{subject}", b"%d" % number)
    await client.consumer(
        name,
        "c",
        deliver_subject=inbox.subject,
        deliver_policy="last_per_subject",
        filter_subject=f"{name}.>",
        ack_policy="none",
    )

    got = await inbox.take(3)
    await client.stored(f"{name}.a", b"5")
    later = await inbox.next()

    assert [(m.payload, m.num_pending) for m in got] == [(b"2", 2), (b"3", 1), (b"4", 0)]
    assert (later.payload, later.num_pending) == (b"5", 0)


async def test_original_replay_keeps_the_distances(client: Client, name: str) -> None:
    inbox = await client.subscribe()
    await client.stream(name)
    await client.stored(f"{name}.a", b"1")
    assert await inbox.quiet(0.3)
    await client.stored(f"{name}.a", b"2")
    times = [
        datetime.fromisoformat(
            (await client.ok(f"STREAM.MSG.GET.{name}", {"seq": seq}))["message"]["time"]
        )
        for seq in (1, 2)
    ]
    distance = (times[1] - times[0]).total_seconds()
    before = asyncio.get_running_loop().time()
    await client.consumer(
        name, "c", deliver_subject=inbox.subject, replay_policy="original", ack_policy="none"
    )

    assert [message.payload for message in await inbox.take(2)] == [b"1", b"2"]
    assert asyncio.get_running_loop().time() - before > 0.9 * distance


@pytest.mark.parametrize("taken", [True, False])
async def test_a_bound_consumer_keeps_its_deliver_subject(
    client: Client, name: str, taken: bool
) -> None:
    inbox = await pushed(client, name)
    if not taken:
        await inbox.unsubscribe()

        async def is_unbound() -> bool:
            return "push_bound" not in await client.consumer_info(name, "c")

        await eventually(is_unbound)

    body = {"deliver_subject": f"other.{name}"}
    if taken:
        error = await client.consumer_error(name, "c", **body)
        assert error.err_code == 10013
    else:
        await client.consumer(name, "c", **body)


async def test_an_advisory_tells_of_creation_and_deletion(client: Client, name: str) -> None:
    events = await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.*.{name}.c")
    await client.stream(name)
    await client.consumer(name, "c", deliver_subject=f"x.{name}")
    await client.ok(f"CONSUMER.DELETE.{name}.c")

    made, gone = (json.loads(event.payload) for event in await events.take(2))

    assert (made["action"], gone["action"]) == ("create", "delete")
    assert made["type"] == "io.nats.jetstream.advisory.v1.consumer_action"
    assert (made["stream"], made["consumer"]) == (name, "c")


async def test_a_paused_consumer_delivers_when_the_pause_ends(client: Client, name: str) -> None:
    inbox = await pushed(client, name)
    until = datetime.now(UTC) + timedelta(seconds=0.5)
    paused = await client.ok(f"CONSUMER.PAUSE.{name}.c", {"pause_until": until.isoformat()})
    await client.fill(name, 1)

    assert paused["type"] == "io.nats.jetstream.api.v1.consumer_pause_response"
    assert paused["paused"] is True
    assert 0 < paused["pause_remaining"] <= SECOND
    assert await inbox.quiet()
    assert (await inbox.next()).payload == b"1"


async def test_a_resumed_consumer_delivers_again(client: Client, name: str) -> None:
    inbox = await pushed(client, name)
    body = {"pause_until": "2100-01-01T00:00:00Z"}
    await client.ok(f"CONSUMER.PAUSE.{name}.c", body)
    assert (await client.consumer_info(name, "c"))["paused"] is True

    resumed = await client.ok(f"CONSUMER.PAUSE.{name}.c")
    await client.fill(name, 1)

    assert resumed["paused"] is False
    assert (await inbox.next()).payload == b"1"
