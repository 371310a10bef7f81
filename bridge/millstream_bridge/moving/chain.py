"""Publishing a route that only bridges write: a pipeline under the chain (see `window`).

One session: read the stream's last sequence, then each partition's position, then send. Read in
this order, a message stored in between moves the last sequence, and the session's first frame is
refused.

**One by one.** The last of a hundred frames asks for an answer. Where the server ended a session,
it need not have said which frame it refused first, and why; so the next session has each record
answered by itself, as many as were out. Either it gets behind them, or it hears what is the matter
with one.

**A replicated stream gets no chain.** nats-server (2.15.1) finds a wrong last id only when the
replicas have agreed on the message already; all of them then take it for a failure to write and
stop the stream for good. What is refused there must be refused before: an atomic batch whose first
message expects the last sequence is stored as a whole or not at all. One batch is out at a time,
for two could leave a hole.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping as AbcMapping, Sequence
from contextlib import suppress

from ..errors import ConfigurationError, ConnectionLost, RecordError, SessionLost
from ..jetstream.connection import AckSink, Connection, Message, parse_answer
from ..jetstream.stream import BATCH_MESSAGES_MAX, Stream
from ..model import KafkaHeader, Positions, Record, Watermarks
from ..records.frames import Frames
from ..records.mapping import Mapping
from ..records.origin import without_returned
from .stand_in import StandIn
from .window import SessionState, Window

logger = logging.getLogger(__name__)

STALL_S = 5.0
"""Frames are out and no acknowledgement came for so long: the session is over."""

END_S = 1.0
"""So long a session may take, when it ends, to look at and write down what it has stored."""

_CHUNK_RECORDS = 100
_CHUNK_BYTES = 1 << 16
"""What one answer is for; small enough that a slow link has one long before `STALL_S`."""

_BATCH_BYTES = 1 << 20


class ChainPublisher:
    """A `Publisher` for a route nobody but bridges writes.

    ``kafka_partition``: of a dense route, whose stream this is; ``moved`` is then set with every
    answer, for who waits for several. ``window_type`` is there for the test that shows what a
    weaker guard does.
    """

    batch_records = 1_000

    def __init__(
        self,
        connection: Connection,
        mapping: Mapping,
        *,
        kafka_partition: int | None = None,
        moved: asyncio.Event | None = None,
        window_type: type[Window] = Window,
        stall_s: float = STALL_S,
    ) -> None:
        self._connection = connection
        self._mapping = mapping
        self._stream = Stream(connection, mapping, kafka_partition)
        self._stand_in = StandIn(self._stream)
        self._window_type = window_type
        self._stall_s = stall_s
        self._frames: Frames | None = None
        self._last_frames: Frames | None = None
        """For the frame that commits a batch: it alone may be longer by that."""
        self._window: Window | None = None
        self._alone = 0
        """So many of the next records have an answer each."""
        self._reply = ""
        self._moved = moved or asyncio.Event()
        self._moved_at = 0.0
        self._stored_before = (0, 0)
        """In the sessions before this one."""
        self._positions: dict[int, int] = {}
        self._passed: dict[int, int] = {}
        """Behind records of this session that came back from here, and are not stored again."""
        self.foreign_seqs: list[int] = []

    async def open(self, marks: AbcMapping[int, Watermarks], *, known: Positions) -> dict[int, int]:
        """Read the positions from the stream and begin a session; see `Publisher`.

        ConfigurationError: the stream cannot take the route.
        """
        await self.end()
        partitions = sorted(marks)
        may_create = known.keys().isdisjoint(partitions)
        await self._stream.ensure(may_create=may_create, first_offset=marks[partitions[0]].low)
        bytes_max = self._stream.message_bytes_max
        self._frames = Frames(self._mapping, bytes_max - len(_COMMIT) * self.is_replicated)
        self._last_frames = Frames(self._mapping, bytes_max)
        last_seq = await self._stream.last_seq()
        await self._stream.refuse_other_form(last_seq)
        await self._stream.refuse_other_topic()
        found = await asyncio.gather(*map(self._stream.position, partitions))
        positions = {p: at for p, at in zip(partitions, found, strict=True) if at is not None}
        if not positions:
            await self._stream.tell_of_foreign()
        self._positions, self._passed = dict(positions), {}
        self._stored_before = self.stored
        self._window = self._window_type(secrets.token_hex(6), last_seq)
        self._reply = self._connection.new_ack_subject(AckSink(self._on_acks, self._on_other))
        place = self._stream.place
        is_lost = place is not None and place[0] > last_seq
        if self._stream.lifetime_s is not None or is_lost:
            # How old the newest record is by now, nobody knows.
            await self._mark_position(is_lost=is_lost)
        return positions

    def check_same(self, record: Record) -> None:
        """Raise if the newest stored record is another one; see `Publisher`."""
        self._stream.check_same(record)

    async def send(self, records: Sequence[Record]) -> None:
        """Write the records' frames as soon as the window has room for them."""
        wanted = without_returned(records, self._mapping.route.name)
        alone, together = wanted[: self._alone], wanted[self._alone :]
        self._alone -= len(alone)
        if self.is_replicated:
            send, chunks = self._send_batches, _chunks(together, BATCH_MESSAGES_MAX, _BATCH_BYTES)
        else:
            send, chunks = self._send_chunk, _chunks(together, _CHUNK_RECORDS, _CHUNK_BYTES)
        for record in alone:
            await send([record])
        for chunk in chunks:
            await send(chunk)
        if len(wanted) < len(records):
            self._passed.update([(it.kafka_partition, it.offset + 1) for it in records])

    async def _send_chunk(self, records: Sequence[Record]) -> None:
        left = records
        while left:
            window = await self._wait_for_room(len(left))
            await self._note_gaps(window, left)
            assert self._frames is not None
            data, count, error = self._frames.chained(
                left, window.guard, window.sent_count, self._reply
            )
            if count:
                await self._write(window, data)
                window.on_sent(left[:count], len(data))
            left = left[count:]
            if error is not None:
                await self.drain()
                await self._send_instead(left[0], error)
                left = left[1:]

    async def _note_gaps(self, window: Window, records: Sequence[Record]) -> None:
        """Say in a dense stream's metadata, once, that its sequences are not offsets + 1."""
        if self._stream.kafka_partition is None or self._stream.has_gaps:
            return
        first, last = records[0].offset, records[-1].offset
        next_seq = window.last_seq + window.sent_count + 1
        if first + 1 != next_seq or last - first + 1 != len(records):
            await self._mark_gaps()

    async def _mark_gaps(self) -> None:
        logger.info(
            "stream %s: offsets have gaps, sequences are no longer offsets + 1",
            self._stream.name,
            extra={"event": "offset_gaps"},
        )
        await self._stream.mark_gaps()

    async def _send_instead(self, record: Record, error: RecordError) -> None:
        """Send what stands for a record that cannot be one message, or raise ``error``."""
        assert self._frames is not None
        encode = self._frames.piece
        pieces = await self._stand_in.pieces(record, error, self._frames.message_bytes_max)
        if self.is_replicated:
            if len(pieces) > BATCH_MESSAGES_MAX:
                raise error
            window = await self._wait_for_room(len(pieces))
            batch = _Batch(window, lambda n, guard, reply: encode(pieces[n], guard, reply))
            batch.fill(len(pieces))
            await self._commit(window, batch, [record])
            return
        window = await self._wait_for_room(len(pieces))
        frames = [
            encode(piece, window.guard(n), self._reply)
            for n, piece in enumerate(pieces, window.sent_count + 1)
        ]
        await self._write(window, b"".join(frames))
        for place, frame in enumerate(frames, 1):
            window.on_sent([record] if place == len(frames) else [], len(frame), frames=1)

    async def _send_batches(self, records: Sequence[Record]) -> None:
        """Store the records as one atomic batch, or more where one of them is no message."""
        assert self._frames is not None
        assert self._last_frames is not None
        encode, encode_last = self._frames.plain, self._last_frames.plain
        left = records
        while left:
            window = await self._wait_for_room(len(left))
            await self._note_gaps(window, left)

            def frame(n: int, guard: str, reply: str, some: Sequence[Record] = left) -> bytes:
                return (encode_last if reply else encode)(some[n], guard, reply)

            batch = _Batch(window, frame)
            error = batch.fill(len(left))
            if batch.count:
                await self._commit(window, batch, left[: batch.count])
            left = left[batch.count :]
            if error is not None:
                await self._send_instead(left[0], error)
                left = left[1:]

    async def _commit(self, window: Window, batch: "_Batch", records: Sequence[Record]) -> None:
        """Send one batch and take its answer into the window; raises as `check` does."""
        window.on_sent(records, batch.size, batch.count)
        answer = parse_answer(
            await self._connection.publish_and_wait(batch.encode, timeout_s=self._stall_s)
        )
        if error := answer.get("error"):
            window.on_refusal(int(error.get("err_code", 0)), str(error.get("description")))
        else:
            self._on_acks(1, int(answer["seq"]))
        self.check()

    async def _write(self, window: Window, data: bytes) -> None:
        if window.in_flight == 0:
            self._moved_at = asyncio.get_running_loop().time()
        await self._connection.writable()
        self._connection.write(data)

    def check(self) -> None:
        """Raise SessionLost, or RecordError when the server cannot take a record."""
        window = self._window
        if window is None:
            raise SessionLost("no session is open")
        if self._connection.denied:
            raise ConfigurationError(f"NATS at {self._connection.url}: {self._connection.denied}")
        if not self._connection.is_open:
            raise ConnectionLost(f"connection lost: {self._connection.lost_reason}")
        if window.state is SessionState.REFUSED:
            raise SessionLost(window.reason, is_refused=True)
        if window.state is SessionState.BROKEN:
            raise SessionLost(window.reason, is_not_now=True)
        if window.state is SessionState.UNSTORABLE:
            record = window.first_unstored
            if record is None:
                raise SessionLost(window.reason)
            raise RecordError(
                self._mapping.route.topic,
                record.kafka_partition,
                record.offset,
                f"the server refuses it: {window.reason}",
            )
        waited_s = asyncio.get_running_loop().time() - self._moved_at
        if window.in_flight and waited_s > self._stall_s:
            raise ConnectionLost(
                f"{window.in_flight} frames are out, no acknowledgement for {waited_s:.1f} s"
            )

    async def drain(self) -> None:
        """Wait until all that was sent is stored."""
        self.check()
        while self._window is not None and self._window.in_flight:
            await self._wait_for_answer()

    async def end(self) -> None:
        """Drop the answers that are still to come; count what a refused session has stored."""
        if not self._reply:
            return
        self._connection.drop_ack_subject(self._reply)
        self._reply = ""
        window = self._window
        if window is None:
            return
        with suppress(SessionLost, ConfigurationError, TimeoutError):
            async with asyncio.timeout(END_S):
                if window.was_refused and not self.is_replicated:
                    await self._find_last_stored(window)
                await self._mark_position()
        is_heard = window.state is SessionState.UNSTORABLE or not self.is_replicated
        if window.state is not SessionState.OPEN and is_heard:
            self._alone = window.in_flight

    async def _find_last_stored(self, window: Window) -> None:
        """Count the frames that were stored though none after them could say so.

        They go on without a gap behind those that are known, so each look halves what is left.
        """
        left = window.unknown
        while left:
            middle = left[len(left) // 2]
            found = await self._stream.message_from(window.last_seq + middle)
            frame = None if found is None else window.frame_of(found.header("Nats-Msg-Id") or "")
            if frame is None:
                left = range(left.start, middle)
            else:
                window.on_found(frame)
                left = range(frame + 1, left.stop)
        self._positions.update(window.positions)

    async def mark_at_rest(self) -> None:
        """Write down where a dense stream stands before its newest record may run out."""
        window, lifetime_s = self._window, self._stream.lifetime_s
        if window is None or window.in_flight or lifetime_s is None:
            return
        if asyncio.get_running_loop().time() - self._moved_at >= lifetime_s / 2:
            await self._mark_position()

    async def _mark_position(self, *, is_lost: bool = False) -> None:
        """Write down where a dense stream stands, as far as this session knows.

        ``is_lost``: the place that is written down is beyond the stream's end.
        """
        window, partition = self._window, self._stream.kafka_partition
        position = None if partition is None else self.positions.get(partition)
        if window is None or position is None:
            return
        place = self._stream.place
        if place is not None and place[0] >= window.stored_seq and not is_lost:
            return
        if not window.stored_count and await self._stream.last_seq() > window.last_seq:
            return  # somebody stored between the two, so the one is not the other's
        await self._stream.mark_position(window.stored_seq, position)

    async def met_rival(self) -> bool | None:
        """Look at the message that came after the session's last; see `Publisher`.

        A stray message is logged with its sequence.
        """
        window = self._window
        assert window is not None
        seq = window.stored_seq + 1
        culprit = await self._stream.message(seq)
        if culprit is None:
            return None if await self._stream.last_seq() < seq else False
        if self._mapping.source_in(culprit.headers) is not None:
            return True
        if seq not in self.foreign_seqs and len(self.foreign_seqs) < _FOREIGN_SEQS_MAX:
            self.foreign_seqs.append(seq)
        logger.warning(
            "stream %s seq %d: a message on %s that is not this bridge's; the route is not shared",
            self._stream.name,
            seq,
            culprit.subject,
            extra={"event": "foreign_message", "seq": seq},
        )
        return False

    async def progress_mark(self) -> int:
        """The stream's last sequence."""
        return await self._stream.last_seq()

    @property
    def is_replicated(self) -> bool:
        """Whether the stream has replicas; known once a session is open."""
        return int(self._stream.config.get("num_replicas", 1)) > 1

    @property
    def is_refused(self) -> bool:
        """Whether the session ended because somebody else wrote."""
        return self._window is not None and self._window.state is SessionState.REFUSED

    @property
    def out_bytes(self) -> int:
        """How much was written and is not known to be stored."""
        return self._window.out_bytes if self._window is not None else 0

    @property
    def positions(self) -> Positions:
        """Per partition, one past the last offset known to be stored.

        Once all is stored, also past what came back from here and is not stored again.
        """
        if not self._passed or self._window is None or self._window.in_flight:
            return self._positions
        found = dict(self._positions)
        for partition, at in self._passed.items():
            found[partition] = max(at, found.get(partition, 0))
        return found

    @property
    def stored(self) -> tuple[int, int]:
        """Records and payload bytes acknowledged in all sessions."""
        records, size = self._stored_before
        if self._window is None:
            return records, size
        return records + self._window.stored_records, size + self._window.stored_bytes

    @property
    def set_aside(self) -> tuple[int, int]:
        """Records parked and skipped in all sessions."""
        return self._stand_in.set_aside(self.positions)

    async def _wait_for_room(self, count: int) -> Window:
        while True:
            self.check()
            assert self._window is not None
            if self._window.room >= count:
                return self._window
            await self._wait_for_answer()

    async def _wait_for_answer(self) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(self._stall_s):
                await self._moved.wait()
        except TimeoutError:
            pass
        self.check()

    def _on_acks(self, count: int, seq: int) -> None:
        window = self._window
        assert window is not None
        window.on_acks(count, seq)
        self._positions.update(window.positions)
        self._moved_at = asyncio.get_running_loop().time()
        self._moved.set()

    def _on_other(self, message: Message) -> None:
        window = self._window
        assert window is not None
        try:
            answer = parse_answer(message)
        except ConnectionLost as error:
            window.on_strange_answer(str(error))
        else:
            refusal = answer.get("error")
            if refusal:
                window.on_refusal(int(refusal.get("err_code", 0)), str(refusal.get("description")))
            else:
                window.on_strange_answer(f"unexpected answer {message.payload[:200]!r}")
        self._moved.set()


_FOREIGN_SEQS_MAX = 100


class _Batch:
    """The frames of one atomic batch, made by ``frame(n, guard, reply)``, n from 0 on."""

    def __init__(self, window: Window, frame: Callable[[int, str, str], bytes]) -> None:
        self._frame = frame
        self._id = f"{window.session}-{window.sent_count + 1}"
        self._expected = f"Nats-Expected-Last-Sequence: {window.stored_seq}\r\n"
        self._parts: list[bytes] = []

    @property
    def count(self) -> int:
        """How many messages it has."""
        return len(self._parts)

    @property
    def size(self) -> int:
        """How many bytes its frames are."""
        return sum(map(len, self._parts))

    def fill(self, count: int) -> RecordError | None:
        """Make so many frames, or those before the first that cannot be, and say why not."""
        for n in range(count):
            try:
                self._parts.append(self._frame(n, self._guard(n), ""))
            except RecordError as error:
                return error
        return None

    def encode(self, reply: str) -> bytes:
        """The operations; the last one commits and asks for the answer."""
        last = self.count - 1
        return b"".join([*self._parts[:-1], self._frame(last, self._guard(last) + _COMMIT, reply)])

    def _guard(self, n: int) -> str:
        expected = "" if n else self._expected
        return f"Nats-Batch-Id: {self._id}\r\nNats-Batch-Sequence: {n + 1}\r\n{expected}"


_COMMIT = "Nats-Batch-Commit: 1\r\n"


def _bytes_of(headers: Sequence[KafkaHeader]) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def _chunks(
    records: Sequence[Record], records_max: int, bytes_max: int
) -> Iterator[Sequence[Record]]:
    """Pieces of at most so many records and, but for a single larger one, so many bytes."""
    sizes = [len(it.value or b"") + (_bytes_of(it.headers) if it.headers else 0) for it in records]
    start = 0
    while start < len(records):
        count = min(records_max, len(records) - start)
        while count > 1 and sum(sizes[start : start + count]) > bytes_max:
            count //= 2
        yield records[start : start + count]
        start += count
