from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .harness import Delivery, World

SECOND = 10**9


@pytest.fixture
def full(world: World) -> World:
    """Six messages on two subjects: a b b a b b."""
    world.stream()
    world.publish_run([(f"s.{token}", b"%d" % n) for n, token in enumerate("abbabb", 1)])
    return world


@pytest.mark.parametrize(
    ("config", "seqs"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"deliver_policy": "last"}, [6]),
        ({"deliver_policy": "last", "filter_subject": "s.a"}, [4]),
        ({"deliver_policy": "new"}, []),
        ({"deliver_policy": "by_start_sequence", "opt_start_seq": 4}, [4, 5, 6]),
        ({"deliver_policy": "last_per_subject", "filter_subject": "s.*"}, [4, 6]),
        ({"deliver_policy": "last_per_subject", "filter_subjects": ["s.a", "s.x"]}, [4]),
        ({"filter_subject": "s.a"}, [1, 4]),
        ({"filter_subjects": ["s.a", "s.x.*"]}, [1, 4]),
        ({"filter_subject": "nowhere"}, []),
    ],
)
def test_a_consumer_begins_where_its_policy_says(
    full: World, config: dict[str, Any], seqs: list[int]
) -> None:
    created = full.consumer(**config)

    assert created["num_pending"] == len(seqs)
    deliveries = full.fetch(10)
    assert [delivery.seq for delivery in deliveries] == seqs
    pending = [delivery.ack_tokens[4] for delivery in deliveries]
    assert pending == list(reversed(range(len(seqs))))


def test_a_start_time_is_where_the_first_later_message_stands(world: World) -> None:
    world.stream()
    world.publish("s.a")
    world.advance(10)
    world.publish("s.a")

    world.consumer(deliver_policy="by_start_time", opt_start_time="2023-11-14T22:13:25Z")

    assert [delivery.seq for delivery in world.fetch(5)] == [2]


def test_before_delivery_the_consumer_stands_in_front_of_its_start(full: World) -> None:
    assert full.consumer("a")["delivered"] == {"consumer_seq": 0, "stream_seq": 0}
    created = full.consumer("b", deliver_policy="by_start_sequence", opt_start_seq=3)
    assert created["ack_floor"] == {"consumer_seq": 0, "stream_seq": 2}


def test_last_per_subject_goes_on_behind_its_snapshot(full: World) -> None:
    full.consumer(deliver_policy="last_per_subject", filter_subject="s.*")
    full.publish("s.a", b"new")

    assert [delivery.seq for delivery in full.fetch(10)] == [4, 6, 7]


def test_a_replaced_message_of_the_snapshot_is_not_delivered_twice(world: World) -> None:
    world.stream(max_msgs_per_subject=1)
    world.publish_run([("s.a", b"1"), ("s.b", b"2")])
    world.consumer(deliver_policy="last_per_subject", filter_subject="s.*")

    world.publish("s.a", b"3")

    assert world.info()["num_pending"] == 2
    assert [delivery.payload for delivery in world.fetch(10)] == [b"2", b"3"]


def test_deletes_ahead_of_the_consumer_lower_what_is_pending(full: World) -> None:
    full.consumer(filter_subject="s.a")

    full.api("STREAM.MSG.DELETE.S", {"seq": 4})
    full.api("STREAM.MSG.DELETE.S", {"seq": 5})

    assert full.info()["num_pending"] == 1


def test_a_purge_takes_what_was_pending(full: World) -> None:
    full.consumer()
    full.fetch(2)

    full.api("STREAM.PURGE.S")

    info = full.info()
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)
    assert info["ack_floor"]["stream_seq"] == 2


def test_a_deleted_message_that_was_delivered_is_owed_no_more(full: World) -> None:
    full.consumer()
    full.fetch(1)

    full.api("STREAM.MSG.DELETE.S", {"seq": 1})

    assert full.info()["num_ack_pending"] == 0


