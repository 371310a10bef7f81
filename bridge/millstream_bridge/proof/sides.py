"""Both sides of a route as a proof reads them: Kafka's log, and the streams it went to."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping as AbcMapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import BridgeError, ConfigurationError
from ..jetstream.api import (
    STREAM_NOT_FOUND,
    ApiError,
    StoredMessage,
    StreamInfo,
    stored_message,
    stream_info,
)
from ..jetstream.connection import Connection, Delivery
from ..jetstream.large import LargeValues
from ..jetstream.reader import read_deliveries
from ..jetstream.stream import Stream
from ..kafka.admin import Denied, KafkaAdmin, Unsupported
from ..kafka.reading import records_between
from ..model import Record, Watermarks
from ..ports import Source
from ..records.headers import NatsHeaders
from ..records.mapping import Mapping

Bounds = AbcMapping[int, Watermarks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stream of the route, which has these partitions."""

    stream: str
    filter: str
    partitions: Sequence[int]
    info: StreamInfo

    @property
    def keeps(self) -> int | None:
        """Messages per subject, None for all."""
        return self.info.limit("max_msgs_per_subject")

    @property
    def first_seq(self) -> int:
        """The sequence with which it began."""
        return max(1, int(self.info.config.get("first_seq", 0)))

    @property
    def gone(self) -> int:
        """How many sequences that had a message have none any more, whyever."""
        return self.info.last_seq - self.first_seq + 1 - self.info.messages

    @property
    def expires(self) -> bool:
        """Whether its own limits may have removed its oldest messages by now."""
        info = self.info
        max_age_ns = info.limit("max_age")
        if max_age_ns is not None and max_age_ns < info.age_s * 1e9:
            return self.gone > 0  # what came first need not be gone: a checkpoint outlives it
        drops_oldest = info.config.get("discard", "old") == "old"
        has_begun = info.first_seq > self.first_seq
        return drops_oldest and has_begun and any(map(info.limit, ("max_bytes", "max_msgs")))


class Sides(Protocol):
    """What a proof reads."""

    @property
    def marks(self) -> Bounds:
        """Kafka's log ends when the proof began."""
        ...

    async def marks_now(self) -> Bounds:
        """The same, now."""
        ...

    async def parts(self, bounds: Bounds) -> list[Part]:
        """The route's streams; ConfigurationError: one is not there.

        Of a dense route all but one may be missing, where there is nothing between the bounds.
        """
        ...

    async def again(self, part: Part) -> Part:
        """The same, as its stream is now."""
        ...

    def messages(self, part: Part, subject: str, first_seq: int) -> AsyncGenerator[list[Delivery]]:
        """A stream's messages from a sequence to its end as it was when `parts` looked."""
        ...

    async def next_message(self, part: Part, subject: str, seq: int) -> StoredMessage | None:
        """The first message of a subject at a sequence or later."""
        ...

    async def reached(self, part: Part, partition: int) -> int | None:
        """One past the newest record that was stored of a partition, also if it is gone since.

        None: none ever was. ConfigurationError: the stream no longer tells.
        """
        ...

    async def whole(
        self, part: Part, seq: int, headers: NatsHeaders, payload: bytes
    ) -> tuple[NatsHeaders, bytes]:
        """A large record's message as if it were one; ValueError: it is damaged."""
        ...

    def records(self, bounds: Bounds) -> AsyncIterator[Sequence[Record]]:
        """Kafka's records between offsets, in order per partition."""
        ...

    async def is_compacted(self) -> bool:
        """Whether Kafka keeps only the newest record of a key for good."""
        ...


class LiveSides:
    """`Sides` of a source and a NATS that are there; ``kafka``: where the source is a Kafka."""

    def __init__(
        self,
        source: Source,
        connection: Connection,
        mapping: Mapping,
        marks: Bounds,
        kafka: str | None,
        kafka_options: dict[str, str] | None,
    ) -> None:
        self._marks = marks
        self._source = source
        self._connection = connection
        self._mapping = mapping
        self._kafka = kafka
        self._kafka_options = kafka_options

    @property
    def marks(self) -> Bounds:
        return self._marks

    async def marks_now(self) -> Bounds:
        return await self._source.watermarks()

    async def parts(self, bounds: Bounds) -> list[Part]:
        """The one stream, or of a dense route that of each partition."""
        mapping, route = self._mapping, self._mapping.route
        if route.mode != "dense":
            stream, it = route.stream, mapping.route_filter
            info = await self._info(stream)
            return [Part(stream=stream, filter=it, partitions=sorted(bounds), info=info)]
        found: list[Part] = []
        for p in sorted(bounds, key=lambda p: (bounds[p].high <= bounds[p].low, p)):
            stream, it = mapping.stream_name(p), mapping.partition_filter(p)
            is_new = found and bounds[p].high <= bounds[p].low
            if is_new and await stream_info(self._connection, stream) is None:
                continue  # a bridge makes it when it hears of the partition
            info = await self._info(stream)
            found.append(Part(stream=stream, filter=it, partitions=[p], info=info))
        return found

    async def again(self, part: Part) -> Part:
        return replace(part, info=await self._info(part.stream))

    async def _info(self, stream: str) -> StreamInfo:
        info = await stream_info(self._connection, stream)
        if info is None:
            missing = ApiError(STREAM_NOT_FOUND, "stream not found")
            raise ConfigurationError(f"stream {stream}: {missing}")
        return info

    def messages(self, part: Part, subject: str, first_seq: int) -> AsyncGenerator[list[Delivery]]:
        """Close it if it is left early: there is a consumer to remove."""
        return read_deliveries(
            self._connection,
            part.stream,
            subject,
            first_seq=first_seq,
            last_seq=part.info.last_seq,
        )

    async def next_message(self, part: Part, subject: str, seq: int) -> StoredMessage | None:
        try:
            return await stored_message(self._connection, part.stream, seq=seq, next_of=subject)
        except ApiError as error:
            raise ConfigurationError(f"stream {part.stream}: {error}") from error

    async def reached(self, part: Part, partition: int) -> int | None:
        stream = self._stream(partition)
        stream.config = part.info.config
        return await stream.reached(partition)

    async def whole(
        self, part: Part, seq: int, headers: NatsHeaders, payload: bytes
    ) -> tuple[NatsHeaders, bytes]:
        stream = self._stream(part.partitions[0])
        return await LargeValues(stream).whole(seq, headers, payload)

    def _stream(self, partition: int) -> Stream:
        return Stream.of_partition(self._connection, self._mapping, partition)

    def records(self, bounds: Bounds) -> AsyncIterator[Sequence[Record]]:
        return records_between(self._source, bounds)

    async def is_compacted(self) -> bool:
        """A Kafka that tells nothing of its topics has none compacted, nor has another source."""
        if self._kafka is None:
            return False
        admin = KafkaAdmin(self._kafka, options=self._kafka_options)
        topic = self._mapping.route.topic
        try:
            await admin.group_names()  # answered at once by a Kafka that has no such answers
            config = (await admin.configs([topic]))[topic]
        except (Denied, Unsupported):
            return False
        finally:
            await admin.close()
        return not isinstance(config, BridgeError) and config.is_compacted
