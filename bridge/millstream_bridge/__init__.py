"""Kafka topics into NATS subjects: each record once, in order, with everything it had.

`Bridge` moves a `Route`; `verify` proves that both sides hold the same; `barrier` waits until all
that is in Kafka now is stored. `MockKafka` is librdkafka's mock cluster in this process. Errors
are `BridgeError`s.
"""

from .errors import BridgeError, ConfigurationError, PoisonRecord, RecordError, Unreachable
from .kafka.mock import MockKafka
from .model import BridgeReport, Record, Route
from .moving.barrier import barrier
from .moving.runner import Bridge
from .proof.values import Difference, Proof
from .proof.verify import verify, verify_online

__all__ = [
    "Bridge",
    "BridgeError",
    "BridgeReport",
    "ConfigurationError",
    "Difference",
    "MockKafka",
    "PoisonRecord",
    "Proof",
    "Record",
    "RecordError",
    "Route",
    "Unreachable",
    "barrier",
    "verify",
    "verify_online",
]
