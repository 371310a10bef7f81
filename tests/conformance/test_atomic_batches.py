"""Atomic batches: all members are stored one after the other, or none is."""

import json

import pytest

from tests.conformance.client import ApiError, Client, Json


def member(batch: str, seq: int, commit: str | None = None, **more: str) -> dict[str, str]:
    headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(seq)}
    if commit is not None:
        headers["Nats-Batch-Commit"] = commit
    return headers | {key.replace("_", "-"): value for key, value in more.items()}


async def send(client: Client, stream: str, headers: dict[str, str], payload: bytes = b"") -> Json:
    """One member as a request; the empty flow acknowledgement is an empty dictionary."""
    answer = await client.request(f"{stream}.a", payload, headers)
    decoded: Json = json.loads(answer.payload) if answer.payload else {}
    return decoded


async def test_members_are_stored_when_the_last_commits(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)

    first = await send(client, name, member("b1", 1), b"1")
    second = await send(client, name, member("b1", 2), b"2")
    unseen = (await client.state(name))["messages"]
    last = await send(client, name, member("b1", 3, "1"), b"3")

    assert (first, second, unseen) == ({}, {}, 0)
    assert last == {"stream": name, "seq": 3, "batch": "b1", "count": 3}
    assert await client.payloads_of(name) == [b"1", b"2", b"3"]


async def test_an_end_of_batch_marker_is_not_stored(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await send(client, name, member("b1", 1), b"1")

    last = await send(client, name, member("b1", 2, "eob"), b"not stored")

    assert last == {"stream": name, "seq": 1, "batch": "b1", "count": 1}
    assert await client.payloads_of(name) == [b"1"]


async def test_stored_members_keep_their_batch_headers(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await send(client, name, member("b1", 1), b"1")
    await send(client, name, member("b1", 2, "1"), b"2")
    await client.consumer(name, "c")

    first, last = await client.fetch(name, "c", 2)

    assert dict(first.headers) == member("b1", 1)
    assert dict(last.headers) == member("b1", 2, "1")


async def test_other_publishers_do_not_get_between_the_members(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await send(client, name, member("b1", 1), b"b1")
    await client.stored(f"{name}.x", b"foreign")

    await send(client, name, member("b1", 2, "1"), b"b2")

    assert await client.payloads_of(name) == [b"foreign", b"b1", b"b2"]


async def test_a_gap_makes_the_batch_incomplete(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await send(client, name, member("b1", 1))

    answer = await send(client, name, member("b1", 3, "1"))

    assert answer["error"]["err_code"] == 10176
    assert (await client.state(name))["messages"] == 0


async def test_a_batch_starts_with_its_first_member(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)

    answer = await send(client, name, member("unknown", 2))

    assert answer["error"] == {
        "code": 400,
        "err_code": 10176,
        "description": "atomic publish batch is incomplete",
    }


async def test_a_failed_expectation_refuses_the_whole_batch(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await client.fill(name, 1)
    await send(client, name, member("b1", 1, Nats_Expected_Last_Sequence="0"))

    answer = await send(client, name, member("b1", 2, "1"))

    assert answer["error"]["err_code"] == 10071
    assert (await client.state(name))["messages"] == 1


async def test_a_met_expectation_lets_the_batch_pass(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await client.fill(name, 1)
    await send(client, name, member("b1", 1, Nats_Expected_Last_Sequence="1"))

    answer = await send(client, name, member("b1", 2, "1"))

    assert answer["seq"] == 3


async def test_two_members_with_one_message_id_refuse_the_batch(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    await send(client, name, member("b1", 1, Nats_Msg_Id="same"))

    answer = await send(client, name, member("b1", 2, "1", Nats_Msg_Id="same"))

    assert answer["error"]["err_code"] == 10201
    assert (await client.state(name))["messages"] == 0


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Nats-Batch-Id": "b"}, ApiError(10175, 400, "atomic publish sequence is missing")),
        (member("x" * 65, 1), ApiError(10179, 400, "atomic publish batch ID is invalid")),
        (member("b", 1, "yes"), ApiError(10200, 400, "atomic publish batch commit is invalid")),
        (
            member("b", 1, "1", Nats_Expected_Last_Msg_Id="x"),
            ApiError(
                10177,
                400,
                "atomic publish unsupported header used: Nats-Expected-Last-Msg-Id",
            ),
        ),
    ],
    ids=["no sequence", "a long id", "an odd commit", "an expected message id"],
)
async def test_a_member_is_refused_with(
    client: Client, name: str, headers: dict[str, str], error: ApiError
) -> None:
    await client.stream(name, allow_atomic=True)

    assert await client.refused(f"{name}.a", b"", headers) == error


async def test_a_stream_must_allow_batches(client: Client, name: str) -> None:
    await client.stream(name)

    error = await client.refused(f"{name}.a", b"", member("b1", 1))

    assert error == ApiError(10174, 400, "atomic publish is disabled")


async def test_a_batch_of_1001_is_too_large(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    for seq in range(1, 1001):
        await client.publish(f"{name}.a", b"", member("b1", seq))

    answer = await send(client, name, member("b1", 1001, "1"))

    assert answer["error"]["err_code"] == 10199
    assert (await client.state(name))["messages"] == 0


async def test_a_batch_of_1000_passes(client: Client, name: str) -> None:
    await client.stream(name, allow_atomic=True)
    for seq in range(1, 1000):
        await client.publish(f"{name}.a", b"", member("b1", seq))

    answer = await send(client, name, member("b1", 1000, "1"))

    assert (answer["seq"], answer["count"]) == (1000, 1000)
