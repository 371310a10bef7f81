"""The chain against a model of the stream: what is stored is each record once and in order.

The model knows the server's two rules (a wrong expected sequence, a wrong expected last id) and
nothing of bridges. Two bridges, stray publishers and lost connections work on it in any order that
hypothesis finds. The same harness with a plain expected sequence on every frame must fail.
"""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.model import Record, TimestampType
from millstream_bridge.moving.window import SessionState, Window
from tests.bridge.windows import PlainSequenceWindow

PARTITIONS = 2
RECORDS = [
    Record(n % PARTITIONS, n // PARTITIONS, n, TimestampType.CREATE, b"k", b"%d" % n)
    for n in range(24)
]


@dataclass
class Frame:
    guard: dict[str, str]
    record: Record
    session: str
    asks: bool


@dataclass
class ModelStream:
    """The server's side: messages and the id of the last one."""

    stored: list[Record | None] = field(default_factory=list)  # None: a stray message
    last_id: str = ""

    def publish(self, frame: Frame) -> int:
        """The sequence, or the negative error code."""
        expected = frame.guard.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != len(self.stored):
            return -10071
        last_id = frame.guard.get("Nats-Expected-Last-Msg-Id")
        if last_id is not None and last_id != self.last_id:
            return -10070
        self.stored.append(frame.record)
        self.last_id = frame.guard["Nats-Msg-Id"]
        return len(self.stored)

    def publish_stray(self) -> None:
        self.stored.append(None)
        self.last_id = ""

    def position(self, partition: int) -> int:
        mine = [r.offset for r in self.stored if r and r.kafka_partition == partition]
        return mine[-1] + 1 if mine else 0


class ModelBridge:
    """The runner's part: open, send what Kafka has from there on, begin anew when it is over."""

    def __init__(self, name: str, stream: ModelStream, window_type: type[Window]) -> None:
        self.name, self.stream, self.window_type = name, stream, window_type
        self.sessions = 0
        self.wire: deque[Frame] = deque()  # written, not yet taken by the server
        self.answers: deque[tuple[str, int]] = deque()  # answered, not yet heard
        self.open()

    def open(self) -> None:
        self.sessions += 1
        last_seq = len(self.stream.stored)
        positions = [self.stream.position(partition) for partition in range(PARTITIONS)]
        # Kafka orders records within a partition only: the two bridges read them mixed differently.
        order = RECORDS if self.name == "a" else sorted(RECORDS, key=lambda r: -r.kafka_partition)
        self.ahead = deque(r for r in order if r.offset >= positions[r.kafka_partition])
        self.window = self.window_type(f"{self.name}{self.sessions}", last_seq, frames_max=8)

    def send(self, count: int) -> None:
        if self.window.state is not SessionState.OPEN:
            self.open()
        count = min(count, self.window.room, len(self.ahead))
        records = [self.ahead.popleft() for _ in range(count)]
        for place, record in enumerate(records, self.window.sent_count + 1):
            lines = self.window.guard(place).removesuffix("\r\n").split("\r\n")
            guard = dict(line.split(": ", 1) for line in lines)
            asks = place == self.window.sent_count + count
            self.wire.append(Frame(guard, record, self.window.session, asks))
        if records:
            self.window.on_sent(records, count)

    def server_takes(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            frame = self.wire.popleft()
            answer = self.stream.publish(frame)
            if frame.asks:
                self.answers.append((frame.session, answer))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.answers))):
            session, answer = self.answers.popleft()
            if session != self.window.session:
                continue
            if answer > 0:
                self.window.on_acks(1, answer)
            else:
                self.window.on_refusal(-answer, "refused")

    def lose_connection(self, lost_frames: int) -> None:
        """Answers are lost; of the frames the last ones, the rest may still reach the server."""
        self.answers.clear()
        for _ in range(min(lost_frames, len(self.wire))):
            self.wire.pop()
        self.open()

    def lose_one_frame(self, place: int) -> None:
        if self.wire:
            del self.wire[place % len(self.wire)]

    def finish(self) -> None:
        """Alone, until everything is acknowledged."""
        for _ in range(100):
            self.server_takes(len(self.wire))
            self.hear(len(self.answers))
            if self.window.state is not SessionState.OPEN or self.window.in_flight:
                self.open()
            if not self.ahead:
                return
            self.send(5)
        raise AssertionError("no progress")


STEPS = ("send", "take", "hear", "stray", "cut", "drop")
Step = tuple[str, int, int]


def run(steps: list[Step], window_type: type[Window]) -> ModelStream:
    stream = ModelStream()
    bridges = [ModelBridge("a", stream, window_type), ModelBridge("b", stream, window_type)]
    for what, which, count in steps:
        bridge = bridges[which]
        if what == "send":
            bridge.send(count)
        elif what == "take":
            bridge.server_takes(count)
        elif what == "hear":
            bridge.hear(count)
        elif what == "stray":
            stream.publish_stray()
        elif what == "cut":
            bridge.lose_connection(count)
        else:
            bridge.lose_one_frame(count)
    for bridge in bridges:
        bridge.finish()
    return stream


def is_exact(stream: ModelStream) -> bool:
    kept = [record for record in stream.stored if record is not None]
    return all(
        [r for r in kept if r.kafka_partition == partition]
        == [r for r in RECORDS if r.kafka_partition == partition]
        for partition in range(PARTITIONS)
    )


steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 6)), max_size=60
)

