"""Partitioned consumer groups over JetStream.

The public names are loaded on first use: importing this package costs nothing, and who wants only
a partition function does not pay for a NATS client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import (
        BadName,
        BadRecord,
        ConfigMismatch,
        GroupError,
        GroupMissing,
        MemberReplaced,
        ServerUnreachable,
        StreamMissing,
        StreamUnfit,
    )
    from .events import (
        GroupEvent,
        describe,
    )
    from .group import (
        Group,
    )
    from .machine.assign import (
        Candidate,
        assign,
        moved_partitions,
    )
    from .membership import (
        Membership,
        SlotChange,
        SlotChangeKind,
    )
    from .memory import (
        MemoryServer,
    )
    from .model import (
        Message,
        Retention,
    )
    from .operation.logs import (
        JsonLines,
    )
    from .operation.metrics import (
        Metrics,
    )
    from .operation.target import (
        Target,
    )
    from .operation.view import (
        GroupView,
        read_view,
    )
    from .partitioning.description import (
        parse_description,
        read_description,
    )
    from .partitioning.key import (
        KeyRule,
        KeyRuleError,
        from_token,
        key_headers,
        to_token,
    )
    from .partitioning.layout import (
        group_arguments,
    )
    from .partitioning.partition import (
        Partitioner,
        partition_for,
    )
    from .partitioning.publisher import (
        Publisher,
    )
    from .partitioning.table import (
        TopicError,
    )
    from .partitioning.topic import (
        Description,
    )
    from .sinks import (
        BatchSink,
        KvSink,
        Mark,
        MemorySink,
        Output,
        PublishSink,
        Sink,
        SinkCounters,
        SinkError,
        SinkUnfit,
        SqlSink,
        StaleEpoch,
        Step,
        Verdict,
        judge,
    )
    from .virtual import (
        Stalled,
        VirtualLoop,
        run_virtual,
    )

__all__ = [
    "BadName",
    "BadRecord",
    "BatchSink",
    "Candidate",
    "ConfigMismatch",
    "Description",
    "Group",
    "GroupError",
    "GroupEvent",
    "GroupMissing",
    "GroupView",
    "JsonLines",
    "KeyRule",
    "KeyRuleError",
    "KvSink",
    "Mark",
    "MemberReplaced",
    "Membership",
    "MemoryServer",
    "MemorySink",
    "Message",
    "Metrics",
    "Output",
    "Partitioner",
    "PublishSink",
    "Publisher",
    "Retention",
    "ServerUnreachable",
    "Sink",
    "SinkCounters",
    "SinkError",
    "SinkUnfit",
    "SlotChange",
    "SlotChangeKind",
    "SqlSink",
    "StaleEpoch",
    "Stalled",
    "Step",
    "StreamMissing",
    "StreamUnfit",
    "Target",
    "TopicError",
    "Verdict",
    "VirtualLoop",
    "assign",
    "describe",
    "from_token",
    "group_arguments",
    "judge",
    "key_headers",
    "moved_partitions",
    "parse_description",
    "partition_for",
    "read_description",
    "read_view",
    "run_virtual",
    "to_token",
]

_HOMES = {
    "BadName": "errors",
    "BadRecord": "errors",
    "BatchSink": "sinks",
    "Candidate": "machine.assign",
    "ConfigMismatch": "errors",
    "Description": "partitioning.topic",
    "Group": "group",
    "GroupError": "errors",
    "GroupEvent": "events",
    "GroupMissing": "errors",
    "GroupView": "operation.view",
    "JsonLines": "operation.logs",
    "KeyRule": "partitioning.key",
    "KeyRuleError": "partitioning.key",
    "KvSink": "sinks",
    "Mark": "sinks",
    "MemberReplaced": "errors",
    "Membership": "membership",
    "MemoryServer": "memory",
    "MemorySink": "sinks",
    "Message": "model",
    "Metrics": "operation.metrics",
    "Output": "sinks",
    "Partitioner": "partitioning.partition",
    "PublishSink": "sinks",
    "Publisher": "partitioning.publisher",
    "Retention": "model",
    "ServerUnreachable": "errors",
    "Sink": "sinks",
    "SinkCounters": "sinks",
    "SinkError": "sinks",
    "SinkUnfit": "sinks",
    "SlotChange": "membership",
    "SlotChangeKind": "membership",
    "SqlSink": "sinks",
    "StaleEpoch": "sinks",
    "Stalled": "virtual",
    "Step": "sinks",
    "StreamMissing": "errors",
    "StreamUnfit": "errors",
    "Target": "operation.target",
    "TopicError": "partitioning.table",
    "Verdict": "sinks",
    "VirtualLoop": "virtual",
    "assign": "machine.assign",
    "describe": "events",
    "from_token": "partitioning.key",
    "group_arguments": "partitioning.layout",
    "judge": "sinks",
    "key_headers": "partitioning.key",
    "moved_partitions": "machine.assign",
    "parse_description": "partitioning.description",
    "partition_for": "partitioning.partition",
    "read_description": "partitioning.description",
    "read_view": "operation.view",
    "run_virtual": "virtual",
    "to_token": "partitioning.key",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
