"""Where the way back begins: what Kafka remembers, and what is done when it does not.

Kafka keeps the position beside the data (`kafka.sink`). There are three cases:

* **It is there.** Go on from it. A position of a stream made at another time, or beyond the
  stream's end, is refused: the stream was deleted and made anew, and its sequences mean others.
* **There never was one.** The stream has no consumer of the way back's name (`tail`): begin with
  the first message, or where the caller says.
* **It is forgotten.** There was a way back, and Kafka dropped its offsets (nothing was committed
  for a week), or keeps none (librdkafka's mock). The records themselves say where they came from,
  and transactions follow the stream: behind the highest sequence that is in the topic nothing is,
  before it everything. So the topic is read, as long as it still has those records: a partition
  without one that has lost its beginning, or a compacted topic, may have lost the highest. That is
  refused, and the caller has to say the sequence.

A topic that is to become a copy gets no marks, so a forgotten position cannot be found there.
"""

from dataclasses import dataclass

from ..errors import ConfigurationError
from ..jetstream.api import ApiError, call
from ..jetstream.connection import Connection
from ..kafka.reading import records_between
from ..kafka.sink import Position
from ..kafka.source import KafkaSource
from ..records.origin import returned


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """A stream as the server describes it now.

    ``drops_oldest``: a limit of its own may have removed messages, and none of them because of a
    newer one of its subject.
    """

    name: str
    created: str
    first_seq: int
    last_seq: int
    drops_oldest: bool = False

    @classmethod
    async def read(cls, connection: Connection, name: str) -> "StreamFacts":
        """ConfigurationError: there is no such stream. ConnectionLost."""
        try:
            answer = await call(connection, f"STREAM.INFO.{name}")
        except ApiError as error:
            raise ConfigurationError(f"stream {name}: {error}") from error
        state, config = answer["state"], answer["config"]
        limits = [int(config.get(it, 0)) > 0 for it in ("max_age", "max_bytes", "max_msgs")]
        return cls(
            name=name,
            created=str(answer["created"]),
            first_seq=int(state["first_seq"]),
            last_seq=int(state["last_seq"]),
            drops_oldest=any(limits) and int(config.get("max_msgs_per_subject", 0)) <= 0,
        )

    def at(self, next_seq: int) -> Position:
        """A position in this stream."""
        return Position(self.name, self.created, next_seq)

    def check(self, position: Position) -> None:
        """ConfigurationError: the position is of another stream."""
        if (position.stream, position.created) != (self.name, self.created):
            raise ConfigurationError(
                f"the way back stands at sequence {position.next_seq} of stream {position.stream}"
                f" made {position.created}; stream {self.name} was made {self.created}:"
                " say with which sequence to begin"
            )
        if position.next_seq > self.last_seq + 1:
            raise ConfigurationError(
                f"the way back stands at sequence {position.next_seq} of stream {self.name},"
                f" which ends at {self.last_seq}: say with which sequence to begin"
            )


async def newest_returned(source: KafkaSource, route_name: str) -> tuple[dict[int, int], list[int]]:
    """The highest returned sequence per partition, and the partitions that may have lost some.

    Reads the whole topic. Unreachable, ConfigurationError, RecordError.
    """
    marks = await source.watermarks()
    newest: dict[int, int] = {}
    async for records in records_between(source, marks):
        for record in records:
            back_from = returned(record.headers, route_name)
            if back_from is not None:
                number = record.kafka_partition
                newest[number] = max(newest.get(number, 0), back_from.seq)
    return newest, [p for p, mark in marks.items() if mark.low > 0 and p not in newest]
