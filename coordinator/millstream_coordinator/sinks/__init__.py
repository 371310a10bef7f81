"""Fenced sinks: where effects land exactly once and in order, however often a message comes.

================ ============================================ ======================================
sink             an effect is, and what it needs              what holds beside once and in order
================ ============================================ ======================================
`MemorySink`     a new value; one thread                      per key
`KvSink`         a new value in a key-value bucket; any       per key: until the new owner has
                 nats-server with JetStream                   touched the key, a replaced owner may
                                                              still apply the key's next message
                                                              (the right effect, applied once)
`PublishSink`    one message on the key's subject; any        per key, likewise
                 nats-server with JetStream
`BatchSink`      any number of messages in one stream, and a  per partition: after a new owner's
                 state per key; nats-server 2.12 and later,   first effect (or `fence`), nothing of
                 a stream with ``allow_atomic``               the old one is applied to any key
`SqlSink`        statements in a transaction; any DB-API 2.0  per partition, likewise
                 module whose connections roll back
================ ============================================ ======================================

All of them: `Sink.apply(message, effect)` returns a `Verdict`, raises `StaleEpoch` for a replaced
owner and `SinkError` when nothing is known (apply again); ``name`` and ``counters``
(`SinkCounters`) are there for metrics. Theory in `mark`, the protocol in `contract`, and the
contract as tests for sinks of your own in `testing`.

`SqlSink` and `BatchSink` have a fence for each partition. A new owner's first effect raises it; to
have it raised before the first message is handed out, hang it on the group::

    async def on_assigned(partition: int, epoch: int) -> None:
        with suppress(SinkError, StaleEpoch):  # the first effect raises it, or is refused, as well
            await sink.fence(partition, epoch)

    group = Group(url, …, on_assigned=on_assigned)
"""

from .batch import BatchSink, Step
from .contract import (
    BadEffect,
    BadMark,
    Sink,
    SinkContended,
    SinkCounters,
    SinkError,
    SinkUnavailable,
    SinkUnfit,
    StaleEpoch,
    Update,
    ValueSink,
    admits,
)
from .kv import KvSink
from .mark import Fenced, Mark, Verdict, judge, key_of_entry
from .memory import MemorySink
from .outlet import Output
from .publish import PublishSink
from .sql import SqlSink

__all__ = [
    "BadEffect",
    "BadMark",
    "BatchSink",
    "Fenced",
    "KvSink",
    "Mark",
    "MemorySink",
    "Output",
    "PublishSink",
    "Sink",
    "SinkContended",
    "SinkCounters",
    "SinkError",
    "SinkUnavailable",
    "SinkUnfit",
    "SqlSink",
    "StaleEpoch",
    "Step",
    "Update",
    "ValueSink",
    "Verdict",
    "admits",
    "judge",
    "key_of_entry",
]
