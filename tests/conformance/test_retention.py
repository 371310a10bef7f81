"""Work-queue and interest retention: when a message goes, and which consumers are allowed."""

import pytest

from tests.conformance.client import MS, SECOND, ApiError, Client, Json, eventually


async def holds(client: Client, name: str, count: int) -> None:
    """Wait until the stream holds so many messages."""

    async def is_so() -> bool:
        return bool((await client.state(name))["messages"] == count)

    await eventually(is_so)


# --- work queue


async def test_an_ack_removes_the_message_of_a_work_queue(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")
    await client.fill(name, 3)
    await client.consumer(name, "c")
    got = await client.fetch(name, "c", 3)

    await client.ack(got[1])

    await holds(client, name, 2)
    assert (await client.error(f"STREAM.MSG.GET.{name}", {"seq": 2})).err_code == 10037


async def test_a_term_removes_it_too(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")
    await client.fill(name, 1)
    await client.consumer(name, "c")
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"+TERM")

    await holds(client, name, 0)


async def test_a_nak_and_mere_delivery_leave_it(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")
    await client.fill(name, 2)
    await client.consumer(name, "c")
    [message, _] = await client.fetch(name, "c", 2)

    await client.ack(message, b'-NAK {"delay": 5000000000}')

    assert (await client.state(name))["messages"] == 2


async def test_a_message_past_max_deliver_stays_in_the_work_queue(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="workqueue")
    await client.fill(name, 1)
    await client.consumer(name, "c", max_deliver=1)
    [message] = await client.fetch(name, "c", 1)

    await client.ack(message, b"-NAK")
    inbox = await client.pull(name, "c", {"batch": 1, "expires": 150 * MS})
    got, _ = await inbox.until_status()

    assert got == []
    assert (await client.state(name))["messages"] == 1


WORK_QUEUE_REFUSES: dict[str, tuple[Json, Json, ApiError]] = {
    "a second unfiltered consumer": (
        {},
        {},
        ApiError(10099, 400, "multiple non-filtered consumers not allowed on workqueue stream"),
    ),
    "a consumer with a filter in use": (
        {"filter_subject": "q.a.*"},
        {"filter_subject": "q.a.1"},
        ApiError(10100, 400, "filtered consumer not unique on workqueue stream"),
    ),
    "a filtered one beside an unfiltered one": (
        {},
        {"filter_subject": "q.a"},
        ApiError(10100, 400, "filtered consumer not unique on workqueue stream"),
    ),
    "one of several filters in use": (
        {"filter_subjects": ["q.a", "q.b"]},
        {"filter_subjects": ["q.b", "q.c"]},
        ApiError(10100, 400, "filtered consumer not unique on workqueue stream"),
    ),
}


@pytest.mark.parametrize(
    ("first", "second", "error"), WORK_QUEUE_REFUSES.values(), ids=WORK_QUEUE_REFUSES.keys()
)
async def test_a_work_queue_refuses(
    client: Client, name: str, first: Json, second: Json, error: ApiError
) -> None:
    await client.stream(name, subjects=["q.>"], retention="workqueue")
    await client.consumer(name, "one", **first)

    assert await client.consumer_error(name, "two", **second) == error


async def test_consumers_with_disjoint_filters_share_a_work_queue(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="workqueue")
    for subject in "abab":
        await client.stored(f"{name}.{subject}", subject.encode())
    await client.consumer(name, "one", filter_subject=f"{name}.a")
    await client.consumer(name, "two", filter_subject=f"{name}.b")

    got = await client.fetch(name, "one", 2)
    for message in got:
        await client.ack(message)

    assert [message.payload for message in got] == [b"a", b"a"]
    await holds(client, name, 2)


async def test_a_work_queue_needs_explicit_acks_from_pullers(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")

    error = await client.consumer_error(name, "c", ack_policy="none")

    assert error == ApiError(
        10084, 400, "consumer in pull mode requires explicit ack policy on workqueue stream"
    )


async def test_a_work_queue_needs_explicit_acks_from_push_consumers(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="workqueue")

    error = await client.consumer_error(name, "c", ack_policy="none", deliver_subject="to.x")

    assert error == ApiError(10098, 400, "workqueue stream requires explicit ack")


async def test_a_work_queue_delivers_all(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")

    error = await client.consumer_error(name, "c", deliver_policy="new")

    assert error == ApiError(10101, 400, "consumer must be deliver all on workqueue stream")


async def test_a_deleted_consumers_place_can_be_taken(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")
    await client.consumer(name, "one")
    await client.ok(f"CONSUMER.DELETE.{name}.one")

    await client.consumer(name, "two")


# --- interest


async def test_without_consumers_nothing_is_kept_but_a_sequence_is_used(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="interest")

    assert await client.stored(f"{name}.a") == 1
    assert await client.stored(f"{name}.a") == 2

    state = await client.state(name)
    assert (state["messages"], state["last_seq"]) == (0, 2)


async def test_a_message_goes_when_every_consumer_acked_it(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "one")
    await client.consumer(name, "two")
    await client.fill(name, 1)

    [message] = await client.fetch(name, "one", 1)
    await client.ack(message)
    after_one = (await client.state(name))["messages"]
    [message] = await client.fetch(name, "two", 1)
    await client.ack(message)

    assert after_one == 1
    await holds(client, name, 0)


async def test_only_consumers_whose_filter_matches_count(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "one", filter_subject=f"{name}.a")

    await client.stored(f"{name}.a")
    await client.stored(f"{name}.b")

    assert await client.subjects_of(name) == [f"{name}.a"]


async def test_ack_none_removes_with_delivery(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "c", ack_policy="none")
    await client.fill(name, 2)

    await client.fetch(name, "c", 2)

    await holds(client, name, 0)


async def test_deleting_the_last_interested_consumer_removes_what_it_held(
    client: Client, name: str
) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "one")
    await client.consumer(name, "two")
    await client.fill(name, 2)
    for message in await client.fetch(name, "one", 2):
        await client.ack(message)

    await client.ok(f"CONSUMER.DELETE.{name}.two")

    await holds(client, name, 0)


async def test_limits_still_hold_on_an_interest_stream(client: Client, name: str) -> None:
    await client.stream(name, retention="interest", max_msgs=2)
    await client.consumer(name, "c")

    await client.fill(name, 4)

    assert (await client.state(name))["first_seq"] == 3


async def test_ack_all_frees_everything_up_to_it(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "c", ack_policy="all")
    await client.fill(name, 4)
    got = await client.fetch(name, "c", 4)

    await client.ack(got[2])

    await holds(client, name, 1)


async def test_an_unacked_message_is_redelivered_and_kept(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")
    await client.consumer(name, "c", ack_wait=100 * MS)
    await client.fill(name, 1)
    await client.fetch(name, "c", 1)

    [again] = await client.fetch(name, "c", 1)

    assert again.num_delivered == 2
    assert (await client.state(name))["messages"] == 1


async def test_limits_retention_keeps_what_is_acked(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)
    await client.consumer(name, "c")
    for message in await client.fetch(name, "c", 2):
        await client.ack(message)

    assert (await client.state(name))["messages"] == 2


async def test_an_interest_stream_may_become_a_limits_stream(client: Client, name: str) -> None:
    await client.stream(name, retention="interest")

    body = {"name": name, "subjects": [f"{name}.>"], "retention": "limits"}
    await client.ok(f"STREAM.UPDATE.{name}", body)
    await client.fill(name, 1)

    assert (await client.state(name))["messages"] == 1


async def test_a_work_queue_consumer_waits_for_new_work(client: Client, name: str) -> None:
    await client.stream(name, retention="workqueue")
    await client.consumer(name, "c")
    inbox = await client.pull(name, "c", {"batch": 2, "expires": 5 * SECOND})
    await client.settle()

    await client.fill(name, 2)

    for message in await inbox.take(2):
        await client.ack(message)
    await holds(client, name, 0)
