"""The pipeline of one publishing session: which frames are out, what is stored, when it is over.

The chain
---------
A session numbers its frames from 1. Frame 1 carries ``Nats-Expected-Last-Sequence`` with the
sequence the stream's last message had when the session read its position; frame n > 1 carries
``Nats-Expected-Last-Msg-Id`` naming frame n - 1; each has its own ``Nats-Msg-Id``
``<session>-<n>``. So a frame is stored only when the message before it in the stream is the frame
before it in the session. Whatever comes between (a stray message, another bridge's session, a frame
lost on the way) makes the server refuse all that follows with error 10070: **what is stored of a
session is a prefix of what it sent**, whole and in order, however deep the pipeline is. That holds
past the duplicate window and past a restart of the server, because the id of the last message is
kept with it.

An expected sequence on every frame would not do: a stray message in the middle makes the server
refuse one frame and take the rest (a hole), and two sessions that started at the same sequence
interleave. `tests/bridge/test_window.py` shows both.

What follows for acknowledgements
---------------------------------
Since a stored frame says that all before it are stored, an answer is asked for once in a while
only: with every frame it would cost the server and us a quarter more. Answers come in order, and
frame n of a session is at ``last_seq + n``. The window checks that, and counts. Any refusal, gap or
silence ends the session. The window then is void: nothing is sent again from memory. The position
is read from the stream, the records from Kafka, under a new session's name. So no frame is ever
sent twice under one id, and the duplicate window plays no part.

A refusal tells of the frame that asked, and it may only be refused because one before it was. Why
that one was, nobody says; so the next session asks for an answer to every frame at first (see
`chain`), until it has met it again.
"""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from ..model import Record

CHAIN_REFUSALS = frozenset({10070, 10071, 10164})
"""The server's codes for a wrong last id and a wrong last sequence."""

TEMPORARY_REFUSALS = frozenset({10008, 10023, 10167, 10176, 10210})
"""Not now: a cluster without a leader, no resources, too many messages waiting, a batch that lost a
message on its way, too many batches at once."""


class SessionState(StrEnum):
    """How a session stands.

    ``open`` takes frames. ``refused``: somebody else wrote in between, or a frame that did not ask
    was refused. ``broken``: an answer is missing, makes no sense or says "not now"; another session
    may do better. ``unstorable``: the stream will not have the record, and another session would
    only meet it again.
    """

    OPEN = "open"
    REFUSED = "refused"
    BROKEN = "broken"
    UNSTORABLE = "unstorable"


class Pushed(NamedTuple):
    """Records whose frames were sent together, up to ``last_frame``, which asks for the answer."""

    last_frame: int
    wire_bytes: int
    records: Sequence[Record]


