from typing import Any

import pytest

from .harness import Inbox, World, _json


@pytest.fixture
def full(world: World) -> World:
    """Six messages on two subjects: a x x a x x."""
    world.stream(allow_direct=True)
    for token in "axxaxx":
        world.publish(f"s.{token}", token.encode(), {"X": "y"})
    return world


def get(world: World, request: Any = b"", subject: str = "") -> Inbox:
    inbox = world.inbox()
    payload = request if isinstance(request, bytes) else _json(request)
    where = f"$JS.API.DIRECT.GET.S.{subject}" if subject else "$JS.API.DIRECT.GET.S"
    world.bus.publish(where, payload, reply=inbox.pattern)
    world.settle()
    return inbox


def seqs(inbox: Inbox) -> list[int]:
    return [int(d.header("Nats-Sequence") or 0) for d in inbox.got if not d.status]


def test_the_message_comes_raw_with_where_it_is_from(full: World) -> None:
    delivery = get(full, {"seq": 1}).got[0]

    assert delivery.payload == b"a"
    assert delivery.headers == (
        b"NATS/1.0\r\nX: y\r\nNats-Stream: S\r\nNats-Subject: s.a\r\nNats-Sequence: 1\r\n"
        b"Nats-Time-Stamp: 2023-11-14T22:13:20Z\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("request_", "subject", "seq"),
    [
        ({"last_by_subj": "s.*"}, "", 6),
        (b"", "s.a", 4),
        (b"", "s.>", 6),
        ({"next_by_subj": "s.a", "seq": 2}, "", 4),
        ({"next_by_subj": "s.a"}, "", 1),
        ({"start_time": "2020-01-01T00:00:00Z"}, "", 1),
    ],
)
def test_a_message_is_found(full: World, request_: Any, subject: str, seq: int) -> None:
    assert seqs(get(full, request_, subject)) == [seq]


@pytest.mark.parametrize(
    ("request_", "subject", "status"),
    [
        ({"seq": 99}, "", "404 Message Not Found"),
        ({"last_by_subj": "s.q"}, "", "404 Message Not Found"),
        ({"next_by_subj": "s.a", "seq": 9}, "", "404 Message Not Found"),
        ({"multi_last": ["s.q"]}, "", "404 No Results"),
        (b"", "", "408 Empty Request"),
        ({}, "", "408 Empty Request"),
        ({"batch": 2}, "", "408 Empty Request"),
        (b"{x", "", "408 Malformed Request"),
        ({"seq": 1}, "s.a", "408 Bad Request"),
        ({"seq": 1, "last_by_subj": "x"}, "", "408 Bad Request"),
    ],
)
def test_what_cannot_be_answered_is_a_status(
    full: World, request_: Any, subject: str, status: str
) -> None:
    assert get(full, request_, subject).statuses == [status]


def test_without_headers_only_the_body_comes(full: World) -> None:
    delivery = get(full, {"no_hdr": True}, "s.a").got[0]

    assert (delivery.headers, delivery.payload) == (None, b"a")


def test_a_batch_counts_down_and_ends(full: World) -> None:
    inbox = get(full, {"next_by_subj": "s.x", "seq": 2, "batch": 3})

    assert seqs(inbox) == [2, 3, 5]
    assert [d.header("Nats-Num-Pending") for d in inbox.got] == ["3", "2", "1", "1"]
    assert [d.header("Nats-Last-Sequence") for d in inbox.got] == ["0", "2", "3", "5"]
    assert inbox.got[-1].status == "204 EOB"


def test_the_last_of_many_subjects_as_of_a_sequence(full: World) -> None:
    inbox = get(full, {"multi_last": ["s.a", "s.x"], "up_to_seq": 3})

    assert seqs(inbox) == [1, 3]
    assert inbox.got[-1].header("Nats-UpTo-Sequence") == "3"


def test_turning_direct_gets_off_leaves_no_responders(full: World) -> None:
    full.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["s.>"]})

    assert not full.bus.has_interest("$JS.API.DIRECT.GET.S")


def test_a_required_level_too_high_is_refused(full: World) -> None:
    headers = {"Nats-Required-Api-Level": "9"}

    answer = full.request("$JS.API.DIRECT.GET.S", b'{"seq":1}', headers)

    assert answer is not None
    assert answer.status == "412 Required Api Level"


def test_message_get_answers_in_json(full: World) -> None:
    message = full.api("STREAM.MSG.GET.S", {"seq": 1})["message"]

    assert message == {
        "subject": "s.a",
        "seq": 1,
        "hdrs": "TkFUUy8xLjANClg6IHkNCg0K",
        "data": "YQ==",
        "time": "2023-11-14T22:13:20Z",
    }


@pytest.mark.parametrize(
    ("body", "err_code"),
    [
        ({"seq": 9}, 10037),
        ({}, 10003),
        (b"", 10003),
        ({"seq": 1, "last_by_subj": "s.a"}, 10003),
        ({"seq": 1, "batch": 2}, 10003),
        ({"bogus": 1}, 10025),
    ],
)
def test_message_get_refuses_with_its_codes(full: World, body: Any, err_code: int) -> None:
    assert full.err_code("STREAM.MSG.GET.S", body) == err_code