def test_headers_only_leaves_the_body_out_and_says_its_size(full: World) -> None:
    full.consumer(headers_only=True)

    delivery = full.fetch()[0]

    assert delivery.payload == b""
    assert delivery.header("Nats-Msg-Size") == "1"


def test_a_change_of_filter_counts_anew(full: World) -> None:
    full.consumer(filter_subject="s.a")
    full.fetch(1)

    full.consumer(filter_subject="s.b")

    assert full.info()["num_pending"] == 4


# Acks


def test_an_unacked_message_comes_again_after_the_wait(full: World) -> None:
    full.consumer(ack_wait=SECOND)
    full.fetch(1)

    full.advance(0.9)
    assert full.info()["num_redelivered"] == 0
    full.advance(0.2)
    again = full.fetch(1)[0]

    assert again.ack_tokens[:3] == [2, 1, 2]
    assert full.info()["num_redelivered"] == 1


def test_an_acked_message_does_not_come_again(full: World) -> None:
    full.consumer(ack_wait=SECOND)
    full.ack(full.fetch(1)[0])

    full.advance(5)

    assert full.fetch(1)[0].seq == 2


@pytest.mark.parametrize("payload", [b"", b"+ACK", b"+OK"])
def test_every_spelling_of_an_ack_counts(full: World, payload: bytes) -> None:
    full.consumer()

    full.ack(full.fetch(1)[0], payload)

    assert full.info()["ack_floor"]["stream_seq"] == 1


def test_an_unknown_ack_is_ignored(full: World) -> None:
    full.consumer()

    full.ack(full.fetch(1)[0], b"+WHAT")

    assert full.info()["num_ack_pending"] == 1


def test_a_nak_brings_the_message_back_at_once(full: World) -> None:
    full.consumer()

    full.ack(full.fetch(1)[0], b"-NAK")

    assert full.fetch(1)[0].ack_tokens[:2] == [2, 1]


@pytest.mark.parametrize("payload", [b'-NAK {"delay": 2000000000}', b"-NAK 2s"])
def test_a_nak_with_delay_waits(full: World, payload: bytes) -> None:
    full.consumer()
    first = full.fetch(1)[0]

    full.ack(first, payload)

    pull = full.pull(batch=10, expires=10 * SECOND)
    assert 1 not in pull.seqs
    full.advance(2.1)
    assert pull.seqs[-1] == 1


def test_in_progress_starts_the_wait_anew(full: World) -> None:
    full.consumer(ack_wait=SECOND, max_ack_pending=1)
    first = full.fetch(1)[0]

    full.advance(0.8)
    full.ack(first, b"+WPI")
    full.advance(0.8)

    assert full.fetch(1) == []
    full.advance(0.3)
    assert full.fetch(1)[0].seq == 1


def test_a_terminated_message_never_comes_again(full: World) -> None:
    full.consumer(ack_wait=SECOND)

    full.ack(full.fetch(1)[0], b"+TERM bad input")

    full.advance(5)
    assert full.fetch(1)[0].seq == 2


def test_next_acks_and_pulls(full: World) -> None:
    full.consumer()
    first = full.fetch(1)[0]
    inbox = full.inbox()
    assert first.reply is not None

    full.bus.publish(first.reply, b"+NXT 2", reply=inbox.pattern)
    full.settle()

    assert inbox.seqs == [2, 3]
    assert full.info()["ack_floor"]["stream_seq"] == 1


def test_a_double_ack_is_answered_also_the_second_time(full: World) -> None:
    full.consumer()
    delivery = full.fetch(1)[0]

    assert full.double_ack(delivery)
    assert full.double_ack(delivery)


def test_an_ack_to_a_deleted_consumer_has_no_responders(full: World) -> None:
    full.consumer()
    delivery = full.fetch(1)[0]

    full.api("CONSUMER.DELETE.S.C")

    assert delivery.reply is not None
    assert not full.bus.has_interest(delivery.reply)


