"""Publishing a route that native producers write too: atomic batches that end in a checkpoint.

A mark that a batch begins, up to 998 records of one partition and, as the last message, the
partition's checkpoint with ``Nats-Expected-Last-Subject-Sequence``: the server stores all or
nothing, and nothing at all when another bridge has moved the checkpoint. Whoever else publishes to
the stream is not disturbed and does not disturb. Batches of a partition follow one another (two in
flight could leave a hole where the first is refused); batches of different partitions overlap.

Checkpoint and mark replace those before them (``Nats-Rollup: sub``) and outlive ``max_age``
(``Nats-TTL: never``).

**A torn batch.** All or nothing does not hold for a server that is out of room (see
`Stream.torn_batch`). The mark then is behind the checkpoint, and the records behind it say where to
go on; a checkpoint of that place is stored before anything else.

**Becoming shared.** A route may have run under the chain before. The first thing a shared session
stores is a claim, a checkpoint without a position. It breaks the chain of a bridge that is still at
work there, and one that begins anew sees it and stops. Only then the position is looked for in the
stream, so nothing can be stored after it was read but through the checkpoint.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Mapping as AbcMapping, Sequence

import msgspec

from ..errors import ConnectionLost, RecordError, SessionLost
from ..jetstream.connection import Connection, parse_answer
from ..jetstream.stream import BATCH_MESSAGES_MAX, Checkpoint, Stream
from ..model import Positions, Record, Watermarks
from ..records.frames import Frames, encode
from ..records.mapping import Mapping
from ..records.origin import without_returned
from .stand_in import StandIn
from .window import CHAIN_REFUSALS, TEMPORARY_REFUSALS

END_S = 0.3
STALL_S = 10.0
"""A batch without an answer for so long ends the session; without room the server gives none."""

_BATCH_RECORDS_MAX = BATCH_MESSAGES_MAX - 2
_BATCH_BYTES = 4 << 20
_BATCHES_AT_ONCE = 4
_WAITING_MAX = 16_000
_WAITING_BYTES_MAX = 16 << 20


class CheckpointPublisher:
    """A `Publisher` for a shared route."""

    batch_records = 4_000

    def __init__(
        self, connection: Connection, mapping: Mapping, *, stall_s: float = STALL_S
    ) -> None:
        self._connection = connection
        self._stall_s = stall_s
        self._mapping = mapping
        self._stream = Stream(connection, mapping)
        self._stand_in = StandIn(self._stream)
        self._frames: Frames | None = None
        self._checkpoint_seqs: dict[int, int] = {}
        self._newest_seqs: dict[int, int] = {}
        """Behind these the partitions have no record, whatever moved their checkpoints since."""
        self._positions: dict[int, int] = {}
        self._stored = (0, 0)
        self._partitions: Sequence[int] = ()
        self._waiting: dict[int, deque[Record]] = {}
        self._waiting_count = self._waiting_bytes = 0
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._failures: list[Exception] = []
        self._slots = asyncio.Semaphore(_BATCHES_AT_ONCE)
        self._moved = asyncio.Event()
        self.foreign_seqs: list[int] = []

    async def open(self, marks: AbcMapping[int, Watermarks], *, known: Positions) -> dict[int, int]:
        """Claim what has no checkpoint yet and read the positions."""
        await self._stream.ensure(may_create=known.keys().isdisjoint(marks))
        self._frames = Frames(self._mapping, self._stream.message_bytes_max)
        await self._stream.refuse_other_form(await self._stream.last_seq())
        self._partitions = partitions = sorted(marks)
        self._positions = {}
        await asyncio.gather(*map(self._take_up, partitions))
        return dict(self._positions)

    async def send(self, records: Sequence[Record]) -> None:
        """Hand the records to their partitions' workers; waits while too many are waiting."""
        self.check()  # a partition whose worker failed must not get another
        for record in records:
            self._waiting.setdefault(record.kafka_partition, deque()).append(record)
            self._waiting_bytes += len(record.value or b"")
        self._waiting_count += len(records)
        for partition in self._waiting:
            if partition not in self._workers:
                self._workers[partition] = asyncio.create_task(
                    self._work(partition), name=f"batches of partition {partition}"
                )
        while self._waiting_count > _WAITING_MAX or self._waiting_bytes > _WAITING_BYTES_MAX:
            self.check()
            await self._one_more_stored()
        self.check()

    def check_same(self, record: Record) -> None:
        """Raise if the newest stored record is another one; see `Publisher`."""
        self._stream.check_same(record)

    def check(self) -> None:
        """Raise what a worker met; SessionLost last, for all others end the run."""
        failures = sorted(self._failures, key=lambda error: isinstance(error, SessionLost))
        if failures:
            raise failures[0]
        if not self._connection.is_open:
            raise ConnectionLost(f"connection lost: {self._connection.lost_reason}")

    async def drain(self) -> None:
        """Wait until all that was sent is stored."""
        while self._workers:
            await self._one_more_stored()
        self.check()

    async def end(self) -> None:
        """Forget what waits, let what is on its way arrive."""
        for waiting in self._waiting.values():
            waiting.clear()
        if self._workers:
            _, late = await asyncio.wait(self._workers.values(), timeout=END_S)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._waiting.clear()
        self._failures.clear()
        self._waiting_count = self._waiting_bytes = 0

    async def met_rival(self) -> bool | None:
        """Always: nobody but a bridge of this route writes its checkpoints."""
        return True

    async def progress_mark(self) -> int:
        """The sum of the checkpoints' sequences: native publishing does not move it."""
        found = await asyncio.gather(*map(self._stream.checkpoint, self._partitions))
        return sum([seq for seq, _ in found])

    @property
    def positions(self) -> Positions:
        """Per partition, one past the last offset stored."""
        return self._positions

    @property
    def stored(self) -> tuple[int, int]:
        """Records and payload bytes stored in all sessions."""
        return self._stored

    @property
    def set_aside(self) -> tuple[int, int]:
        """Records parked and skipped in all sessions."""
        return self._stand_in.set_aside(self.positions)

    async def _take_up(self, partition: int) -> None:
        """Note the partition's checkpoint and position; make the claim where there is none."""
        seq, checkpoint = await self._stream.checkpoint(partition)
        if checkpoint is None:
            seq = await self._claim(partition)
        written = position = checkpoint.next_offset if checkpoint is not None else None
        if position is None:
            position = await self._stream.position(partition)
        else:
            await self._stream.note_before(seq, partition, position - 1)
        self._checkpoint_seqs[partition] = seq
        self._newest_seqs.pop(partition, None)
        torn_at = await self._stream.torn_batch(partition, seq) if checkpoint else None
        if torn_at is not None and torn_at > (written or 0):
            await self._commit(partition, [], (), torn_at)
        elif position is not None:
            self._positions[partition] = position
            self._newest_seqs[partition] = (checkpoint and checkpoint.newest_seq) or seq - 1

    async def _claim(self, partition: int) -> int:
        block = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n{self._keep()}\r\n"
        subject, payload = self._mapping.checkpoint_subject(partition), self._mark(partition, None)
        answer = parse_answer(
            await self._connection.publish_and_wait(
                lambda reply: encode(subject, reply, block, payload), timeout_s=self._stall_s
            )
        )
        self._raise_refusal(answer.get("error"), partition, 0)
        return int(answer["seq"])

    async def _one_more_stored(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _work(self, partition: int) -> None:
        """Store a partition's records batch after batch until none wait, or one batch fails."""
        waiting = self._waiting[partition]
        try:
            while waiting:
                async with self._slots:
                    await self._store(self._next_batch(waiting))
                self._moved.set()
        except Exception as error:  # noqa: BLE001 - `check` raises it: nothing may pass for stored
            self._failures.append(error)
        finally:
            self._workers.pop(partition, None)
            self._moved.set()

    def _next_batch(self, waiting: deque[Record]) -> list[Record]:
        """What fits one atomic batch, by messages and, but for one larger record, by bytes."""
        batch: list[Record] = []
        size = 0
        while waiting and len(batch) < _BATCH_RECORDS_MAX:
            length = len(waiting[0].value or b"")
            if batch and size + length > _BATCH_BYTES:
                break
            size += length
            batch.append(waiting.popleft())
        self._waiting_count -= len(batch)
        self._waiting_bytes -= size
        return batch

    async def _store(self, records: Sequence[Record]) -> None:
        """One batch: all of ``records``, of one partition, and the checkpoint after them.

        A record that cannot be one message ends the batch; what stands for it is a batch itself.
        """
        partition, end = records[-1].kafka_partition, records[-1].offset + 1
        left: Sequence[Record] = without_returned(records, self._mapping.route.name)
        while left:
            trouble = None
            batch, parts = secrets.token_hex(8), list[bytes]()
            assert self._frames is not None
            for place, record in enumerate(left, _FIRST_RECORD):
                try:
                    parts.append(self._frames.plain(record, _member(batch, place)))
                except RecordError as error:
                    trouble = error
                    break
            if parts:
                moved = left[: len(parts)]
                await self._commit(partition, parts, moved, moved[-1].offset + 1, batch=batch)
            left = left[len(parts) :]
            if trouble is not None:
                await self._store_instead(left[0], trouble)
                left = left[1:]
        if self._positions.get(partition, 0) < end:
            # The last ones came back from here: only the position moves past them.
            await self._commit(partition, [], (), end)

    async def _store_instead(self, record: Record, trouble: RecordError) -> None:
        assert self._frames is not None
        pieces = await self._stand_in.pieces(record, trouble, self._frames.message_bytes_max)
        batch = secrets.token_hex(8)
        parts = [
            self._frames.piece(piece, _member(batch, place))
            for place, piece in enumerate(pieces, _FIRST_RECORD)
        ]
        partition, end = record.kafka_partition, record.offset + 1
        await self._commit(partition, parts, [record], end, batch=batch)

    async def _commit(
        self,
        partition: int,
        parts: Sequence[bytes],
        moved: Sequence[Record],
        position: int,
        *,
        batch: str = "",
    ) -> None:
        """Store a batch: its ``parts``, which stand for ``moved``, and the position after them.

        Without parts it is the checkpoint alone.
        """
        block = "NATS/1.0\r\n"
        begin: list[bytes] = []
        if parts:
            begin.append(self._begin(partition, batch))
            block += f"{_member(batch, len(parts) + _FIRST_RECORD)}Nats-Batch-Commit: 1\r\n"
        block += (
            f"Nats-Expected-Last-Subject-Sequence: {self._checkpoint_seqs[partition]}\r\n"
            f"Nats-Rollup: sub\r\n{self._keep()}\r\n"
        )
        subject = self._mapping.checkpoint_subject(partition)
        newest_seq = None if parts else self._newest_seqs.get(partition)
        payload = self._mark(partition, position, newest_seq)
        answer = parse_answer(
            await self._connection.publish_and_wait(
                lambda reply: b"".join([*begin, *parts, encode(subject, reply, block, payload)]),
                timeout_s=self._stall_s,
            )
        )
        offset = moved[0].offset if moved else position
        self._raise_refusal(answer.get("error"), partition, offset)
        self._checkpoint_seqs[partition] = int(answer["seq"])
        self._positions[partition] = position
        if parts:
            self._newest_seqs[partition] = self._checkpoint_seqs[partition] - 1
        size = sum([len(record.value or b"") for record in moved])
        self._stored = (self._stored[0] + len(moved), self._stored[1] + size)

    def _begin(self, partition: int, batch: str) -> bytes:
        block = f"NATS/1.0\r\n{_member(batch, 1)}Nats-Rollup: sub\r\n{self._keep()}\r\n"
        return encode(self._stream.batch_subject(partition), "", block, b"")

    def _raise_refusal(self, error: dict[str, object] | None, partition: int, offset: int) -> None:
        if not error:
            return
        code, description = int(str(error.get("err_code", 0))), str(error.get("description"))
        if code in CHAIN_REFUSALS:
            raise SessionLost(
                f"checkpoint of partition {partition}: {description}", is_refused=True
            )
        if code in TEMPORARY_REFUSALS:
            raise SessionLost(f"batch of partition {partition}: {description}", is_not_now=True)
        raise RecordError(
            self._mapping.route.topic, partition, offset, f"the server refuses it: {description}"
        )

    def _keep(self) -> str:
        return "Nats-TTL: never\r\n" if self._stream.config.get("allow_msg_ttl") else ""

    def _mark(self, partition: int, position: int | None, newest_seq: int | None = None) -> bytes:
        return msgspec.json.encode(
            Checkpoint(
                topic=self._mapping.route.topic,
                kafka_partition=partition,
                next_offset=position,
                newest_seq=newest_seq,
            )
        )


_FIRST_RECORD = 2
"""Its place in a batch, behind the mark."""


def _member(batch: str, place: int) -> str:
    return f"Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {place}\r\n"
