"""Pull requests: what a request may ask for and every status that can answer it."""

import asyncio
import json
from datetime import datetime

import pytest

from tests.conformance.client import MS, SECOND, Client
from tests.conformance.conftest import OpenServer


async def with_consumer(client: Client, name: str, count: int = 0, **config: object) -> None:
    await client.stream(name)
    await client.fill(name, count)
    await client.consumer(name, "c", **config)


# --- what comes


async def test_a_message_comes_under_its_stored_subject_with_an_ack_reply(
    client: Client, name: str
) -> None:
    await with_consumer(client, name, 2)
    inbox = await client.pull(name, "c")

    got = await inbox.next()

    time = (await client.ok(f"STREAM.MSG.GET.{name}", {"seq": 1}))["message"]["time"]
    assert (got.subject, got.payload, got.header_block) == (f"{name}.a", b"1", None)
    assert got.reply is not None
    assert got.reply.startswith(f"$JS.ACK.{name}.c.1.1.1.")
    assert got.num_pending == 1
    stored_ns = int(got.ack_tokens[5])
    assert stored_ns // 1000 == round(datetime.fromisoformat(time).timestamp() * 1_000_000)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (None, 1),
        (b"3", 3),
        ({"batch": 2}, 2),
        ({"batch": 0}, 1),
        ({"batch": -5}, 1),
        (b"garbage", 1),
        ({"batch": 2, "colour": "red"}, 2),
    ],
)
async def test_the_body_asks_for_so_many(
    client: Client, name: str, body: object, count: int
) -> None:
    await with_consumer(client, name, 5)

    inbox = await client.pull(name, "c", body)

    got = await inbox.take(count)
    assert [message.payload for message in got] == [b"%d" % n for n in range(1, count + 1)]
    assert await inbox.quiet(0.05)


async def test_messages_that_come_later_fill_a_waiting_request(client: Client, name: str) -> None:
    await with_consumer(client, name)
    inbox = await client.pull(name, "c", {"batch": 2, "expires": 5 * SECOND})
    await client.settle()

    await client.fill(name, 2)

    assert [message.payload for message in await inbox.take(2)] == [b"1", b"2"]


async def test_waiting_requests_are_served_in_turn(client: Client, name: str) -> None:
    await with_consumer(client, name)
    one = await client.pull(name, "c", {"batch": 2, "expires": 5 * SECOND})
    two = await client.pull(name, "c", {"batch": 2, "expires": 5 * SECOND})
    await client.settle()

    await client.fill(name, 4)

    assert [message.payload for message in await one.take(2)] == [b"1", b"3"]
    assert [message.payload for message in await two.take(2)] == [b"2", b"4"]


async def test_a_request_nobody_waits_for_any_more_gets_nothing(client: Client, name: str) -> None:
    await with_consumer(client, name)
    gone = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await gone.unsubscribe()
    await client.settle()
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await client.settle()

    await client.fill(name, 1)

    assert (await inbox.next()).num_delivered == 1


async def test_the_filter_decides_what_comes(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in ("a.1", "b.1", "a.2", "c.1"):
        await client.stored(f"{name}.{subject}", subject.encode())
    await client.consumer(name, "c", filter_subjects=[f"{name}.a.*", f"{name}.c.>"])

    got = await client.fetch(name, "c", 3)

    assert [message.payload for message in got] == [b"a.1", b"a.2", b"c.1"]
    assert [message.stream_seq for message in got] == [1, 3, 4]
    assert [message.consumer_seq for message in got] == [1, 2, 3]
    assert [message.num_pending for message in got] == [2, 1, 0]


@pytest.mark.parametrize(
    ("policy", "payloads"),
    [
        ({"deliver_policy": "last"}, [b"5"]),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 4}, [b"4", b"5"]),
        ({"deliver_policy": "last_per_subject", "filter_subject": ">"}, [b"4", b"5"]),
    ],
)
async def test_the_deliver_policy_decides_where_it_starts(
    client: Client, name: str, policy: dict[str, object], payloads: list[bytes]
) -> None:
    await client.stream(name)
    for number, subject in enumerate("ababa", start=1):
        await client.stored(f"{name}.{subject}", b"%d" % number)
    await client.consumer(name, "c", **policy)

    got = await client.fetch(name, "c", len(payloads))

    assert [message.payload for message in got] == payloads


async def test_last_per_subject_goes_on_with_what_is_stored_later(
    client: Client, name: str
) -> None:
    await client.stream(name)
    for subject in "aba":
        await client.stored(f"{name}.{subject}")
    await client.consumer(name, "c", deliver_policy="last_per_subject", filter_subject=">")
    await client.stored(f"{name}.b")

    got = await client.fetch(name, "c", 3)

    assert [message.stream_seq for message in got] == [2, 3, 4]


async def test_by_start_time_starts_at_the_time(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 4)
    third = await client.ok(f"STREAM.MSG.GET.{name}", {"seq": 3})
    time = third["message"]["time"]
    await client.consumer(name, "c", deliver_policy="by_start_time", opt_start_time=time)

    assert [message.payload for message in await client.fetch(name, "c", 2)] == [b"3", b"4"]


