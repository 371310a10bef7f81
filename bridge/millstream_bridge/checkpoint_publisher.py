"""Publishing a route that native producers write too: atomic batches that end in a checkpoint.

Up to 999 records of one partition and, as the last message, the partition's checkpoint with
``Nats-Expected-Last-Subject-Sequence``: the server stores all or nothing, and nothing at all when
another bridge has moved the checkpoint. Whoever else publishes to the stream is not disturbed and
does not disturb. Batches of a partition follow one another (two in flight could leave a hole where
the first is refused); batches of different partitions overlap.

The checkpoint replaces the one before it (``Nats-Rollup: sub``) and outlives ``max_age``
(``Nats-TTL: never``).

**Becoming shared.** A route may have run under the chain before. The first thing a shared session
stores is a claim, a checkpoint without a position. It breaks the chain of a bridge that is still at
work there, and one that begins anew sees it and stops. Only then the position is looked for in the
stream, so nothing can be stored after it was read but through the checkpoint.
"""

import asyncio
import secrets
from collections.abc import Sequence

import msgspec

from .connection import Connection, parse_answer
from .errors import ConnectionLost, RecordError, SessionLost
from .frames import Frames, encode
from .mapping import Mapping
from .model import Positions, Record
from .stream import Checkpoint, Stream
from .window import CHAIN_REFUSALS, TEMPORARY_REFUSALS

BATCH_MESSAGES_MAX = 1_000
"""The server's limit for one atomic batch, the checkpoint included."""

_BATCH_BYTES = 4 << 20
_BATCHES_AT_ONCE = 4
_BATCH_FAILED = TEMPORARY_REFUSALS | {10176, 10210}
"""Worth another session: not now, a message lost on the way, too many batches at once."""


