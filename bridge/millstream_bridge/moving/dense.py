"""Publishing a dense route: one stream for each Kafka partition, one chain in each.

A stream begins at the sequence one past the partition's low watermark, and nobody but bridges
writes it: so a message's sequence is its record's offset + 1, and translating between the two is
arithmetic. Offsets that Kafka never gives out (transactions, compaction) shift what follows; the
stream then says so in its metadata (`jetstream.stream.GAPS`), and the offset in each message's
source is the index.

The chains share a connection and the bound on what is out at once. A session is all of them: when
one ends, all end, and each finds its place again in its own stream.
"""

import asyncio
from collections.abc import Callable, Mapping as AbcMapping, Sequence
from contextlib import suppress

from ..jetstream.connection import Connection
from ..model import Positions, Record, Watermarks
from ..records.mapping import Mapping
from .chain import STALL_S, ChainPublisher

OUT_BYTES_MAX = 8 << 20
_OPEN_AT_ONCE = 32
_LOOK_S = 0.25


class DensePublisher:
    """A `Publisher` for a dense route. ``make_chain`` is for tests."""

    batch_records = ChainPublisher.batch_records

    def __init__(
        self,
        connection: Connection,
        mapping: Mapping,
        *,
        make_chain: Callable[..., ChainPublisher] = ChainPublisher,
    ) -> None:
        self._connection = connection
        self._mapping = mapping
        self._make_chain = make_chain
        self._moved = asyncio.Event()
        self._chains: dict[int, ChainPublisher] = {}
        self._current: dict[int, ChainPublisher] = {}
        """Those of the session; it need not have all partitions."""
        self._resting: asyncio.Task[None] | None = None
        self.foreign_seqs: list[int] = []

    async def open(self, marks: AbcMapping[int, Watermarks], *, known: Positions) -> dict[int, int]:
        """Begin a session in the stream of every partition; see `Publisher`."""
        await self.end()
        self._current = {partition: self._chain(partition) for partition in sorted(marks)}
        slots = asyncio.Semaphore(_OPEN_AT_ONCE)

        async def open_one(partition: int) -> dict[int, int]:
            async with slots:
                return await self._current[partition].open(
                    {partition: marks[partition]}, known=known
                )

        opening = [asyncio.create_task(open_one(p), name=f"open {p}") for p in self._current]
        try:
            found = await asyncio.gather(*opening)
        finally:
            for task in opening:
                task.cancel()
            await asyncio.wait(opening)
        self._resting = asyncio.create_task(self._mark_at_rest(), name="positions at rest")
        return {partition: at for positions in found for partition, at in positions.items()}

    def check_same(self, record: Record) -> None:
        """Raise if the newest stored record is another one; see `Publisher`."""
        self._chains[record.kafka_partition].check_same(record)

    async def send(self, records: Sequence[Record]) -> None:
        """Hand each partition's records to its chain, in their order."""
        of_partition: dict[int, list[Record]] = {}
        for record in records:
            of_partition.setdefault(record.kafka_partition, []).append(record)
        if any(self._chains[partition].is_replicated for partition in of_partition):
            # Each waits for its batch's answer, so side by side; no error leaves another at work.
            sending = [self._chains[p].send(some) for p, some in of_partition.items()]
            for outcome in await asyncio.gather(*sending, return_exceptions=True):
                if outcome is not None:
                    raise outcome
            return
        for partition, some in of_partition.items():
            while sum([chain.out_bytes for chain in self._current.values()]) > OUT_BYTES_MAX:
                await self._one_more_answer()
            await self._chains[partition].send(some)

    def check(self) -> None:
        """Raise what any of the chains has to say."""
        if self._resting is not None and self._resting.done():
            self._resting.result()
        for chain in self._current.values():
            chain.check()

    async def drain(self) -> None:
        """Wait until all that was sent is stored."""
        for chain in self._current.values():
            await chain.drain()

    async def end(self) -> None:
        """End the session in every stream."""
        if self._resting is not None:
            self._resting.cancel()
            await asyncio.gather(self._resting, return_exceptions=True)
            self._resting = None
        await asyncio.gather(*[chain.end() for chain in self._current.values()])

    async def met_rival(self) -> bool | None:
        """Look at every stream whose session was refused; see `ChainPublisher.met_rival`."""
        refused = [chain for chain in self._current.values() if chain.is_refused]
        found = await asyncio.gather(*[chain.met_rival() for chain in refused])
        return max([it for it in found if it is not None], default=None)

    async def progress_mark(self) -> int:
        """The sum of the streams' last sequences."""
        chains = self._current.values()
        return sum(await asyncio.gather(*[chain.progress_mark() for chain in chains]))

    @property
    def positions(self) -> Positions:
        """Per partition, one past the last offset known to be stored."""
        return {p: at for chain in self._chains.values() for p, at in chain.positions.items()}

    @property
    def stored(self) -> tuple[int, int]:
        """Records and payload bytes acknowledged in all sessions."""
        return _sum([chain.stored for chain in self._chains.values()])

    @property
    def set_aside(self) -> tuple[int, int]:
        """Records parked and skipped in all sessions."""
        return _sum([chain.set_aside for chain in self._chains.values()])

    def _chain(self, partition: int) -> ChainPublisher:
        chain = self._chains.get(partition)
        if chain is None:
            chain = self._make_chain(
                self._connection, self._mapping, kafka_partition=partition, moved=self._moved
            )
            chain.foreign_seqs = self.foreign_seqs
            self._chains[partition] = chain
        return chain

    async def _mark_at_rest(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for chain in self._current.values():
                await chain.mark_at_rest()

    async def _one_more_answer(self) -> None:
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_S):
                await self._moved.wait()
        self.check()


def _sum(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum([first for first, _ in pairs]), sum([second for _, second in pairs])