def test_ack_all_settles_what_came_before(full: World) -> None:
    full.consumer(ack_policy="all")
    deliveries = full.fetch(4)

    full.ack(deliveries[2])

    info = full.info()
    assert (info["ack_floor"]["stream_seq"], info["num_ack_pending"]) == (3, 1)


def test_backoff_gives_each_delivery_its_own_wait(full: World) -> None:
    full.consumer(backoff=[SECOND, 3 * SECOND], max_ack_pending=1)
    full.fetch(1)
    full.advance(1.1)
    assert full.fetch(1)[0].ack_tokens[0] == 2

    full.advance(2.5)
    assert full.fetch(1) == []
    full.advance(0.6)

    assert full.fetch(1)[0].ack_tokens[0] == 3


def test_a_message_out_of_deliveries_stays_in_the_stream_and_is_told(full: World) -> None:
    events = full.inbox("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.C")
    full.consumer(ack_wait=SECOND, max_deliver=2, filter_subject="s.a", max_ack_pending=1)
    for _ in range(2):
        assert full.fetch(1)[0].seq == 1
        full.advance(1.1)

    assert full.fetch(1)[0].seq == 4

    assert [event.json()["stream_seq"] for event in events.got] == [1]
    assert full.state()["messages"] == 6
    assert full.info()["ack_floor"]["stream_seq"] == 0


def test_max_ack_pending_holds_back_new_messages_only(full: World) -> None:
    full.consumer(max_ack_pending=2, ack_wait=SECOND)
    pull = full.pull(batch=10, expires=60 * SECOND)
    assert pull.seqs == [1, 2]

    full.advance(1.1)

    assert pull.seqs == [1, 2, 1, 2]
    full.ack(pull.got[0])
    assert pull.seqs[-1] == 3


# Life


def test_an_ephemeral_nobody_pulls_from_goes_away(full: World) -> None:
    body = {"stream_name": "S", "config": {"ack_policy": "explicit", "inactive_threshold": SECOND}}
    name = full.api("CONSUMER.CREATE.S", body)["name"]

    full.advance(0.9)
    full.fetch(1, name)
    full.advance(0.9)
    assert name in full.api("CONSUMER.NAMES.S")["consumers"]
    full.advance(0.3)

    assert full.api("CONSUMER.NAMES.S")["consumers"] == []


def test_a_waiting_request_keeps_an_ephemeral_alive(world: World) -> None:
    world.stream()
    body = {"stream_name": "S", "config": {"ack_policy": "explicit", "inactive_threshold": SECOND}}
    name = world.api("CONSUMER.CREATE.S", body)["name"]

    world.pull(name, expires=30 * SECOND, batch=1)
    world.advance(10)

    assert world.api("CONSUMER.NAMES.S")["consumers"] == [name]


def test_a_paused_consumer_delivers_nothing_until_its_time(full: World) -> None:
    full.consumer()
    until = "2023-11-14T22:13:30Z"  # ten seconds after the test began

    paused = full.api("CONSUMER.PAUSE.S.C", {"pause_until": until})
    pull = full.pull(batch=2, expires=60 * SECOND)

    assert (paused["paused"], paused["pause_remaining"]) == (True, 10 * SECOND)
    full.advance(9)
    assert pull.seqs == []
    full.advance(1.1)
    assert pull.seqs == [1, 2]


def test_consumers_are_listed_by_name(full: World) -> None:
    for name in ("b", "a"):
        full.consumer(name)

    page = full.api("CONSUMER.LIST.S")

    assert [info["name"] for info in page["consumers"]] == ["a", "b"]
    assert full.err_code("CONSUMER.INFO.S.nope") == 10014
    assert full.err_code("CONSUMER.NAMES.NOPE") == 10059


