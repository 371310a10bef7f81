"""What comes or goes in one go has the outcome it has one by one."""

from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from millstream_broker.jetstream.batch import Batches
from millstream_broker.jetstream.consumer import Consumer
from millstream_broker.jetstream.dedup import DuplicateWindow
from millstream_broker.jetstream.publish import Ingest
from millstream_broker.message import Message
from millstream_broker.protocol import headers as header_blocks

from .harness import World

EXAMPLES = settings().max_examples
SECOND = 10**9
IDS = st.sampled_from(["a", "b", "c", "d", "é", ""])
LINES = st.one_of(
    st.tuples(st.just("Nats-Msg-Id"), IDS),
    st.tuples(st.just("Nats-Expected-Last-Msg-Id"), IDS),
    st.tuples(st.just("Nats-Expected-Last-Sequence"), st.sampled_from(["0", "3"])),
    st.tuples(st.just("Nats-Rollup"), st.just("sub")),
    st.tuples(st.just("User"), st.just("x")),
)
BLOCKS = st.none() | st.lists(LINES, max_size=3).map(lambda lines: header_blocks.add(None, lines))
MESSAGES = st.lists(st.tuples(st.sampled_from(["s.a", "s.b", "s.c"]), BLOCKS, st.booleans()))
CONFIGS = st.sampled_from(
    [
        {},
        {"max_msgs": 3},
        {"max_msgs_per_subject": 2},
        {"storage": "memory"},
        {"duplicate_window": SECOND},
        {"discard": "new", "max_msgs": 4},
        {"retention": "workqueue"},
        {"no_ack": True},
    ]
)

Published = list[tuple[str, bytes | None, bool]]


