"""Pull requests: who gets what, and every status."""

import pytest

from .harness import World

SECOND = 10**9


@pytest.fixture
def waiting(world: World) -> World:
    world.stream()
    world.consumer()
    return world


def test_an_empty_request_is_for_one_message(waiting: World) -> None:
    waiting.publish_run([("s.a", b"1"), ("s.a", b"2")])

    assert waiting.pull().payloads == [b"1"]


@pytest.mark.parametrize(
    ("body", "count"),
    [(b"2", 2), (b"abc", 1), (b'{"batch":2}', 2), (b'{"batch":0}', 1), (b'{"bogus":1}', 1)],
)
def test_a_body_says_how_many(waiting: World, body: bytes, count: int) -> None:
    waiting.publish_run([("s.a", b"")] * 3)

    assert len(waiting.pull(body=body).payloads) == count


def test_a_message_arrives_under_its_own_subject(waiting: World) -> None:
    waiting.publish("s.some.where", b"1")

    delivery = waiting.pull().got[0]

    assert delivery.subject == "s.some.where"
    assert delivery.reply == f"$JS.ACK.S.C.1.1.1.{waiting.wall_ns}.0"


def test_requests_take_turns(waiting: World) -> None:
    first = waiting.pull(batch=3, expires=SECOND)
    second = waiting.pull(batch=3, expires=SECOND)

    waiting.publish_run([("s.a", b"%d" % n) for n in range(6)])

    assert first.payloads == [b"0", b"2", b"4"]
    assert second.payloads == [b"1", b"3", b"5"]


def test_a_request_is_told_when_its_time_is_up(waiting: World) -> None:
    pull = waiting.pull(batch=3, expires=SECOND)
    waiting.publish("s.a")

    waiting.advance(1.0)

    assert pull.statuses == ["408 Request Timeout"]
    assert pull.got[-1].header("Nats-Pending-Messages") == "2"
    assert pull.got[-1].header("Nats-Pending-Bytes") == "0"


def test_no_wait_without_messages_ends_at_once(waiting: World) -> None:
    assert waiting.pull(no_wait=True, batch=2).statuses == ["404 No Messages"]


def test_no_wait_takes_what_is_there(waiting: World) -> None:
    waiting.publish("s.a", b"1")

    pull = waiting.pull(no_wait=True, batch=2)

    assert pull.payloads == [b"1"]
    assert pull.statuses == ["404 No Messages"]


def test_no_wait_with_expiry_waits_for_the_first_message_only(waiting: World) -> None:
    pull = waiting.pull(no_wait=True, batch=5, expires=60 * SECOND)
    assert pull.got == []

    waiting.publish_run([("s.a", b"1"), ("s.a", b"2")])

    assert pull.payloads == [b"1", b"2"]
    assert pull.statuses == ["408 Request Timeout"]


def test_no_wait_on_a_stalled_consumer_waits_for_acks(world: World) -> None:
    world.stream()
    world.consumer(max_ack_pending=1)
    world.publish_run([("s.a", b"1"), ("s.a", b"2")])
    first = world.fetch(1)[0]

    pull = world.pull(no_wait=True, batch=1)
    assert pull.got == []
    world.ack(first)

    assert pull.payloads == [b"2"]


def test_max_bytes_ends_a_request_before_what_is_too_large(waiting: World) -> None:
    waiting.publish("s.a", b"x" * 50)

    pull = waiting.pull(batch=5, max_bytes=50, expires=SECOND)

    assert pull.statuses == ["409 Message Size Exceeds MaxBytes"]
    assert pull.got[0].header("Nats-Pending-Bytes") == "50"
    assert waiting.fetch(1)[0].payload == b"x" * 50


def test_max_bytes_counts_subject_reply_and_body(waiting: World) -> None:
    waiting.publish_run([("s.a", b"x" * 50)] * 2)

    pull = waiting.pull(batch=5, max_bytes=150, expires=SECOND)

    assert len(pull.payloads) == 1
    size = len("s.a") + len(pull.got[0].reply or "") + 50
    assert pull.got[-1].header("Nats-Pending-Bytes") == str(150 - size)


def test_a_batch_filled_with_bytes_left_is_told(waiting: World) -> None:
    waiting.publish("s.a", b"")

    assert waiting.pull(batch=1, max_bytes=500).statuses == ["409 Batch Completed"]


