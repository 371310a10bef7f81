import pytest

from .harness import World

WORK = {"retention": "workqueue"}
INTEREST = {"retention": "interest"}


def refused(world: World, name: str, **config: object) -> int:
    body = {
        "stream_name": "S",
        "config": {"durable_name": name, "ack_policy": "explicit", **config},
    }
    return world.err_code(f"CONSUMER.CREATE.S.{name}", body)


# Work queue


def test_an_acked_message_leaves_the_work_queue(world: World) -> None:
    world.stream(**WORK)
    world.consumer()
    world.publish_run([("s.a", b""), ("s.a", b"")])
    first, second = world.fetch(2)

    world.ack(first)
    world.ack(second, b"+TERM")

    assert world.state()["messages"] == 0


def test_a_nak_leaves_the_message_in_the_work_queue(world: World) -> None:
    world.stream(**WORK)
    world.consumer()
    world.publish("s.a")

    world.ack(world.fetch()[0], b"-NAK")

    assert world.state()["messages"] == 1


@pytest.mark.parametrize(
    ("config", "err_code"),
    [
        ({"ack_policy": "none"}, 10084),
        ({"ack_policy": "none", "deliver_subject": "x"}, 10098),
        ({"ack_policy": "all"}, 10098),
        ({"deliver_policy": "new"}, 10101),
    ],
)
def test_a_work_queue_consumer_acks_everything_from_the_start(
    world: World, config: dict[str, str], err_code: int
) -> None:
    world.stream(**WORK)

    assert refused(world, "C", **config) == err_code


def test_a_second_unfiltered_consumer_is_refused(world: World) -> None:
    world.stream(**WORK)
    world.consumer("a")

    assert refused(world, "b") == 10099


def test_an_overlapping_consumer_is_refused(world: World) -> None:
    world.stream(**WORK)
    world.consumer("a", filter_subject="s.a")

    assert refused(world, "b", filter_subject="s.*") == 10100
    assert refused(world, "b", filter_subjects=["s.b", "s.a"]) == 10100
    world.consumer("b", filter_subject="s.b")


def test_an_update_may_not_make_consumers_overlap(world: World) -> None:
    world.stream(**WORK)
    world.consumer("a", filter_subject="s.a")
    world.consumer("b", filter_subject="s.b")

    assert refused(world, "b", filter_subject="s.>") == 10100


def test_a_filter_is_free_again_when_its_consumer_is_deleted(world: World) -> None:
    world.stream(**WORK)
    world.consumer("a", filter_subject="s.a")
    world.publish("s.a")

    world.api("CONSUMER.DELETE.S.a")
    world.consumer("b", filter_subject="s.a")

    assert len(world.fetch(1, "b")) == 1


# Interest


def test_without_interest_only_the_sequence_is_used(world: World) -> None:
    world.stream(**INTEREST)

    assert world.publish("s.a")["seq"] == 1
    state = world.state()
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (0, 2, 1)


def test_without_interest_a_ttl_is_not_looked_at(world: World) -> None:
    world.stream(retention="interest", allow_msg_ttl=True)

    assert world.publish("s.a", b"", {"Nats-TTL": "-5"})["seq"] == 1


def test_a_filter_that_does_not_match_is_no_interest(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer(filter_subject="s.b")

    world.publish_run([("s.a", b""), ("s.b", b"")])

    assert world.state()["messages"] == 1


def test_a_message_leaves_when_every_interested_consumer_acked(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer("a")
    world.consumer("b")
    world.consumer("c", filter_subject="s.other")
    world.publish("s.a")

    world.ack(world.fetch(1, "a")[0])
    assert world.state()["messages"] == 1
    world.ack(world.fetch(1, "b")[0])

    assert world.state()["messages"] == 0


def test_without_acks_delivery_is_enough(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer(ack_policy="none")
    world.publish("s.a")

    world.fetch(1)

    assert world.state()["messages"] == 0


def test_a_deleted_consumer_lets_go_what_only_it_wanted(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer("a")
    world.consumer("b", filter_subject="s.b")
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.api("CONSUMER.DELETE.S.a")

    assert world.state()["messages"] == 1


def test_a_narrowed_filter_lets_go_what_nobody_wants_any_more(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer()
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.consumer(filter_subject="s.b")

    assert world.state()["messages"] == 1


def test_a_new_consumer_does_not_need_what_lies_before_its_start(world: World) -> None:
    world.stream(**INTEREST)
    world.consumer("a")
    world.publish("s.a")
    world.consumer("b", deliver_policy="new")

    world.ack(world.fetch(1, "a")[0])

    assert world.state()["messages"] == 0


def test_an_interest_stream_may_become_a_limits_stream_and_back(world: World) -> None:
    world.stream(**INTEREST)
    limits = {"name": "S", "subjects": ["s.>"], "retention": "limits"}

    world.api("STREAM.UPDATE.S", limits)
    world.publish("s.a")
    assert world.state()["messages"] == 1
    world.api("STREAM.UPDATE.S", {**limits, "retention": "interest"})

    assert world.state()["messages"] == 0


def test_becoming_an_interest_stream_keeps_what_no_consumer_ever_wanted(world: World) -> None:
    world.stream()
    world.consumer(filter_subject="s.b")
    world.publish_run([("s.a", b""), ("s.b", b"")])
    world.ack(world.fetch(1)[0])

    world.api("STREAM.UPDATE.S", {"name": "S", "subjects": ["s.>"], "retention": "interest"})

    state = world.state()
    assert (state["messages"], state["first_seq"]) == (1, 1)