class CheckpointPublisher:
    """A `Publisher` for a shared route."""

    batch_records = 8_000

    def __init__(self, connection: Connection, mapping: Mapping) -> None:
        self._connection = connection
        self._mapping = mapping
        self._stream = Stream(connection, mapping)
        self._frames: Frames | None = None
        self._checkpoint_seqs: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._stored = (0, 0)
        self._partitions: Sequence[int] = ()
        self.foreign_seqs: list[int] = []

    async def open(self, partitions: Sequence[int], *, may_create: bool) -> dict[int, int]:
        """Claim what has no checkpoint yet and read the positions."""
        await self._stream.ensure(may_create=may_create)
        config = self._stream.config
        limits = [self._connection.max_payload, int(config.get("max_msg_size", -1))]
        self._frames = Frames(self._mapping, min(limit for limit in limits if limit > 0))
        await self._stream.refuse_other_form(await self._stream.last_seq())
        self._partitions = partitions
        self._positions = {}
        await asyncio.gather(*map(self._take_up, partitions))
        return dict(self._positions)

    async def send(self, records: Sequence[Record]) -> None:
        """Store the records, in batches per partition; returns when all are stored."""
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.kafka_partition, []).append(record)
        slots = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def store(of_partition: list[Record]) -> None:
            for batch in _batches(of_partition):
                async with slots:
                    await self._store(batch)

        results = await asyncio.gather(
            *(store(of_partition) for of_partition in by_partition.values()),
            return_exceptions=True,
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        # A record that cannot be moved ends the run, so it is told before a session that can go on.
        for error in sorted(errors, key=lambda error: not isinstance(error, RecordError)):
            raise error

    def check(self) -> None:
        """Raise ConnectionLost; nothing else can happen between two sends."""
        if not self._connection.is_open:
            raise ConnectionLost(f"connection lost: {self._connection.lost_reason}")

    async def drain(self) -> None:
        """Nothing to wait for: `send` returns when its records are stored."""
        self.check()

    async def met_rival(self) -> bool:
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

    async def _take_up(self, partition: int) -> None:
        """Note the partition's checkpoint and position; make the claim where there is none."""
        seq, checkpoint = await self._stream.checkpoint(partition)
        if checkpoint is None:
            seq = await self._claim(partition)
        position = checkpoint.next_offset if checkpoint is not None else None
        if position is None:
            position = await self._stream.position(partition)
        self._checkpoint_seqs[partition] = seq
        if position is not None:
            self._positions[partition] = position

    async def _claim(self, partition: int) -> int:
        block = f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n{self._keep()}\r\n"
        subject, payload = self._mapping.checkpoint_subject(partition), self._mark(partition, None)
        answer = parse_answer(
            await self._connection.publish_and_wait(
                lambda reply: encode(subject, reply, block, payload)
            )
        )
        self._raise_refusal(answer.get("error"), partition, 0)
        return int(answer["seq"])

    async def _store(self, records: Sequence[Record]) -> None:
        """One batch: all of ``records``, of one partition, and the checkpoint after them."""
        assert self._frames is not None
        partition = records[0].kafka_partition
        batch = secrets.token_hex(8)
        parts: list[bytes] = []
        trouble = None
        for place, record in enumerate(records, 1):
            try:
                parts.append(self._frames.plain(record, _member(batch, place)))
            except RecordError as error:
                trouble = error
                break
        moved = records[: len(parts)]
        if moved:
            await self._commit(partition, batch, parts, moved)
        if trouble is not None:
            raise trouble

    async def _commit(
        self, partition: int, batch: str, parts: list[bytes], moved: Sequence[Record]
    ) -> None:
        position = moved[-1].offset + 1
        block = (
            f"NATS/1.0\r\n{_member(batch, len(parts) + 1)}Nats-Batch-Commit: 1\r\n"
            f"Nats-Expected-Last-Subject-Sequence: {self._checkpoint_seqs[partition]}\r\n"
            f"Nats-Rollup: sub\r\n{self._keep()}\r\n"
        )
        subject = self._mapping.checkpoint_subject(partition)
        payload = self._mark(partition, position)
        answer = parse_answer(
            await self._connection.publish_and_wait(
                lambda reply: b"".join([*parts, encode(subject, reply, block, payload)])
            )
        )
        self._raise_refusal(answer.get("error"), partition, moved[0].offset)
        self._checkpoint_seqs[partition] = int(answer["seq"])
        self._positions[partition] = position
        size = sum([len(record.value or b"") for record in moved])
        self._stored = (self._stored[0] + len(moved), self._stored[1] + size)

    def _raise_refusal(self, error: dict[str, object] | None, partition: int, offset: int) -> None:
        if not error:
            return
        code, description = int(str(error.get("err_code", 0))), str(error.get("description"))
        if code in CHAIN_REFUSALS:
            raise SessionLost(
                f"checkpoint of partition {partition}: {description}", is_refused=True
            )
        if code in _BATCH_FAILED:
            raise SessionLost(f"batch of partition {partition}: {description}")
        raise RecordError(
            self._mapping.route.topic, partition, offset, f"the server refuses it: {description}"
        )

    def _keep(self) -> str:
        return "Nats-TTL: never\r\n" if self._stream.config.get("allow_msg_ttl") else ""

    def _mark(self, partition: int, position: int | None) -> bytes:
        topic = self._mapping.route.topic
        return msgspec.json.encode(
            Checkpoint(topic=topic, kafka_partition=partition, next_offset=position)
        )


def _member(batch: str, place: int) -> str:
    return f"Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {place}\r\n"


def _batches(records: list[Record]) -> list[list[Record]]:
    """Pieces that fit one atomic batch, by messages and, but for one larger record, by bytes."""
    batches: list[list[Record]] = [[]]
    size = 0
    for record in records:
        length = len(record.value or b"")
        full = len(batches[-1]) >= BATCH_MESSAGES_MAX - 1
        if batches[-1] and (full or size + length > _BATCH_BYTES):
            batches.append([])
            size = 0
        batches[-1].append(record)
        size += length
    return batches
