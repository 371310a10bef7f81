"""Kafka topics into NATS subjects: each record once, in order, with everything it had.

`Bridge` moves a `Route`; `verify` proves that both sides hold the same; `barrier` waits until all
that is in Kafka now is stored. `assess` looks at a cluster, `load_project` reads a project file.
`MockKafka` is librdkafka's mock cluster in this process. Errors are `BridgeError`s.
"""

from .errors import BridgeError, ConfigurationError, PoisonRecord, RecordError, Unreachable
from .jetstream.target import NatsTarget
from .kafka.mock import MockKafka
from .model import BridgeReport, Record, Route
from .moving.barrier import barrier
from .moving.runner import Bridge
from .project.assess import Assessment, assess
from .project.file import Project, load_project
from .proof.values import Difference, Proof
from .proof.verify import verify, verify_online

__all__ = [
    "Assessment",
    "Bridge",
    "BridgeError",
    "BridgeReport",
    "ConfigurationError",
    "Difference",
    "MockKafka",
    "NatsTarget",
    "PoisonRecord",
    "Project",
    "Proof",
    "Record",
    "RecordError",
    "Route",
    "Unreachable",
    "assess",
    "barrier",
    "load_project",
    "verify",
    "verify_online",
]