STRAY_IN_THE_MIDDLE: list[Step] = [
    ("send", 0, 6),
    ("take", 0, 3),
    ("stray", 0, 0),
    ("take", 0, 3),
    ("hear", 0, 6),
]
TWO_FROM_ONE_SEQUENCE: list[Step] = [
    ("send", 0, 4),
    ("send", 1, 4),
    ("take", 0, 1),
    ("take", 1, 4),
    ("take", 0, 3),
]


@given(steps)
def test_whatever_happens_each_record_is_stored_once_and_in_order(steps: list[Step]) -> None:
    assert is_exact(run(steps, Window))


@pytest.mark.parametrize("steps", [STRAY_IN_THE_MIDDLE, TWO_FROM_ONE_SEQUENCE])
def test_the_chain_holds_where_a_plain_sequence_does_not(steps: list[Step]) -> None:
    assert is_exact(run(steps, Window))
    assert not is_exact(run(steps, PlainSequenceWindow))


def test_a_plain_sequence_leaves_exactly_the_hole_of_the_stray_message() -> None:
    stream = run(STRAY_IN_THE_MIDDLE, PlainSequenceWindow)

    kept = [record for record in stream.stored if record is not None]
    assert [record for record in RECORDS if record not in kept] == [RECORDS[3]]


def test_the_first_frame_expects_the_sequence_and_the_others_the_frame_before() -> None:
    window = Window("s", 41)

    assert window.guard(1) == "Nats-Msg-Id: s-1\r\nNats-Expected-Last-Sequence: 41\r\n"
    assert window.guard(2) == "Nats-Msg-Id: s-2\r\nNats-Expected-Last-Msg-Id: s-1\r\n"


def test_positions_move_when_all_frames_sent_together_are_stored() -> None:
    window = Window("s", 0)
    window.on_sent(RECORDS[:4], 400)
    window.on_sent(RECORDS[4:6], 200)

    before = dict(window.positions)
    window.on_acks(1, 4)
    between = dict(window.positions)
    window.on_acks(1, 6)

    assert (before, between) == ({}, {0: 2, 1: 2})
    assert window.positions == {0: 3, 1: 3}


def test_records_and_bytes_are_counted_as_they_are_stored() -> None:
    """Of frames sent together all at once; of a record in pieces once all are."""
    window = Window("s", 0)
    window.on_sent(RECORDS[:4], 400)
    window.on_sent([], 100, frames=1)
    window.on_sent([], 100, frames=1)
    window.on_sent(RECORDS[4:5], 100, frames=1)

    counted = [(window.stored_records, window.stored_bytes)]
    for seq, count in ((4, 1), (6, 2), (7, 1)):
        window.on_acks(count, seq)
        counted.append((window.stored_records, window.stored_bytes))

    assert counted == [(0, 0), (4, 4), (4, 4), (5, 5)]


def test_what_the_stream_has_of_a_session_that_is_over_is_counted() -> None:
    window = Window("s", 10)
    window.on_sent(RECORDS[:2], 200)
    window.on_sent(RECORDS[2:6], 400)
    window.on_acks(1, 12)
    window.on_refusal(10070, "wrong last msg ID")
    unknown = window.unknown

    window.on_found(4)

    assert unknown == range(3, 6)
    assert (window.stored_records, window.stored_bytes) == (4, 4)
    assert window.stored_seq == 14
    assert window.positions == {0: 2, 1: 2}
    assert window.unknown == range(5, 6)


def test_a_frame_is_known_by_its_id_and_those_of_others_are_none() -> None:
    window = Window("s", 0)

    ids = ["s-17", "s1-17", "s-", "s-x", "", "17"]

    assert [window.frame_of(it) for it in ids] == [17, None, None, None, None, None]


@pytest.mark.parametrize("seq", [13, 15])
def test_an_acknowledgement_with_another_sequence_ends_the_session(seq: int) -> None:
    window = Window("s", 10)
    window.on_sent(RECORDS[:4], 400)

    window.on_acks(1, seq)

    assert window.state is SessionState.BROKEN
    assert window.room == 0


def test_more_acknowledgements_than_were_asked_for_end_the_session() -> None:
    window = Window("s", 0)
    window.on_sent(RECORDS[:2], 200)

    window.on_acks(2, 2)

    assert window.state is SessionState.BROKEN


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (10070, SessionState.REFUSED),
        (10071, SessionState.REFUSED),
        (10023, SessionState.BROKEN),
        (10077, SessionState.UNSTORABLE),
    ],
)
def test_a_refusal_ends_the_session_by_its_kind(code: int, state: SessionState) -> None:
    window = Window("s", 0)
    window.on_sent(RECORDS[:2], 200)

    window.on_refusal(code, "no")

    assert window.state is state


def test_after_a_refusal_a_late_acknowledgement_changes_nothing() -> None:
    window = Window("s", 0)
    window.on_sent(RECORDS[:4], 400)
    window.on_refusal(10070, "wrong last msg ID")

    window.on_acks(1, 4)

    assert window.stored_count == 0
    assert window.state is SessionState.REFUSED


def test_the_first_record_not_stored_is_known_where_it_has_an_answer_of_its_own() -> None:
    window = Window("s", 0)
    window.on_sent(RECORDS[:2], 200)
    window.on_sent([], 100, frames=1)
    window.on_sent(RECORDS[2:3], 100, frames=1)

    of_two = window.first_unstored
    window.on_acks(1, 2)

    assert of_two is None
    assert window.first_unstored == RECORDS[2]


def test_bytes_in_flight_close_the_window_until_they_are_stored() -> None:
    window = Window("s", 0, frames_max=100, bytes_max=1_000)
    window.on_sent(RECORDS[:2], 1_500)
    full = window.room

    window.on_acks(1, 2)

    assert full == 0
    assert window.room == 100
