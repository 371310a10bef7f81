"""The stream's side of all partitions: messages into ledgers, and what cannot be. Pure."""

import math
import operator
from collections.abc import Mapping as AbcMapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ..jetstream.connection import Delivery
from ..jetstream.reader import sequence
from ..model import Watermarks
from ..records.headers import (
    LARGE_HEADER,
    NOT_HERE,
    REPLAYED,
    SOURCE_HEADER,
    HeaderError,
    SourceHeader,
    is_letter,
)
from ..records.mapping import Mapping
from .decode import Decoder
from .parts import Parts, parts_of, record_of
from .values import Apart, Difference

_LARGE: Final = LARGE_HEADER.encode()


class Book(Protocol):
    """Where the records of a partition go, in rising order of offsets."""

    def add(self, offset: int, parts: Parts, place: bytes) -> None:
        """The next record; ``place`` is the ack subject of its message."""
        ...

    def add_all(self, offsets: Sequence[int], parts: Sequence[Parts], places: list[bytes]) -> None:
        """The next records, one or more."""
        ...


@dataclass(slots=True)
class _Lane:
    """A partition: the offsets that count, its book, what was read before, the last offset met."""

    low: int
    high: int
    book: Book
    seen_to: float
    seen_below: int
    last: int = -1


class StreamSide:
    """Feeds the records of the stream, in the stream's order, to a book for each partition.

    The order is checked on the way: offsets must rise within a partition, so a repeated record is
    found as one that does not. ``is_dense``: sequences must be offset + 1. ``seen``: the sequence
    to which a partition was read before, and the offset below which all of it was compared then.
    ``others`` gets the sequences of messages that are in no book, by subject: those without a
    source, and records above the marks.
    """

    def __init__(
        self,
        mapping: Mapping,
        marks: AbcMapping[int, Watermarks],
        books: AbcMapping[int, Book],
        *,
        is_dense: bool = False,
        seen: AbcMapping[int, tuple[int, int]] | None = None,
        others: dict[str, list[int]] | None = None,
    ) -> None:
        self._mapping = mapping
        self._is_dense = is_dense
        self._others = others
        self._decoder = Decoder(mapping)
        seen, unseen = seen or {}, (math.inf, 0)
        self._lanes = {
            p: _Lane(it.low, it.high, books[p], *seen.get(p, unseen)) for p, it in marks.items()
        }
        self.apart = Apart()
        self.differences: dict[int, Difference] = {}
        self.first_beyond: int | None = None
        """The sequence of the first record above the marks."""
        self.beyond: dict[int, tuple[int, int]] = {}
        """The last record above the marks of each partition: offset and sequence."""

    def add_all(self, batch: Sequence[Delivery], at: int = 0) -> int:
        """The next messages of the route's subjects, from place ``at`` on.

        Returns the place of the first large one, which is not added, or how many there are.
        """
        common = self._decoder.common
        start, partition = at, -1
        offsets: list[int] = []
        parts: list[Parts] = []
        for _, subject, block, payload in batch[at:] if at else batch:
            found = common(subject, block, payload)
            if found is None:
                self._take_run(partition, offsets, parts, batch[start:at])
                if _LARGE in block:
                    return at
                ack = batch[at][0]
                self.add(ack, subject.decode("utf-8", "replace"), Decoder.lines(block), payload)
                start, partition, offsets, parts = at + 1, -1, [], []
            else:
                if found[0] != partition:
                    self._take_run(partition, offsets, parts, batch[start:at])
                    start, partition, offsets, parts = at, found[0], [], []
                offsets.append(found[1])
                parts.append(found[2])
            at += 1
        self._take_run(partition, offsets, parts, batch[start:at])
        return at

    def add(self, ack: bytes, subject: str, headers: list[tuple[str, str]], payload: bytes) -> None:
        """The next message of any form, a large one put together."""
        source = self._mapping.source_in(headers)
        if source is None:
            if _is_replayed(headers):
                self.apart.replayed += 1
            else:
                self.apart.foreign += not self._mapping.is_beside(subject)
            self._note_other(subject, sequence(ack))
            return
        if NOT_HERE in source.flags:
            return  # a mark, which the subjects of a template of many tokens match, too
        try:
            parts: Parts | str = parts_of(self._decoder.record(subject, headers, payload))
        except ValueError as error:
            parts = str(error)
        self._take(ack, subject.encode(), source.kafka_partition, source.offset, parts)

    def add_damaged(
        self, ack: bytes, subject: bytes, partition: int, offset: int, why: str
    ) -> None:
        """A record whose parts cannot be put together; ``why`` "": they were removed, rightly."""
        self._take(ack, subject, partition, offset, why)

    def _take_run(
        self, partition: int, offsets: list[int], parts: list[Parts], run: Sequence[Delivery]
    ) -> None:
        """Messages of one partition in a row: all at once, where nothing is to be said of any."""
        if not offsets:
            return
        lane = self._lanes.get(partition)
        first, last = offsets[0], offsets[-1]
        if (
            lane is not None
            and partition not in self.differences
            and max(lane.last + 1, lane.low, lane.seen_below) <= first
            and last < lane.high
            and all(map(operator.lt, offsets, offsets[1:]))
            and (not self._is_dense or _is_dense(run, offsets))
        ):
            lane.last = last
            lane.book.add_all(offsets, parts, [it[0] for it in run])
            return
        for (ack, subject, _, _), offset, of_one in zip(run, offsets, parts, strict=True):
            self._take(ack, subject, partition, offset, of_one)

    def _take(
        self, ack: bytes, subject: bytes, partition: int, offset: int, parts: Parts | str
    ) -> None:
        lane = self._lanes.get(partition)
        if lane is None:  # the topic has grown since
            self._note_beyond(partition, offset, ack, subject)
            return
        if partition in self.differences:
            return
        last = lane.last
        if offset <= last:
            what = "is stored again" if offset == last else f"comes after offset {last}"
            self._differ(partition, offset, ack, f"it {what}", parts)
            return
        lane.last = offset
        if offset >= lane.high:
            self._note_beyond(partition, offset, ack, subject)
        elif offset < lane.seen_below:
            if sequence(ack) > lane.seen_to:
                self._differ(partition, offset, ack, "it is stored again", parts)
        elif offset < lane.low:
            self.apart.older += not isinstance(parts, str)
        elif isinstance(parts, str):
            if parts:
                self._differ(partition, offset, ack, parts)
        elif self._is_dense and sequence(ack) != offset + 1:
            what = f"its sequence is not offset + 1, as a dense stream's is, but {sequence(ack)}"
            self._differ(partition, offset, ack, what, parts)
        else:
            lane.book.add(offset, parts, ack)

    def _note_beyond(self, partition: int, offset: int, ack: bytes, subject: bytes) -> None:
        seq = sequence(ack)
        self.first_beyond = self.first_beyond or seq
        self.beyond[partition] = offset, seq
        self._note_other(subject.decode("utf-8", "replace"), seq)

    def _note_other(self, subject: str, seq: int) -> None:
        if self._others is not None:
            self._others.setdefault(subject, []).append(seq)

    def _differ(
        self, partition: int, offset: int, ack: bytes, what: str, parts: Parts | str = ""
    ) -> None:
        self.differences[partition] = Difference(
            kafka_partition=partition,
            offset=offset,
            seq=sequence(ack),
            what=what,
            nats=None if isinstance(parts, str) else record_of(partition, parts),
        )


def _is_dense(run: Sequence[Delivery], offsets: Sequence[int]) -> bool:
    """Whether sequences, which rise, are offsets + 1: both ends are, and nothing fits between."""
    first, last = offsets[0], offsets[-1]
    return (
        last - first == len(offsets) - 1
        and sequence(run[0][0]) == first + 1
        and sequence(run[-1][0]) == last + 1
    )


def _is_replayed(headers: list[tuple[str, str]]) -> bool:
    if is_letter(headers):
        return True
    text = next((value for name, value in headers if name == SOURCE_HEADER), "")
    try:
        return REPLAYED in SourceHeader.parse(text).flags
    except HeaderError:
        return False