class Window:
    """The frames of one session in flight. Pure: told what was sent and what came back.

    ``session`` must never be used twice on a stream. ``last_seq`` is the stream's last sequence,
    read before the positions the session starts from.
    """

    def __init__(
        self, session: str, last_seq: int, *, frames_max: int = 8192, bytes_max: int = 8 << 20
    ) -> None:
        self.session = session
        self.last_seq = last_seq
        self.frames_max = frames_max
        self.bytes_max = bytes_max
        self.state = SessionState.OPEN
        self.reason = ""
        self.was_refused = False
        """The server refused a frame; those before it are stored by now, or will never be."""
        self.sent_count = 0
        self.stored_count = 0
        self.positions: dict[int, int] = {}
        self._sent_bytes = 0
        self._done_frames = 0
        self._done_records = 0
        self._done_bytes = 0
        self._in_flight: deque[Pushed] = deque()
        self._id_prefix = f"Nats-Msg-Id: {session}-"
        self._expected_prefix = f"\r\nNats-Expected-Last-Msg-Id: {session}-"

    @property
    def in_flight(self) -> int:
        """Frames sent and not yet known to be stored."""
        return self.sent_count - self.stored_count

    @property
    def stored_records(self) -> int:
        """How many records are stored as a whole."""
        return self._done_records + len(self._begun)

    @property
    def stored_bytes(self) -> int:
        """The payload of the records that are stored as a whole."""
        return self._done_bytes + _payload_bytes(self._begun)

    @property
    def _begun(self) -> Sequence[Record]:
        """What is stored of the oldest records in flight; none of one that is several frames."""
        if not self._in_flight:
            return ()
        front = self._in_flight[0]
        if front.last_frame - self._done_frames > len(front.records):
            return ()
        return front.records[: self.stored_count - self._done_frames]

    @property
    def out_bytes(self) -> int:
        """Bytes written whose frames are not all known to be stored."""
        return self._sent_bytes

    @property
    def room(self) -> int:
        """How many frames may be sent now, none while too many bytes are out."""
        if self.state is not SessionState.OPEN or self._sent_bytes >= self.bytes_max:
            return 0
        return self.frames_max - self.in_flight

    @property
    def stored_seq(self) -> int:
        """The sequence of the last stored message; before any, the one the session starts after."""
        return self.last_seq + self.stored_count

    def guard(self, frame: int) -> str:
        """The header lines, CRLF-ended, that let the server store this frame in its place only."""
        if frame == 1:
            return f"{self._id_prefix}1\r\nNats-Expected-Last-Sequence: {self.last_seq}\r\n"
        return f"{self._id_prefix}{frame}{self._expected_prefix}{frame - 1}\r\n"

    def frame_of(self, message_id: str) -> int | None:
        """Which frame of this session has an id, None: it is none of them."""
        before, _, frame = message_id.rpartition("-")
        return int(frame) if before == self.session and frame.isdecimal() else None

    @property
    def unknown(self) -> range:
        """The frames that may be stored though the one that asked after them was refused."""
        asked = self._in_flight[0].last_frame if self._in_flight else 0
        return range(self.stored_count + 1, asked)

    @property
    def first_unstored(self) -> Record | None:
        """The record that is the first not to be stored, None where one answer is for several."""
        if not self._in_flight or len(self._in_flight[0].records) > 1:
            return None
        return next((pushed.records[0] for pushed in self._in_flight if pushed.records), None)

    def on_sent(self, records: Sequence[Record], wire_bytes: int, frames: int = 0) -> None:
        """The frames of these records were written, ``wire_bytes`` in all; the last one asks.

        ``frames``, where it is given, is how many stand for the one record there is. That may have
        several answers: it is given with the last of them.
        """
        self.sent_count += frames or len(records)
        self._sent_bytes += wire_bytes
        self._in_flight.append(Pushed(self.sent_count, wire_bytes, records))

    def on_acks(self, count: int, seq: int) -> None:
        """``count`` good acknowledgements in a row came, the last with sequence ``seq``."""
        if self.state is not SessionState.OPEN:
            return
        out = self._in_flight
        wanted = self.last_seq + out[count - 1].last_frame if count <= len(out) else None
        if seq != wanted:
            what = f"acknowledgement {count} of {len(out)} has sequence {seq}, not {wanted}"
            self._end(SessionState.BROKEN, what)
            return
        for _ in range(count):
            pushed = out.popleft()
            self._done_records += len(pushed.records)
            self._done_bytes += _payload_bytes(pushed.records)
            self._done_frames = self.stored_count = pushed.last_frame
            self._sent_bytes -= pushed.wire_bytes
            self.positions.update([(it.kafka_partition, it.offset + 1) for it in pushed.records])

    def on_found(self, frame: int) -> None:
        """The stream has this frame and so all before it; of a session that is over."""
        self.stored_count = max(self.stored_count, frame)
        self.positions.update([(it.kafka_partition, it.offset + 1) for it in self._begun])

    def on_refusal(self, code: int, description: str) -> None:
        """The server refused the next frame that asked, if not one before; the session is over."""
        if self.state is SessionState.OPEN:
            self.was_refused = True
            state = SessionState.UNSTORABLE
            if code in CHAIN_REFUSALS:
                state = SessionState.REFUSED
            elif code in TEMPORARY_REFUSALS:
                state = SessionState.BROKEN
            self._end(state, f"{description} ({code})")

    def on_strange_answer(self, what: str) -> None:
        """An answer that is neither a good acknowledgement nor a refusal; the session is over."""
        if self.state is SessionState.OPEN:
            self._end(SessionState.BROKEN, what)

    def _end(self, state: SessionState, reason: str) -> None:
        self.state = state
        self.reason = reason


def _payload_bytes(records: Sequence[Record]) -> int:
    return sum([len(record.value or b"") for record in records])
