"""The producer of the scene: an ordinary Kafka producer that plays the flights file.

It is paced from outside: `feed` produces so many records more and returns at once. Where each
record went (partition and offset) is known when the broker acknowledged it, and is kept by row, so
that the expected result can be computed from the file.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from .flights import Flight

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())

FLUSH_S = 10.0


class ProducerError(RuntimeError):
    """Kafka did not take a record."""


class FlightProducer:
    """Produces ``flights`` to ``topic``, in order. Not thread-safe.

    ``places`` maps an index of ``flights`` to (kafka_partition, offset) once it is acknowledged.
    """

    def __init__(self, bootstrap: str, topic: str, flights: Sequence[Flight]) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log.queue": False,
                "logger": logger,
            }
        )
        self._topic = topic
        self._flights = flights
        self._fed = 0
        self.places: dict[int, tuple[int, int]] = {}
        self.acknowledged: Counter[int] = Counter()
        self.failure: KafkaError | None = None

    @property
    def is_done(self) -> bool:
        """Every flight is acknowledged."""
        return len(self.places) == len(self._flights)

    @property
    def in_flight(self) -> int:
        """Produced and not yet acknowledged."""
        return self._fed - len(self.places)

    def feed(self, count: int) -> None:
        """Produce up to ``count`` records more and take in acknowledgements; does not wait.

        Raises ProducerError when Kafka refused a record: nothing may be skipped.
        """
        for index in range(self._fed, min(self._fed + count, len(self._flights))):
            flight = self._flights[index]
            try:
                self._producer.produce(
                    self._topic,
                    key=flight.key,
                    value=flight.value,
                    headers=list(flight.headers),
                    timestamp=flight.timestamp_ms,
                    on_delivery=partial(self._done, index),
                )
            except BufferError:
                break
            except KafkaException as error:
                raise ProducerError(f"cannot produce to {self._topic}: {error}") from error
            self._fed += 1
        self._producer.poll(0)
        if self.failure is not None:
            raise ProducerError(f"Kafka refused a record for {self._topic}: {self.failure.str()}")

    def close(self) -> None:
        """Let go of what is not produced yet, and of the connection."""
        self._producer.purge()
        self._producer.flush(FLUSH_S)

    def _done(self, index: int, error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if error is not None or partition is None or offset is None:
            self.failure = error or KafkaError(KafkaError._BAD_MSG)
            return
        self.places[index] = (partition, offset)
        self.acknowledged[partition] += 1