def test_original_replay_keeps_the_distance_between_messages(world: World) -> None:
    world.stream()
    for _ in range(3):
        world.publish("s.a")
        world.advance(2)
    world.consumer(replay_policy="original")

    pull = world.pull(batch=3, expires=60 * SECOND)

    assert pull.seqs == [1]
    world.advance(2.1)
    assert pull.seqs == [1, 2]


def test_a_rollup_is_pending_once(world: World) -> None:
    world.stream(allow_rollup_hdrs=True)
    world.consumer()
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.publish("s.c", b"", {"Nats-Rollup": "all"})

    assert world.info()["num_pending"] == 1


def test_a_consumer_without_acks_has_no_ack_subject(full: World) -> None:
    full.consumer(ack_policy="none")

    delivery = full.fetch(1)[0]

    assert delivery.reply is not None
    assert not full.bus.has_interest(delivery.reply)


class ConsumerMachine(RuleBasedStateMachine):
    """One filtered consumer against a list of everything published.

    Until it is acked (or deleted from the stream) each matching message is somewhere: still to come
    in order, held by a client, or on its way again.
    """

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.world.stream()
        self.world.consumer(filter_subjects=["s.a", "s.b"], ack_wait=SECOND, max_ack_pending=4)
        self.published: list[int] = []
        self.alive: set[int] = set()
        self.acked: set[int] = set()
        self.seen: dict[int, int] = {}
        self.held: list[Delivery] = []

    @rule(token=st.sampled_from("abc"))
    def publish(self, token: str) -> None:
        seq = self.world.publish(f"s.{token}")["seq"]
        if token != "c":
            self.published.append(seq)
            self.alive.add(seq)

    @rule(count=st.integers(1, 3))
    def fetch(self, count: int) -> None:
        for delivery in self.world.fetch(count):
            times, seq = delivery.ack_tokens[:2]
            assert seq in self.alive - self.acked
            if seq not in self.seen:
                before = [s for s in self.published if s < seq and s in self.alive]
                assert all(s in self.seen for s in before), "a message was passed over"
            self.seen[seq] = self.seen.get(seq, 0) + 1
            assert times == self.seen[seq]
            self.held.append(delivery)

    @rule(data=st.data(), payload=st.sampled_from([b"", b"+TERM", b"-NAK"]))
    def answer(self, data: st.DataObject, payload: bytes) -> None:
        if self.held:
            delivery = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.world.ack(delivery, payload)
            if payload != b"-NAK":
                self.acked.add(delivery.seq)

    @rule(seconds=st.sampled_from([0.5, 1.1]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.alive:
            seq = data.draw(st.sampled_from(sorted(self.alive)))
            self.world.api("STREAM.MSG.DELETE.S", {"seq": seq})
            self.alive.discard(seq)

    @rule(token=st.sampled_from("ab"))
    def purge(self, token: str) -> None:
        self.world.api("STREAM.PURGE.S", {"filter": f"s.{token}"})
        store = self.world.js.registry.get("S").store
        self.alive = {seq for seq in self.alive if store.load(seq) is not None}

    @invariant()
    def counts_agree(self) -> None:
        info = self.world.info()
        open_seqs = self.alive - self.acked
        assert info["num_pending"] == len([seq for seq in open_seqs if seq not in self.seen])
        assert info["num_ack_pending"] == len([seq for seq in open_seqs if seq in self.seen])
        owed = sorted(seq for seq in open_seqs if seq in self.seen)
        if owed:
            assert info["ack_floor"]["stream_seq"] < owed[0]

    def teardown(self) -> None:
        for _ in range(100):
            self.world.advance(1.1)
            for delivery in self.world.fetch(10):
                self.seen[delivery.seq] = self.seen.get(delivery.seq, 0) + 1
                self.acked.add(delivery.seq)
                self.world.ack(delivery)
            if self.alive <= self.acked:
                break
        assert self.alive <= self.acked, "a message never came"


TestConsumerMachine = ConsumerMachine.TestCase
TestConsumerMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