def test_heartbeats_flow_while_nothing_else_does(waiting: World) -> None:
    pull = waiting.pull(batch=1, expires=4 * SECOND, idle_heartbeat=SECOND)

    waiting.advance(3.5)

    assert pull.statuses == ["100 Idle Heartbeat"] * 3
    assert pull.got[0].header("Nats-Last-Consumer") == "0"


@pytest.mark.parametrize("expires", [0, 1_900_000_000])
def test_a_heartbeat_over_half_the_time_is_refused(waiting: World, expires: int) -> None:
    pull = waiting.pull(batch=1, expires=expires, idle_heartbeat=SECOND)

    assert pull.statuses == ["400 Bad Request - heartbeat value too large"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"batch":', "unexpected end of JSON input"),
        (
            b'{"batch":"x"}',
            "json: cannot unmarshal string into Go struct field .batch of type int",
        ),
    ],
)
def test_a_wrong_body_is_refused_in_gos_words(waiting: World, body: bytes, text: str) -> None:
    assert waiting.pull(body=body).statuses == [f"400 Bad Request - {text}"]


def test_requests_over_the_consumers_caps_are_refused(world: World) -> None:
    world.stream()
    world.consumer(max_batch=3, max_expires=SECOND, max_bytes=100)

    assert world.pull(batch=5).statuses == ["409 Exceeded MaxRequestBatch of 3"]
    assert world.pull(batch=1, expires=2 * SECOND).statuses == [
        "409 Exceeded MaxRequestExpires of 1s"
    ]
    assert world.pull(batch=1, max_bytes=101).statuses == ["409 Exceeded MaxRequestMaxBytes of 100"]


def test_more_requests_than_may_wait_are_refused(world: World) -> None:
    world.stream()
    world.consumer(max_waiting=1)
    world.pull(batch=1, expires=60 * SECOND)

    assert world.pull(batch=1, expires=SECOND).statuses == ["409 Exceeded MaxWaiting"]
    silent = world.pull(batch=1, expires=2 * SECOND, idle_heartbeat=SECOND)
    assert silent.got == []


def test_no_wait_behind_larger_requests_is_refused(waiting: World) -> None:
    waiting.api("CONSUMER.PAUSE.S.C", {"pause_until": "2030-01-01T00:00:00Z"})
    waiting.publish("s.a")
    waiting.pull(batch=10, expires=60 * SECOND)

    assert waiting.pull(batch=1, no_wait=True).statuses == ["408 Requests Pending"]


def test_a_request_nobody_listens_to_any_more_gets_nothing(waiting: World) -> None:
    gone = waiting.pull(batch=5, expires=60 * SECOND)
    waiting.leave(gone)
    here = waiting.pull(batch=1, expires=60 * SECOND)

    waiting.publish("s.a", b"1")

    assert gone.got == []
    assert here.payloads == [b"1"]


def test_waiting_requests_are_told_that_the_consumer_is_gone(waiting: World) -> None:
    pull = waiting.pull(batch=1, expires=60 * SECOND)

    waiting.api("CONSUMER.DELETE.S.C")

    assert pull.statuses == ["409 Consumer Deleted"]


def test_waiting_requests_are_told_that_the_stream_is_gone(waiting: World) -> None:
    pull = waiting.pull(batch=1, expires=60 * SECOND)

    waiting.api("STREAM.DELETE.S")

    assert pull.statuses == ["409 Consumer Deleted"]


def test_waiting_requests_are_told_that_the_server_stops(waiting: World) -> None:
    pull = waiting.pull(batch=1, expires=60 * SECOND)

    waiting.stop()

    assert pull.statuses == ["409 Server Shutdown"]
    assert pull.got[0].header("Nats-Pending-Messages") == "1"


def test_a_push_consumer_refuses_pulls(world: World) -> None:
    world.stream()
    world.consumer(deliver_subject="d")

    assert world.pull(batch=1).statuses == ["409 Consumer is push based"]


def test_info_counts_the_waiting(waiting: World) -> None:
    waiting.pull(batch=1, expires=60 * SECOND)
    waiting.leave(waiting.pull(batch=1, expires=60 * SECOND))

    assert waiting.info()["num_waiting"] == 1


def test_a_large_batch_is_served_over_several_rounds(waiting: World) -> None:
    waiting.api("CONSUMER.DELETE.S.C")
    waiting.consumer(max_ack_pending=-1)
    waiting.publish_run([("s.a", b"")] * 2500)

    pull = waiting.pull(batch=2500, expires=SECOND)

    assert pull.seqs == list(range(1, 2501))