async def test_new_gets_only_what_is_stored_after_creation(client: Client, name: str) -> None:
    await with_consumer(client, name, 2, deliver_policy="new")
    await client.stored(f"{name}.a", b"new")

    [got] = await client.fetch(name, "c", 1)

    assert (got.payload, got.stream_seq, got.consumer_seq) == (b"new", 3, 1)


async def test_headers_only_tells_the_size_instead_of_the_payload(
    client: Client, name: str
) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"12345", {"K": "v"})
    await client.stored(f"{name}.a", b"")
    await client.consumer(name, "c", headers_only=True)

    first, second = await client.fetch(name, "c", 2)

    assert (first.payload, first.headers) == (b"", [("K", "v"), ("Nats-Msg-Size", "5")])
    assert second.headers == [("Nats-Msg-Size", "0")]


async def test_gaps_are_passed_over(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 5)
    for seq in (1, 3, 4):
        await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": seq})
    await client.consumer(name, "c")

    got = await client.fetch(name, "c", 2)

    assert [(m.stream_seq, m.consumer_seq, m.num_pending) for m in got] == [(2, 1, 1), (5, 2, 0)]


# --- statuses


async def test_no_wait_of_an_empty_stream_is_404(client: Client, name: str) -> None:
    await with_consumer(client, name)

    got = await (await client.pull(name, "c", {"batch": 5, "no_wait": True})).next()

    assert got.header_block == b"NATS/1.0 404 No Messages\r\n\r\n"
    assert got.payload == b""


async def test_no_wait_of_too_few_is_what_there_is_and_404(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)

    inbox = await client.pull(name, "c", {"batch": 5, "no_wait": True})
    got, end = await inbox.until_status()

    assert len(got) == 3
    assert end.status == (404, "No Messages")


async def test_no_wait_of_enough_has_no_status(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)

    inbox = await client.pull(name, "c", {"batch": 3, "no_wait": True})

    assert len(await inbox.take(3)) == 3
    assert await inbox.quiet(0.05)


async def test_no_wait_with_expires_waits_for_the_first_message(client: Client, name: str) -> None:
    await with_consumer(client, name)
    inbox = await client.pull(name, "c", {"batch": 5, "no_wait": True, "expires": 5 * SECOND})
    await client.settle()
    assert await inbox.quiet(0.05)

    await client.fill(name, 1)

    got, end = await inbox.until_status()
    assert [message.payload for message in got] == [b"1"]
    assert end.status is not None
    assert end.status[0] in (404, 408)


async def test_an_expired_request_is_408_with_what_it_did_not_get(
    client: Client, name: str
) -> None:
    await with_consumer(client, name, 2)

    inbox = await client.pull(name, "c", {"batch": 5, "expires": 150 * MS})
    got, end = await inbox.until_status()

    assert len(got) == 2
    assert end.header_block == (
        b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n"
    )


async def test_an_expired_request_tells_the_bytes_left(client: Client, name: str) -> None:
    await with_consumer(client, name)

    body = {"batch": 5, "max_bytes": 1000, "expires": 100 * MS}
    _, end = await (await client.pull(name, "c", body)).until_status()

    assert end.header("Nats-Pending-Messages") == "5"
    assert end.header("Nats-Pending-Bytes") == "1000"


