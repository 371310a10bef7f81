"""Kafka topics into NATS subjects: each record once, in order, with everything it had.

`Bridge` moves a `Route`; `verify` proves that both sides hold the same; `barrier` waits until all
that is in Kafka now is stored. `MockKafka` is librdkafka's mock cluster in this process. Errors
are `BridgeError`s.
"""

from .barrier import barrier
from .errors import BridgeError, ConfigurationError, RecordError, Unreachable
from .kafka_mock import MockKafka
from .model import BridgeReport, Difference, Proof, Record, Route
from .runner import Bridge
from .verify import verify

__all__ = [
    "Bridge",
    "BridgeError",
    "BridgeReport",
    "ConfigurationError",
    "Difference",
    "MockKafka",
    "Proof",
    "Record",
    "RecordError",
    "Route",
    "Unreachable",
    "barrier",
    "verify",
]
