"""Deliveries and acks against a list, step by step."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream_broker.jetstream.acks import AckState
from millstream_broker.jetstream.model import AckPolicy

WAIT_S = 10.0


@dataclass
class Owed:
    """What a list knows of one delivered message."""

    first_consumer_seq: int
    deliveries: int = 1
    deadline_s: float = 0.0
    is_queued: bool = False


@dataclass
class Model:
    """Every delivered message in a dict, and nothing clever."""

    delivered: int = 0
    owed: dict[int, Owed] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    exhausted: set[int] = field(default_factory=set)


class AckMachine(RuleBasedStateMachine):
    """Explicit acks: whatever the order, what is not acked is owed, and comes again."""

    @initialize(start=st.integers(1, 5))
    def begin(self, start: int) -> None:
        self.state = AckState(AckPolicy.EXPLICIT, start)
        self.model = Model()
        self.start = self.next_seq = start
        self.now_s = 0.0

    @rule(gap=st.integers(0, 2))
    def deliver_new(self, gap: int) -> None:
        seq = self.next_seq + gap
        self.next_seq = seq + 1
        consumer_seq = self.state.deliver(seq, 1, 0, self.now_s + WAIT_S)
        self.model.delivered += 1
        assert consumer_seq == self.model.delivered
        self.model.owed[seq] = Owed(consumer_seq, 1, self.now_s + WAIT_S)

    @precondition(lambda self: self.model.queue)
    @rule()
    def deliver_again(self) -> None:
        seq = self.state.next_queued()
        assert seq == self.model.queue[0]
        owed = self.model.owed[seq]
        count = self.state.delivery_count(seq) + 1
        assert count == owed.deliveries + 1
        self.state.deliver(seq, count, 0, self.now_s + WAIT_S)
        self.model.delivered += 1
        owed.deliveries, owed.deadline_s, owed.is_queued = count, self.now_s + WAIT_S, False
        self.model.queue.pop(0)

    @precondition(lambda self: self.model.owed)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model.owed)))
        assert self.state.ack(seq, self.model.owed[seq].first_consumer_seq) == [seq]
        self._forget(seq)

    @precondition(lambda self: self.model.settled)
    @rule(data=st.data())
    def ack_twice(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model.settled)))
        assert self.state.ack(seq, 1) == []

    @precondition(lambda self: self.model.owed)
    @rule(data=st.data(), delay_s=st.none() | st.floats(1, 20))
    def nak(self, data: st.DataObject, delay_s: float | None) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model.owed)))
        owed = self.model.owed[seq]
        assert self.state.nak(seq, None if delay_s is None else self.now_s + delay_s)
        if delay_s is None:
            if not owed.is_queued:
                owed.is_queued = True
                self.model.queue.append(seq)
            return
        owed.deadline_s = self.now_s + delay_s
        if owed.is_queued:
            owed.is_queued = False
            self.model.queue.remove(seq)

    @precondition(lambda self: self.model.owed)
    @rule(data=st.data())
    def in_progress(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model.owed)))
        owed = self.model.owed[seq]
        assert self.state.postpone(seq, self.now_s + WAIT_S) is not owed.is_queued
        if not owed.is_queued:
            owed.deadline_s = self.now_s + WAIT_S

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.state.expire(self.now_s)
        for seq in sorted(self.model.owed):
            owed = self.model.owed[seq]
            if not owed.is_queued and owed.deadline_s <= self.now_s:
                owed.is_queued = True
                self.model.queue.append(seq)

    @precondition(lambda self: self.model.queue)
    @rule()
    def run_out_of_deliveries(self) -> None:
        seq = self.model.queue[0]
        self.state.exhaust(seq)
        self._forget(seq)
        self.model.settled.discard(seq)
        self.model.exhausted.add(seq)

    @precondition(lambda self: self.model.exhausted)
    @rule(data=st.data())
    def ack_what_ran_out(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.model.exhausted)))
        floor = self.state.floor_stream
        assert self.state.ack(seq, 1) == [seq]
        assert self.state.floor_stream == floor
        self.model.exhausted.discard(seq)
        self.model.settled.add(seq)

    def _forget(self, seq: int) -> None:
        if self.model.owed.pop(seq).is_queued:
            self.model.queue.remove(seq)
        self.model.settled.add(seq)

    @invariant()
    def what_is_owed_is_pending(self) -> None:
        assert list(self.state.pending) == sorted(self.model.owed)
        assert self.state.queue_length == len(self.model.queue)
        assert self.state.next_queued() == next(iter(self.model.queue), None)

    @invariant()
    def the_floor_is_below_everything_owed(self) -> None:
        state = self.state
        assert state.floor_consumer <= state.delivered_consumer == self.model.delivered
        assert self.start - 1 <= state.floor_stream <= state.delivered_stream
        if self.model.owed:
            lowest = min(self.model.owed)
            assert state.floor_stream < lowest
            assert state.floor_consumer < self.model.owed[lowest].first_consumer_seq

    @invariant()
    def the_next_deadline_is_the_nearest(self) -> None:
        waiting = [owed.deadline_s for owed in self.model.owed.values() if not owed.is_queued]
        assert self.state.next_deadline() == min(waiting, default=None)


TestAckMachine = AckMachine.TestCase
TestAckMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def delivered(policy: AckPolicy, count: int) -> AckState:
    state = AckState(policy, 1)
    for seq in range(1, count + 1):
        state.deliver(seq, 1, 0, 10.0)
    return state


@pytest.mark.parametrize("policy", list(AckPolicy))
def test_first_deliveries_are_recorded_together_as_one_by_one(policy: AckPolicy) -> None:
    def outcome(*, at_once: bool) -> tuple[object, ...]:
        state = delivered(policy, 2)
        if at_once:
            state.deliver_new([4, 5, 9], 7, 20.0)
        else:
            for seq in (4, 5, 9):
                state.deliver(seq, 1, 7, 20.0)
        state.ack(1, 1)
        late = [state.expire(20.0), state.next_queued(), state.next_deadline()]
        return {**vars(state), "policy": policy}, late

    assert outcome(at_once=True) == outcome(at_once=False)


def test_acks_in_order_move_the_floor_one_by_one() -> None:
    state = delivered(AckPolicy.EXPLICIT, 3)

    floors = []
    for seq in (1, 2, 3):
        state.ack(seq, seq)
        floors.append((state.floor_consumer, state.floor_stream))

    assert floors == [(1, 1), (2, 2), (3, 3)]


def test_an_ack_out_of_order_leaves_the_floor_until_the_gap_closes() -> None:
    state = delivered(AckPolicy.EXPLICIT, 4)

    state.ack(2, 2)
    assert (state.floor_consumer, state.floor_stream) == (0, 0)

    state.ack(1, 1)
    assert (state.floor_consumer, state.floor_stream) == (2, 2)


def test_a_message_out_of_deliveries_does_not_move_the_floor() -> None:
    state = delivered(AckPolicy.EXPLICIT, 1)

    state.exhaust(1)

    assert (state.floor_consumer, state.floor_stream) == (0, 0)
    assert len(state.deliveries) == 1


def test_ack_all_settles_everything_up_to_it() -> None:
    state = delivered(AckPolicy.ALL, 5)

    assert state.ack(3, 3) == [1, 2, 3]

    assert (state.floor_consumer, state.floor_stream) == (3, 3)
    assert list(state.pending) == [4, 5]
    assert state.ack(2, 2) == []


def test_without_acks_the_floor_follows_delivery() -> None:
    state = delivered(AckPolicy.NONE, 3)

    assert (state.floor_consumer, state.floor_stream) == (3, 3)
    assert not state.pending


def test_expired_messages_are_queued_in_stream_order() -> None:
    state = AckState(AckPolicy.EXPLICIT, 1)
    for seq, deadline_s in ((1, 9.0), (2, 3.0), (3, 6.0)):
        state.deliver(seq, 1, 0, deadline_s)

    state.expire(10.0)

    order = []
    while (seq_or_none := state.next_queued()) is not None:
        order.append(seq_or_none)
        state.settle(seq_or_none)
    assert order == [1, 2, 3]