async def test_heartbeats_come_while_nothing_else_does(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    await client.fetch(name, "c", 1)
    body = {"batch": 1, "expires": 5 * SECOND, "idle_heartbeat": 100 * MS}

    inbox = await client.pull(name, "c", body)
    beats = await inbox.take(2)

    for beat in beats:
        assert beat.status == (100, "Idle Heartbeat")
        assert beat.headers == [("Nats-Last-Consumer", "1"), ("Nats-Last-Stream", "1")]


async def test_a_heartbeat_over_half_of_the_expiry_is_400(client: Client, name: str) -> None:
    await with_consumer(client, name)

    body = {"batch": 1, "expires": SECOND, "idle_heartbeat": 600 * MS}
    got = await (await client.pull(name, "c", body)).next()

    assert got.status == (400, "Bad Request - heartbeat value too large")


async def test_broken_json_is_400(client: Client, name: str) -> None:
    await with_consumer(client, name)

    got = await (await client.pull(name, "c", b'{"batch": }')).next()

    assert got.status is not None
    assert got.status[0] == 400
    assert got.status[1].startswith("Bad Request - ")


async def test_max_bytes_ends_a_request_that_is_full(client: Client, name: str) -> None:
    await client.stream(name)
    for _ in range(5):
        await client.stored(f"{name}.a", b"x" * 1000)
    await client.consumer(name, "c")

    body = {"batch": 5, "max_bytes": 2500, "expires": 5 * SECOND}
    got, end = await (await client.pull(name, "c", body)).until_status()

    assert len(got) == 2
    assert end.status == (409, "Message Size Exceeds MaxBytes")
    assert end.header("Nats-Pending-Messages") == "3"


async def test_a_first_message_over_max_bytes_is_not_sent(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"x" * 1000)
    await client.consumer(name, "c")

    body = {"batch": 1, "max_bytes": 500, "expires": 5 * SECOND}
    got, end = await (await client.pull(name, "c", body)).until_status()

    assert got == []
    assert end.status == (409, "Message Size Exceeds MaxBytes")
    assert (await client.consumer_info(name, "c"))["num_pending"] == 1


async def test_a_filled_batch_with_bytes_left_is_completed(client: Client, name: str) -> None:
    await with_consumer(client, name, 3)

    body = {"batch": 2, "max_bytes": 100_000, "expires": 5 * SECOND}
    got, end = await (await client.pull(name, "c", body)).until_status()

    assert len(got) == 2
    assert end.status == (409, "Batch Completed")
    assert end.header("Nats-Pending-Messages") == "0"


@pytest.mark.parametrize(
    ("config", "body", "status"),
    [
        ({"max_batch": 2}, {"batch": 3}, (409, "Exceeded MaxRequestBatch of 2")),
        (
            {"max_expires": SECOND},
            {"batch": 1, "expires": 2 * SECOND},
            (409, "Exceeded MaxRequestExpires of 1s"),
        ),
        (
            {"max_bytes": 100},
            {"batch": 1, "max_bytes": 200},
            (409, "Exceeded MaxRequestMaxBytes of 100"),
        ),
    ],
)
async def test_a_request_over_the_consumers_limit_is_409(
    client: Client,
    name: str,
    config: dict[str, object],
    body: dict[str, object],
    status: tuple[int, str],
) -> None:
    await with_consumer(client, name, 0, **config)

    assert (await (await client.pull(name, "c", body)).next()).status == status


async def test_more_requests_than_may_wait_are_409(client: Client, name: str) -> None:
    await with_consumer(client, name, max_waiting=1)
    first = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await client.settle()

    second = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})

    assert (await second.next()).status == (409, "Exceeded MaxWaiting")
    await client.fill(name, 1)
    assert (await first.next()).payload == b"1"


async def test_deleting_the_consumer_ends_every_waiting_request(client: Client, name: str) -> None:
    await with_consumer(client, name)
    one = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    two = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await client.settle()

    await client.ok(f"CONSUMER.DELETE.{name}.c")

    assert (await one.next()).status == (409, "Consumer Deleted")
    assert (await two.next()).status == (409, "Consumer Deleted")


async def test_deleting_the_stream_ends_a_waiting_request(client: Client, name: str) -> None:
    await with_consumer(client, name)
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})
    await client.settle()

    await client.ok(f"STREAM.DELETE.{name}")

    assert (await inbox.next()).status == (409, "Consumer Deleted")


async def test_a_push_consumer_cannot_be_pulled(client: Client, name: str) -> None:
    await with_consumer(client, name, deliver_subject="to.nobody")

    got = await (await client.pull(name, "c", {"batch": 1})).next()

    assert got.status == (409, "Consumer is push based")


async def test_an_unknown_consumer_has_no_responders(client: Client, name: str) -> None:
    await client.stream(name)

    inbox = await client.pull(name, "nobody", {"batch": 1})
    got = await inbox.next()

    assert got.header_block == (
        f"NATS/1.0 503\r\nNats-Subject: $JS.API.CONSUMER.MSG.NEXT.{name}.nobody\r\n\r\n".encode()
    )


async def test_a_required_api_level_that_is_not_met_is_412(client: Client, name: str) -> None:
    await with_consumer(client, name, 1)
    inbox = await client.subscribe()

    await client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{name}.c",
        b"",
        {"Nats-Required-Api-Level": "99"},
        inbox.subject,
    )

    assert (await inbox.next()).status == (412, "Required Api Level")


async def test_a_server_that_stops_tells_the_waiting_requests(open_server: OpenServer) -> None:
    async with open_server() as server, Client.open(server.port) as client:
        await with_consumer(client, "S")
        client.made_streams.clear()
        inbox = await client.pull("S", "c", {"batch": 3, "expires": 30 * SECOND})
        await client.settle()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.stop(), name="stop")
            got = await inbox.next()

    assert got.status == (409, "Server Shutdown")
    assert got.header("Nats-Pending-Messages") == "3"


async def test_a_no_wait_request_of_a_stalled_consumer_waits_for_acks(
    client: Client, name: str
) -> None:
    await with_consumer(client, name, 3, max_ack_pending=1)
    [first] = await client.fetch(name, "c", 1)
    inbox = await client.pull(name, "c", {"batch": 1, "no_wait": True})
    assert await inbox.quiet()

    await client.ack(first)

    assert (await inbox.next()).payload == b"2"


async def test_api_requests_and_pulls_share_a_connection(client: Client, name: str) -> None:
    await with_consumer(client, name)
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 5 * SECOND})

    answer = await client.request(f"{name}.a", b"x")

    assert json.loads(answer.payload)["seq"] == 1
    assert (await inbox.next()).payload == b"x"
