"""Kafka topics into NATS subjects: each record once, in order, with everything it had.

`Bridge` moves a `Route`, one of several processes with its share from `Members`; `verify` proves
that both sides hold the same; both take another `Source` than Kafka. `KafkaSource`, `Mapping` and
the publishers (`publisher_for`) are what a bridge is made of. `barrier` waits until all that is in
Kafka now is stored. `assess` looks at a cluster, `load_project` reads a project file.
`open_large_values` puts large records together, `ParkedRecords` has those that could not be moved,
`BackBridge` is the way back to Kafka, `cut_over` and `roll_back` move a group's place.
`copy_schemas` and `open_decoder` are for a schema registry's values.
`MockKafka` is librdkafka's mock cluster in this process. Errors are `BridgeError`s.

The public names are loaded on first use: who wants one does not pay for the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .back.progress import BackReport
    from .back.runner import BackBridge
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

_HOMES = {
    "Assessment": "project.assess",
    "BackBridge": "back.runner",
    "BackReport": "back.progress",
    "Bridge": "moving.runner",
    "BridgeError": "errors",
    "BridgeReport": "model",
    "ConfigurationError": "errors",
    "Connection": "jetstream.connection",
    "CutProof": "cutover.proof",
    "Difference": "proof.values",
    "KafkaSource": "kafka.source",
    "Mapping": "records.mapping",
    "Members": "moving.sharing",
    "MockKafka": "kafka.mock",
    "NatsTarget": "jetstream.target",
    "OffsetGone": "errors",
    "ParkedRecords": "moving.parked",
    "PoisonRecord": "errors",
    "Polled": "ports",
    "Positions": "model",
    "Project": "project.file",
    "Proof": "proof.values",
    "Publisher": "ports",
    "Record": "model",
    "RecordError": "errors",
    "Registry": "schemas.registry",
    "Route": "model",
    "SessionLost": "errors",
    "Source": "ports",
    "TimestampType": "model",
    "Unreachable": "errors",
    "Watermarks": "model",
    "assess": "project.assess",
    "barrier": "moving.barrier",
    "copy_schemas": "schemas.copying",
    "cut_over": "cutover.cutover",
    "follow_schemas": "schemas.copying",
    "load_project": "project.file",
    "open_decoder": "schemas.decode",
    "open_large_values": "jetstream.large",
    "publisher_for": "moving.publisher",
    "roll_back": "cutover.rollback",
    "verify": "proof.verify",
    "verify_online": "proof.verify",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