def stored_one_by_one(messages: Published, config: dict[str, Any]) -> tuple[object, ...]:
    """The same of one read each, in the way of messages that need all checks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ingest, "_receive_plain", lambda *_: 0)
        patched.setattr(Batches, "take", lambda *_: 0)
        return stored(messages, config, at_once=False)


def stored(
    messages: Published, config: dict[str, Any], *, at_once: bool = True
) -> tuple[object, ...]:
    """Acks, content and what a reader gets, of messages of one read."""
    world = World()
    world.stream(allow_rollup_hdrs=True, **config)
    world.consumer()
    inbox = world.inbox()
    for number, (subject, block, wants_ack) in enumerate(messages):
        reply = inbox.pattern if wants_ack else None
        world.bus.publish(subject, b"%d" % number, reply=reply, headers=block)
        if not at_once:
            world.settle()
    world.settle()
    answers = [delivery.payload for delivery in inbox.take()]
    got = [astuple(delivery) for delivery in world.fetch(100)]
    for msg_id in "abcd":
        answer = world.request("s.z", b"", {"Nats-Msg-Id": msg_id})
        answers.append(b"" if answer is None else answer.payload)
    return answers, got, world.state()


@settings(max_examples=EXAMPLES)
@given(MESSAGES, CONFIGS)
@example([("s.a", header_blocks.add(None, [("Nats-Msg-Id", "a")]), True)] * 2, {})
def test_messages_of_one_read_are_stored_as_one_by_one(
    messages: Published, config: dict[str, Any]
) -> None:
    assert stored(messages, config) == stored_one_by_one(messages, config)


def member(batch: str, seq: int, *, more: str = "", wants_ack: bool = False) -> Published:
    pairs = [("Nats-Batch-Id", batch), ("Nats-Batch-Sequence", str(seq))]
    if more:
        pairs.append((more, "1"))
    return [(f"s.{batch}", header_blocks.add(None, pairs), wants_ack)]


def whole_batch(batch: str, count: int) -> Published:
    members = [it for seq in range(1, count) for it in member(batch, seq)]
    return members + member(batch, count, more="Nats-Batch-Commit", wants_ack=True)


JUMPS = {"gap": 2, "again": 0}
STEPS_OF_BATCHES = st.tuples(
    st.sampled_from("bbbc"),
    st.sampled_from(["", "", "", "User", "Nats-Msg-Id", "Nats-Batch-Commit", *JUMPS]),
    st.sampled_from([False, False, True]),
)


def of_batches(steps: list[tuple[str, str, bool]]) -> Published:
    """Members of two batches, mostly with the next number."""
    published: Published = []
    last = dict.fromkeys("bc", 0)
    for batch, kind, wants_ack in steps:
        last[batch] += JUMPS.get(kind, 1)
        more = "" if kind in JUMPS else kind
        published += member(batch, last[batch], more=more, wants_ack=wants_ack)
        if kind == "Nats-Batch-Commit":
            last[batch] = 0
    return published


BATCHES = st.lists(STEPS_OF_BATCHES, max_size=20).map(of_batches)


@settings(max_examples=EXAMPLES)
@given(BATCHES, CONFIGS)
@example([*member("b", 1), *member("b", 2), *member("b", 3, more="Nats-Batch-Commit")], {})
def test_batches_of_one_read_are_stored_as_one_by_one(
    messages: Published, config: dict[str, Any]
) -> None:
    config = {**config, "allow_atomic": True}
    assert stored(messages, config) == stored_one_by_one(messages, config)


def test_a_batch_with_a_hole_in_the_middle_of_a_read_is_refused() -> None:
    world = World()
    world.stream(allow_atomic=True)
    inbox = world.inbox()
    commit = member("b", 4, more="Nats-Batch-Commit", wants_ack=True)
    for subject, block, wants_ack in [it for n in (1, 3, 3) for it in member("b", n)] + commit:
        world.bus.publish(subject, reply=inbox.pattern if wants_ack else None, headers=block)

    world.settle()

    assert [delivery.json()["error"]["err_code"] for delivery in inbox.got] == [10176]
    assert world.state()["messages"] == 0


def test_members_of_a_batch_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.stream(allow_atomic=True)
    inbox = world.inbox()
    one_by_one: list[str] = []
    before = Ingest._receive_checked

    def count(ingest: Ingest, message: Message, acks: list[Any]) -> None:
        one_by_one.append(message.subject)
        before(ingest, message, acks)

    monkeypatch.setattr(Ingest, "_receive_checked", count)
    for subject, block, wants_ack in whole_batch("b", 50):
        world.bus.publish(subject, reply=inbox.pattern if wants_ack else None, headers=block)

    world.settle()

    assert [delivery.json()["count"] for delivery in inbox.got] == [50]
    assert len(one_by_one) == 2  # the first, and the commit


@pytest.mark.parametrize(("wait_s", "is_left"), [(9.0, False), (10.5, True)])
def test_a_batch_is_abandoned_some_time_after_its_last_member(wait_s: float, is_left: bool) -> None:
    world = World()
    world.stream(allow_atomic=True)
    for subject, block, _ in [*member("b", 1), *member("b", 2)]:
        world.advance(9.0)
        world.bus.publish(subject, headers=block)
        world.settle()

    world.advance(wait_s)

    [(subject, block, _)] = member("b", 3, more="Nats-Batch-Commit")
    inbox = world.inbox()
    world.bus.publish(subject, reply=inbox.pattern, headers=block)
    world.settle()
    assert ("error" in inbox.got[0].json()) == is_left


def test_a_chain_of_message_ids_is_stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("one by one")

    world = World()
    world.stream()
    world.publish("s.a", b"", {"Nats-Msg-Id": "0"})
    monkeypatch.setattr(Ingest, "_receive_checked", unexpected)
    inbox = world.inbox()
    for number in range(1, 50):
        ids = [("Nats-Msg-Id", f"{number}"), ("Nats-Expected-Last-Msg-Id", f"{number - 1}")]
        block = header_blocks.add(None, [*ids, ("User", "x")])
        world.bus.publish(f"s.{number % 3}", b"", reply=inbox.pattern, headers=block)

    world.settle()

    assert [delivery.json()["seq"] for delivery in inbox.got] == list(range(2, 51))


def test_a_chain_that_breaks_in_the_middle_of_a_read_is_refused_from_there_on() -> None:
    world = World()
    world.stream()
    inbox = world.inbox()
    for msg_id, expected in (("1", ""), ("2", "1"), ("3", "x"), ("4", "3"), ("5", "2")):
        pairs = [("Nats-Msg-Id", msg_id), ("Nats-Expected-Last-Msg-Id", expected)]
        block = header_blocks.add(None, [pair for pair in pairs if pair[1]])
        world.bus.publish("s.a", b"", reply=inbox.pattern, headers=block)

    world.settle()

    outcomes = [delivery.json() for delivery in inbox.got]
    assert [outcome["seq"] for outcome in outcomes] == [1, 2, 0, 0, 3]
    texts = [outcome["error"]["description"] for outcome in outcomes if "error" in outcome]
    assert texts == ["wrong last msg ID: 2", "wrong last msg ID: 2"]


# What a pull consumer hands on

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(3, 9)),
        st.tuples(st.just("pull"), st.integers(0, 6), st.sampled_from([0, 150, 400])),
        st.tuples(st.just("ack"), st.integers(0, 5)),
        st.tuples(st.just("remove"), st.integers(1, 20)),
        st.tuples(st.just("wait")),
    ),
    max_size=20,
)
CONSUMERS = st.sampled_from(
    [
        {"max_ack_pending": 2},
        {"ack_policy": "none"},
        {"ack_policy": "all", "max_ack_pending": 4},
        {"filter_subject": "s.a"},
        {"filter_subjects": ["s.a", "s.*.x"]},
        {"deliver_policy": "last_per_subject", "filter_subject": "s.>"},
        {"headers_only": True},
        {"mem_storage": True, "ack_policy": "none"},
    ]
)


def delivered(
    steps: list[tuple[Any, ...]], config: dict[str, Any], retention: str
) -> tuple[object, ...]:
    """All that clients of a consumer get, and what the server says of it."""
    world = World()
    world.stream(retention=retention)
    world.consumer(ack_wait=SECOND, **config)
    inboxes = []
    for step, *arguments in steps:
        if step == "publish":
            block = header_blocks.add(None, [("User", "x")])
            for number in range(arguments[0]):
                subject = ("s.a", "s.b", "s.c.x")[number % 3]
                world.bus.publish(subject, b"y" * 20, headers=block if number % 2 else None)
            world.settle()
        elif step == "pull":
            batch, max_bytes = arguments
            inboxes.append(world.pull(batch=batch, max_bytes=max_bytes, expires=3 * SECOND))
        elif step == "ack":
            unacked = [it for inbox in inboxes for it in inbox.got if it.reply][-arguments[0] :]
            for delivery in unacked[:1]:
                world.ack(delivery)
        elif step == "remove":
            world.api("STREAM.MSG.DELETE.S", {"seq": arguments[0]})
        else:
            world.advance(1.5)
    got = [[astuple(delivery) for delivery in inbox.got] for inbox in inboxes]
    return got, world.info(), world.state()


@settings(max_examples=EXAMPLES)
@given(STEPS, CONSUMERS, st.sampled_from(["limits", "limits", "workqueue", "interest"]))
@example([("publish", 9), ("pull", 1, 0), ("pull", 6, 0)], {"max_ack_pending": 2}, "limits")
def test_messages_handed_on_together_are_those_handed_on_one_by_one(
    steps: list[tuple[Any, ...]], config: dict[str, Any], retention: str
) -> None:
    if retention == "workqueue":
        config = {"ack_policy": "explicit"} if "ack_policy" not in config else {}
    together = delivered(steps, config, retention)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Consumer, "_pull_run", lambda *_: None)
        assert together == delivered(steps, config, retention)


@pytest.mark.parametrize("takes_runs", [True, False])
def test_what_waits_is_handed_on_together_to_who_gets_all_of_it(
    monkeypatch: pytest.MonkeyPatch, *, takes_runs: bool
) -> None:
    """A subscription with a limit may end amid a run, and the rest would go to nobody."""
    world = World()
    monkeypatch.setattr(world.bus, "takes_runs", lambda _: takes_runs)
    world.stream()
    world.consumer()
    world.publish_run([("s.a", b"%d" % n) for n in range(20)])
    one_by_one: list[int] = []
    before = Consumer._pull_one

    def count(consumer: Consumer) -> tuple[int, int]:
        one_by_one.append(1)
        return before(consumer)

    monkeypatch.setattr(Consumer, "_pull_one", count)

    assert world.pull(batch=20, expires=SECOND).seqs == list(range(1, 21))
    assert bool(one_by_one) is not takes_runs


# The duplicate window


def seen(window: DuplicateWindow, *msg_ids: str) -> list[int | None]:
    return [window.find(msg_id) for msg_id in msg_ids]


def test_ids_leave_the_window_in_the_order_they_came() -> None:
    window = DuplicateWindow(10)
    window.add({"a": 1, "b": 2}, 100)
    window.add({"c": 3}, 105)

    window.expire(109)
    assert seen(window, "a", "b", "c") == [1, 2, 3]
    window.expire(110)
    assert seen(window, "a", "b", "c") == [None, None, 3]
    window.expire(115)
    assert len(window) == 0


def test_an_id_stored_again_counts_from_then_on() -> None:
    window = DuplicateWindow(10)
    window.add({"a": 1}, 100)
    window.add({"a": 2}, 105)

    window.expire(110)
    assert window.find("a") == 2
    window.expire(115)
    assert window.find("a") is None


def test_ids_of_what_was_not_stored_are_forgotten_and_may_come_again() -> None:
    window = DuplicateWindow(10)
    window.add({"a": 1, "b": 2}, 100)
    window.forget_above(1)
    assert seen(window, "a", "b") == [1, None]

    window.add({"b": 2}, 105)
    window.expire(110)
    assert seen(window, "a", "b") == [None, 2]


def test_a_window_of_nothing_keeps_nothing() -> None:
    window = DuplicateWindow(0)
    window.add({"a": 1}, 100)

    assert len(window) == 0
