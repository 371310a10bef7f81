"""Kafka topics into NATS subjects: each record once, in order, with everything it had.

`Bridge` moves a `Route`, one of several processes with its share from `Members`; `verify` proves
that both sides hold the same; both take another `Source` than Kafka. `KafkaSource`, `Mapping` and
the publishers (`publisher_for`) are what a bridge is made of. `barrier` waits until all that is in
Kafka now is stored. `assess` looks at a cluster, `load_project` reads a project file.
`open_large_values` puts large records together, `ParkedRecords` has those that could not be moved,
`BackBridge` is the way back to Kafka, `cut_over` and `roll_back` move a group's place.
`copy_schemas` and `open_decoder` are for a schema registry's values.
`MockKafka` is librdkafka's mock cluster in this process. Errors are `BridgeError`s.
"""

from .back.runner import BackBridge, BackReport
from .cutover.cutover import cut_over
from .cutover.proof import CutProof
from .cutover.rollback import roll_back
from .errors import (
    BridgeError,
    ConfigurationError,
    OffsetGone,
    PoisonRecord,
    RecordError,
    SessionLost,
    Unreachable,
)
from .jetstream.connection import Connection
from .jetstream.large import open_large_values
from .jetstream.target import NatsTarget
from .kafka.mock import MockKafka
from .kafka.source import KafkaSource
from .model import BridgeReport, Positions, Record, Route, TimestampType, Watermarks
from .moving.barrier import barrier
from .moving.parked import ParkedRecords
from .moving.publisher import publisher_for
from .moving.runner import Bridge
from .moving.sharing import Members
from .ports import Polled, Publisher, Source
from .project.assess import Assessment, assess
from .project.file import Project, load_project
from .proof.values import Difference, Proof
from .proof.verify import verify, verify_online
from .records.mapping import Mapping
from .schemas.copying import copy_schemas, follow_schemas
from .schemas.decode import open_decoder
from .schemas.registry import Registry

__all__ = [
    "Assessment",
    "BackBridge",
    "BackReport",
    "Bridge",
    "BridgeError",
    "BridgeReport",
    "ConfigurationError",
    "Connection",
    "CutProof",
    "Difference",
    "KafkaSource",
    "Mapping",
    "Members",
    "MockKafka",
    "NatsTarget",
    "OffsetGone",
    "ParkedRecords",
    "PoisonRecord",
    "Polled",
    "Positions",
    "Project",
    "Proof",
    "Publisher",
    "Record",
    "RecordError",
    "Registry",
    "Route",
    "SessionLost",
    "Source",
    "TimestampType",
    "Unreachable",
    "Watermarks",
    "assess",
    "barrier",
    "copy_schemas",
    "cut_over",
    "follow_schemas",
    "load_project",
    "open_decoder",
    "open_large_values",
    "publisher_for",
    "roll_back",
    "verify",
    "verify_online",
]
