"""Partitioned consumer groups over JetStream.

The public names are loaded on first use: importing this package costs nothing, and who wants only
a partition function does not pay for a NATS client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .assign import (
        Candidate,
        assign,
        moved_partitions,
    )
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
    from .key import (
        KeyRule,
        KeyRuleError,
        from_token,
        key_headers,
        to_token,
    )
    from .model import (
        Message,
    )
    from .partition import (
        Partitioner,
        partition_for,
    )
    from .publisher import (
        Publisher,
    )
    from .sinks import (
        KvSink,
        Mark,
        MemorySink,
        Sink,
        SinkCounters,
        SinkError,
        StaleEpoch,
        Verdict,
        judge,
    )
    from .view import (
        GroupView,
        read_view,
    )
    from .worker import (
        Group,
    )

__all__ = [
    "BadName",
    "BadRecord",
    "Candidate",
    "ConfigMismatch",
    "Group",
    "GroupError",
    "GroupEvent",
    "GroupMissing",
    "GroupView",
    "KeyRule",
    "KeyRuleError",
    "KvSink",
    "Mark",
    "MemberReplaced",
    "MemorySink",
    "Message",
    "Partitioner",
    "Publisher",
    "ServerUnreachable",
    "Sink",
    "SinkCounters",
    "SinkError",
    "StaleEpoch",
    "StreamMissing",
    "StreamUnfit",
    "Verdict",
    "assign",
    "describe",
    "from_token",
    "judge",
    "key_headers",
    "moved_partitions",
    "partition_for",
    "read_view",
    "to_token",
]

_HOMES = {
    "BadName": "errors",
    "BadRecord": "errors",
    "Candidate": "assign",
    "ConfigMismatch": "errors",
    "Group": "worker",
    "GroupError": "errors",
    "GroupEvent": "events",
    "GroupMissing": "errors",
    "GroupView": "view",
    "KeyRule": "key",
    "KeyRuleError": "key",
    "KvSink": "sinks",
    "Mark": "sinks",
    "MemberReplaced": "errors",
    "MemorySink": "sinks",
    "Message": "model",
    "Partitioner": "partition",
    "Publisher": "publisher",
    "ServerUnreachable": "errors",
    "Sink": "sinks",
    "SinkCounters": "sinks",
    "SinkError": "sinks",
    "StaleEpoch": "sinks",
    "StreamMissing": "errors",
    "StreamUnfit": "errors",
    "Verdict": "sinks",
    "assign": "assign",
    "describe": "events",
    "from_token": "key",
    "judge": "sinks",
    "key_headers": "key",
    "moved_partitions": "assign",
    "partition_for": "partition",
    "read_view": "view",
    "to_token": "key",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
