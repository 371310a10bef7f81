"""The stream's side of all partitions: messages into ledgers, and what cannot be. Pure."""

from collections.abc import Mapping as AbcMapping
from typing import Protocol

from ..jetstream.connection import Message
from ..model import Record, Watermarks
from ..records.headers import REPLAYED, SOURCE_HEADER, HeaderError, SourceHeader
from ..records.mapping import Mapping
from .decode import Decoder
from .values import Apart, Difference


class Book(Protocol):
    """Where the records of a partition go, in rising order of offsets."""

    def add(self, record: Record, seq: int) -> None:
        """The next record."""
        ...


class StreamSide:
    """Feeds the records of the stream, in the stream's order, to a book for each partition.

    The order is checked on the way: offsets must rise within a partition, so a repeated record is
    found as one that does not. ``is_dense``: sequences must be offset + 1.
    """

    def __init__(
        self,
        mapping: Mapping,
        marks: AbcMapping[int, Watermarks],
        books: AbcMapping[int, Book],
        *,
        is_dense: bool = False,
    ) -> None:
        self._mapping = mapping
        self._marks = marks
        self._books = books
        self._is_dense = is_dense
        self._decoder = Decoder(mapping)
        self._last = dict.fromkeys(marks, -1)
        self.apart = Apart()
        self.differences: dict[int, Difference] = {}
        self.first_beyond: int | None = None
        """The sequence of the first record above the marks."""

    def add_all(self, messages: list[tuple[int, Message]]) -> None:
        """The next messages of the route's subjects, none of them large."""
        common = self._decoder.common
        for seq, (subject, _, block, payload) in messages:
            record = common(subject, block, payload)
            if record is not None:
                self._take(seq, record.kafka_partition, record.offset, record)
            else:
                self.add(seq, subject, Decoder.lines(block), payload)

    def add(self, seq: int, subject: str, headers: list[tuple[str, str]], payload: bytes) -> None:
        """The next message of any form, a large one put together."""
        source = self._mapping.source_in(headers)
        if source is None:
            if _is_replayed(headers):
                self.apart.replayed += 1
            else:
                self.apart.foreign += not self._mapping.is_beside(subject)
            return
        try:
            record: Record | str = self._decoder.record(subject, headers, payload)
        except ValueError as error:
            record = str(error)
        self._take(seq, source.kafka_partition, source.offset, record)

    def add_damaged(self, seq: int, partition: int, offset: int, why: str) -> None:
        """A record whose parts cannot be put together."""
        self._take(seq, partition, offset, why)

    def _take(self, seq: int, partition: int, offset: int, record: Record | str) -> None:
        mark = self._marks.get(partition)
        if mark is None:  # the topic has grown since
            self.first_beyond = self.first_beyond or seq
            return
        last = self._last[partition]
        if partition in self.differences:
            return
        if offset <= last:
            what = "is stored again" if offset == last else f"comes after offset {last}"
            self._differ(partition, offset, seq, f"it {what}", record)
            return
        self._last[partition] = offset
        if offset >= mark.high:
            self.first_beyond = self.first_beyond or seq
        elif offset < mark.low:
            self.apart.older += 1
        elif isinstance(record, str):
            self._differ(partition, offset, seq, record)
        elif self._is_dense and seq != offset + 1:
            what = f"its sequence is not offset + 1, as a dense stream's is, but {seq}"
            self._differ(partition, offset, seq, what, record)
        else:
            self._books[partition].add(record, seq)

    def _differ(
        self, partition: int, offset: int, seq: int, what: str, record: Record | str = ""
    ) -> None:
        self.differences[partition] = Difference(
            kafka_partition=partition,
            offset=offset,
            seq=seq,
            what=what,
            nats=None if isinstance(record, str) else record,
        )


def _is_replayed(headers: list[tuple[str, str]]) -> bool:
    text = next((value for name, value in headers if name == SOURCE_HEADER), "")
    try:
        return REPLAYED in SourceHeader.parse(text).flags
    except HeaderError:
        return False
