"""Reading and deleting single messages: STREAM.MSG.GET, STREAM.MSG.DELETE and Direct Get."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.conformance.client import ApiError, Client, Inbox, Json, Message


async def filled(client: Client, name: str, **config: object) -> None:
    """Six messages on a, b, a, b, c.d, a with payloads 1 to 6; the second has headers."""
    await client.stream(name, **config)
    for number, subject in enumerate(["a", "b", "a", "b", "c.d", "a"], start=1):
        headers = {"K": "v"} if number == 2 else None
        await client.stored(f"{name}.{subject}", b"%d" % number, headers)


async def get(client: Client, name: str, **body: object) -> Json:
    answer = await client.ok(f"STREAM.MSG.GET.{name}", body)
    message: Json = answer["message"]
    return message


# --- get


async def test_get_by_sequence_shows_subject_payload_headers_and_time(
    client: Client, name: str
) -> None:
    await filled(client, name)

    answer = await client.ok(f"STREAM.MSG.GET.{name}", {"seq": 2})

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_msg_get_response"
    message = answer["message"]
    assert datetime.fromisoformat(message.pop("time")).tzinfo is not None
    assert message == {
        "subject": f"{name}.b",
        "seq": 2,
        "data": base64.b64encode(b"2").decode(),
        "hdrs": base64.b64encode(b"NATS/1.0\r\nK: v\r\n\r\n").decode(),
    }


async def test_get_leaves_out_what_the_message_has_not(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"")

    message = await get(client, name, seq=1)

    assert "hdrs" not in message
    assert "data" not in message


async def test_a_subject_that_is_no_utf_8_is_told_with_a_sign_for_each_such_byte(
    client: Client, name: str
) -> None:
    await client.stream(name)
    await client.raw.send(b"PUB %b.a\xff\xc3\xa9 2\r\n{}\r\n" % name.encode())
    await client.stored(f"{name}.b", b"")

    message = await get(client, name, seq=1, next_by_subj=f"{name}.>")
    info = await client.ok(f"STREAM.INFO.{name}", {"subjects_filter": ">"})

    assert message["subject"] == f"{name}.a\ufffd\u00e9"
    assert info["state"]["subjects"] == {f"{name}.a\ufffd\u00e9": 1, f"{name}.b": 1}


async def test_get_without_headers(client: Client, name: str) -> None:
    await filled(client, name)

    assert "hdrs" not in await get(client, name, seq=2, no_hdr=True)


@pytest.mark.parametrize(
    ("subject", "seq"), [("{name}.a", 6), ("{name}.b", 4), ("{name}.*", 6), ("{name}.c.>", 5)]
)
async def test_get_the_last_of_a_subject(client: Client, name: str, subject: str, seq: int) -> None:
    await filled(client, name)

    assert (await get(client, name, last_by_subj=subject.format(name=name)))["seq"] == seq


@pytest.mark.parametrize(
    ("subject", "start", "seq"), [("{name}.b", 1, 2), ("{name}.b", 3, 4), ("{name}.>", 5, 5)]
)
async def test_get_the_next_of_a_subject(
    client: Client, name: str, subject: str, start: int, seq: int
) -> None:
    await filled(client, name)

    message = await get(client, name, next_by_subj=subject.format(name=name), seq=start)

    assert message["seq"] == seq


async def test_get_the_first_since_a_time(client: Client, name: str) -> None:
    await filled(client, name)
    third = await get(client, name, seq=3)

    assert (await get(client, name, start_time=third["time"]))["seq"] == 3


@pytest.mark.parametrize(
    "body", [{"seq": 99}, {"last_by_subj": "nothing"}, {"next_by_subj": "nothing", "seq": 1}]
)
async def test_get_finds_nothing(client: Client, name: str, body: Json) -> None:
    await filled(client, name)

    error = await client.error(f"STREAM.MSG.GET.{name}", body)

    assert error == ApiError(10037, 404, "no message found")


@pytest.mark.parametrize(
    "body", [None, {}, {"seq": 1, "last_by_subj": "x"}, {"batch": 2, "seq": 1}]
)
async def test_get_refuses(client: Client, name: str, body: Json | None) -> None:
    await filled(client, name)

    error = await client.error(f"STREAM.MSG.GET.{name}", body)

    assert error == ApiError(10003, 400, "bad request")


async def test_get_from_an_unknown_stream(client: Client, name: str) -> None:
    error = await client.error(f"STREAM.MSG.GET.{name}", {"seq": 1})

    assert error == ApiError(10059, 404, "stream not found")


# --- delete


@pytest.mark.parametrize("no_erase", [True, False])
@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_delete_removes_one_message(
    client: Client, name: str, storage: str, no_erase: bool
) -> None:
    await filled(client, name, storage=storage)

    answer = await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 3, "no_erase": no_erase})

    assert answer["type"] == "io.nats.jetstream.api.v1.stream_msg_delete_response"
    assert answer["success"] is True
    assert (await client.error(f"STREAM.MSG.GET.{name}", {"seq": 3})).err_code == 10037
    state = await client.state(name)
    assert (state["messages"], state["num_deleted"]) == (5, 1)


async def test_deleting_the_first_moves_the_first_sequence(client: Client, name: str) -> None:
    await filled(client, name)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 2})
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    state = await client.state(name)

    assert state["first_seq"] == 3
    assert "num_deleted" not in state


async def test_deleting_the_last_keeps_the_last_sequence(client: Client, name: str) -> None:
    await filled(client, name)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 6})

    assert (await client.state(name))["last_seq"] == 6
    assert await client.stored(f"{name}.a") == 7


async def test_the_last_of_a_subject_falls_back_when_it_is_deleted(
    client: Client, name: str
) -> None:
    await filled(client, name)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 6})

    assert (await get(client, name, last_by_subj=f"{name}.a"))["seq"] == 3


@pytest.mark.parametrize(
    ("storage", "seq", "error"),
    [
        ("file", 3, ApiError(10043, 400, "sequence 3 not found")),
        ("memory", 3, ApiError(10043, 400, "sequence 3 not found")),
        ("file", 99, ApiError(10057, 500, "stream store EOF")),
        ("memory", 99, ApiError(10043, 400, "sequence 99 not found")),
        ("file", 0, ApiError(10057, 500, "no message found")),
    ],
)
async def test_delete_of_what_is_not_there(
    client: Client, name: str, storage: str, seq: int, error: ApiError
) -> None:
    await filled(client, name, storage=storage)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 3})

    assert await client.error(f"STREAM.MSG.DELETE.{name}", {"seq": seq}) == error


@pytest.mark.parametrize(
    ("storage", "error"),
    [
        ("file", ApiError(10057, 500, "no message found")),
        ("memory", ApiError(10043, 400, "sequence 1 not found")),
    ],
)
async def test_delete_of_what_was_before_the_first_message(
    client: Client, name: str, storage: str, error: ApiError
) -> None:
    await filled(client, name, storage=storage)
    await client.ok(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    assert await client.error(f"STREAM.MSG.DELETE.{name}", {"seq": 1}) == error

    await client.ok(f"STREAM.PURGE.{name}")

    assert await client.error(f"STREAM.MSG.DELETE.{name}", {"seq": 1}) == error


async def test_delete_is_refused_where_denied(client: Client, name: str) -> None:
    await filled(client, name, deny_delete=True)

    error = await client.error(f"STREAM.MSG.DELETE.{name}", {"seq": 1})

    assert error == ApiError(10057, 500, "message delete not permitted")


# --- direct get


async def direct(client: Client, name: str, body: object = None, subject: str = "") -> Inbox:
    """Send a Direct Get; the answers come to the inbox."""
    inbox = await client.subscribe()
    to = f"$JS.API.DIRECT.GET.{name}" + (f".{subject}" if subject else "")
    payload = (
        b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    await client.publish(to, payload, reply=inbox.subject)
    return inbox


async def direct_one(client: Client, name: str, body: object = None, subject: str = "") -> Message:
    return await (await direct(client, name, body, subject)).next()


async def test_direct_get_answers_with_the_message_itself(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)
    stored = await get(client, name, seq=2)

    got = await direct_one(client, name, {"seq": 2})

    assert got.payload == b"2"
    assert got.headers == [
        ("K", "v"),
        ("Nats-Stream", name),
        ("Nats-Subject", f"{name}.b"),
        ("Nats-Sequence", "2"),
        ("Nats-Time-Stamp", stored["time"]),
    ]


async def test_direct_get_without_headers_is_the_bare_payload(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    got = await direct_one(client, name, {"seq": 2, "no_hdr": True})

    assert (got.header_block, got.payload) == (None, b"2")


@pytest.mark.parametrize(
    ("body", "seq"),
    [
        ({"last_by_subj": "{name}.b"}, 4),
        ({"last_by_subj": "{name}.*"}, 6),
        ({"next_by_subj": "{name}.b", "seq": 3}, 4),
        ({"next_by_subj": "{name}.b"}, 2),
    ],
)
async def test_direct_get_by(client: Client, name: str, body: dict[str, Any], seq: int) -> None:
    await filled(client, name, allow_direct=True)
    body = {k: v.format(name=name) if isinstance(v, str) else v for k, v in body.items()}

    assert (await direct_one(client, name, body)).header("Nats-Sequence") == str(seq)


@pytest.mark.parametrize(("subject", "seq"), [("{name}.b", 4), ("{name}.*", 6), ("{name}.c.d", 5)])
async def test_direct_get_of_the_last_by_the_api_subject(
    client: Client, name: str, subject: str, seq: int
) -> None:
    await filled(client, name, allow_direct=True)

    got = await direct_one(client, name, subject=subject.format(name=name))

    assert got.header("Nats-Sequence") == str(seq)


@pytest.mark.parametrize(
    ("body", "subject", "status"),
    [
        ({"seq": 99}, "", (404, "Message Not Found")),
        ({"last_by_subj": "nothing"}, "", (404, "Message Not Found")),
        (None, "nothing", (404, "Message Not Found")),
        (None, "", (408, "Empty Request")),
        (b"{", "", (408, "Malformed Request")),
        ({}, "", (408, "Empty Request")),
        ({"seq": 1, "last_by_subj": "x"}, "", (408, "Bad Request")),
        ({"multi_last": ["nothing"]}, "", (404, "No Results")),
    ],
)
async def test_direct_get_fails_with(
    client: Client, name: str, body: object, subject: str, status: tuple[int, str]
) -> None:
    await filled(client, name, allow_direct=True)

    assert (await direct_one(client, name, body, subject)).status == status


async def test_direct_get_needs_a_stream_that_allows_it(client: Client, name: str) -> None:
    await filled(client, name)

    assert (await direct_one(client, name, {"seq": 1})).status == (503, "")


async def test_direct_get_of_a_batch(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    inbox = await direct(client, name, {"next_by_subj": f"{name}.a", "seq": 1, "batch": 2})
    got, end = await inbox.until_status()

    assert [message.payload for message in got] == [b"1", b"3"]
    assert [message.header("Nats-Num-Pending") for message in got] == ["2", "1"]
    assert [message.header("Nats-Last-Sequence") for message in got] == ["0", "1"]
    assert end.status == (204, "EOB")
    assert end.headers == [("Nats-Num-Pending", "1"), ("Nats-Last-Sequence", "3")]


async def test_direct_get_of_a_batch_ends_with_the_stream(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    got, end = await (await direct(client, name, {"seq": 5, "batch": 10})).until_status()

    assert [message.payload for message in got] == [b"5", b"6"]
    assert end.headers == [("Nats-Num-Pending", "0"), ("Nats-Last-Sequence", "6")]


async def test_direct_get_of_a_batch_since_a_time(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)
    fourth = await get(client, name, seq=4)

    body = {"start_time": fourth["time"], "batch": 2}
    got, _ = await (await direct(client, name, body)).until_status()

    assert [message.payload for message in got] == [b"4", b"5"]


async def test_direct_get_of_a_batch_stops_at_max_bytes(client: Client, name: str) -> None:
    await client.stream(name, allow_direct=True)
    for _ in range(5):
        await client.stored(f"{name}.a", b"x" * 1000)

    body = {"seq": 1, "batch": 5, "max_bytes": 2000}
    got, end = await (await direct(client, name, body)).until_status()

    assert 0 < len(got) < 5
    assert end.status == (204, "EOB")


async def test_direct_get_of_the_last_of_many_subjects(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    body = {"multi_last": [f"{name}.a", f"{name}.b", f"{name}.c.>"]}
    got, end = await (await direct(client, name, body)).until_status()

    assert [message.payload for message in got] == [b"4", b"5", b"6"]
    assert end.status == (204, "EOB")
    assert end.header("Nats-UpTo-Sequence") == "6"
    assert end.header("Nats-Num-Pending") == "0"


async def test_direct_get_of_the_last_up_to_a_sequence(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    body = {"multi_last": [f"{name}.*"], "up_to_seq": 3}
    got, end = await (await direct(client, name, body)).until_status()

    assert [message.payload for message in got] == [b"2", b"3"]
    assert end.header("Nats-UpTo-Sequence") == "3"


async def test_direct_get_of_the_last_up_to_a_time(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)
    third = await get(client, name, seq=3)

    body = {"multi_last": [f"{name}.*"], "up_to_time": third["time"]}
    got, _ = await (await direct(client, name, body)).until_status()

    assert len(got) == 2


async def test_direct_get_of_more_than_1024_subjects_is_too_many(client: Client, name: str) -> None:
    await client.stream(name, allow_direct=True, storage="memory")
    for number in range(1025):
        await client.publish(f"{name}.{number}")
    await client.stored(f"{name}.end")

    got = await direct_one(client, name, {"multi_last": [f"{name}.*"]})

    assert got.status == (413, "Too Many Results")


async def test_direct_get_does_not_mind_unknown_fields(client: Client, name: str) -> None:
    await filled(client, name, allow_direct=True)

    got = await direct_one(client, name, {"seq": 1, "colour": "red"})

    assert got.payload == b"1"


async def test_times_are_utc_and_close_to_now(client: Client, name: str) -> None:
    await filled(client, name)

    stored = datetime.fromisoformat((await get(client, name, seq=1))["time"])

    assert abs((datetime.now(UTC) - stored).total_seconds()) < 60
