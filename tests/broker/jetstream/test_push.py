from typing import Any

import pytest

from .harness import Inbox, World

SECOND = 10**9


def listen(world: World, **config: Any) -> Inbox:
    inbox = world.inbox("d.>")
    world.consumer(deliver_subject="d.x", **config)
    return inbox


def test_messages_flow_as_they_come(world: World) -> None:
    world.stream()
    world.publish("s.a", b"1")

    inbox = listen(world)
    world.publish("s.a", b"2")

    assert inbox.payloads == [b"1", b"2"]
    assert inbox.got[0].subject == "s.a"
    assert world.info()["push_bound"] is True


def test_nothing_flows_until_somebody_listens(world: World) -> None:
    world.stream()
    world.consumer(deliver_subject="d.x")
    world.publish("s.a", b"1")
    assert world.info()["num_pending"] == 1

    inbox = world.inbox("d.x")
    world.advance(0.2)

    assert inbox.payloads == [b"1"]


def test_a_deliver_group_needs_a_member_of_it(world: World) -> None:
    world.stream()
    world.publish("s.a", b"1")
    world.inbox("d.x")
    world.consumer(deliver_subject="d.x", deliver_group="g")
    assert "push_bound" not in world.info()

    member = world.inbox("d.x", queue="g")
    world.advance(0.2)

    assert member.payloads == [b"1"]


def test_heartbeats_tell_where_the_consumer_stands(world: World) -> None:
    world.stream()
    inbox = listen(world, idle_heartbeat=SECOND)
    world.publish("s.a")
    inbox.take()

    world.advance(2.5)

    assert inbox.statuses == ["100 Idle Heartbeat"] * 2
    assert inbox.got[0].header("Nats-Last-Consumer") == "1"
    assert inbox.got[0].header("Nats-Last-Stream") == "1"


def test_a_message_puts_the_heartbeat_off(world: World) -> None:
    world.stream()
    inbox = listen(world, idle_heartbeat=SECOND)

    world.advance(0.8)
    world.publish("s.a")
    world.advance(0.8)

    assert inbox.statuses == []


def test_an_unacked_message_comes_again(world: World) -> None:
    world.stream()
    inbox = listen(world, ack_wait=SECOND)
    world.publish("s.a")

    world.advance(1.1)

    assert [delivery.ack_tokens[0] for delivery in inbox.got] == [1, 2]


def test_flow_control_asks_past_half_the_window_and_stops_past_all_of_it(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"x" * 1024 * 1024)] * 6)

    inbox = listen(world, flow_control=True, idle_heartbeat=5 * SECOND, ack_policy="none")

    assert len(inbox.payloads) == 2  # the window is 2 MiB at first
    question = next(d for d in inbox.got if d.status == "100 FlowControl Request")
    assert question.reply is not None
    assert question.reply.startswith("$JS.FC.S.C.")


def test_an_answer_opens_the_window(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"x" * 1024 * 1024)] * 6)
    inbox = listen(world, flow_control=True, idle_heartbeat=5 * SECOND, ack_policy="none")

    for _ in range(10):
        questions = [d for d in inbox.take() if d.status == "100 FlowControl Request"]
        for question in questions:
            assert question.reply is not None
            world.bus.publish(question.reply)
            world.settle()

    assert world.info()["num_pending"] == 0


def test_a_stalled_consumer_says_so_in_its_heartbeat(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"x" * 1024 * 1024)] * 6)
    inbox = listen(world, flow_control=True, idle_heartbeat=SECOND, ack_policy="none")
    question = next(d for d in inbox.got if d.status == "100 FlowControl Request")

    world.advance(1.5)

    assert inbox.got[-1].status == "100 Idle Heartbeat"
    assert inbox.got[-1].header("Nats-Consumer-Stalled") == question.reply


def test_a_rate_limit_spreads_messages(world: World) -> None:
    world.stream()
    world.publish_run([("s.a", b"x" * 1000)] * 3)

    inbox = listen(world, rate_limit_bps=8000)

    assert len(inbox.payloads) == 1
    world.advance(1.2)
    assert len(inbox.payloads) == 2


def test_an_ephemeral_without_a_listener_goes_away(world: World) -> None:
    world.stream()
    inbox = world.inbox("d.x")
    config = {"ack_policy": "none", "deliver_subject": "d.x", "inactive_threshold": SECOND}
    body = {"stream_name": "S", "config": config}
    name = world.api("CONSUMER.CREATE.S", body)["name"]

    world.advance(10)
    assert world.api("CONSUMER.NAMES.S")["consumers"] == [name]
    world.leave(inbox)
    world.advance(2.5)

    assert world.api("CONSUMER.NAMES.S")["consumers"] == []


def test_a_bound_consumers_subject_cannot_be_moved(world: World) -> None:
    world.stream()
    listen(world)

    config = {"durable_name": "C", "ack_policy": "explicit", "deliver_subject": "e.x"}

    assert world.err_code("CONSUMER.CREATE.S.C", {"stream_name": "S", "config": config}) == 10013


@pytest.mark.parametrize("count", [3000])
def test_many_messages_are_delivered_over_several_rounds_in_order(world: World, count: int) -> None:
    world.stream()
    world.publish_run([("s.a", b"")] * count)

    inbox = listen(world, ack_policy="none")

    assert inbox.seqs == list(range(1, count + 1))
