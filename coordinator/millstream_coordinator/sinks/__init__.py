"""Fenced sinks: where effects land exactly once and in order; `sinks.py` says what holds."""

from .sinks import (
    BadMark,
    KvSink,
    Mark,
    MemorySink,
    Sink,
    SinkContended,
    SinkCounters,
    SinkError,
    SinkUnavailable,
    StaleEpoch,
    Verdict,
    judge,
)

__all__ = [
    "BadMark",
    "KvSink",
    "Mark",
    "MemorySink",
    "Sink",
    "SinkContended",
    "SinkCounters",
    "SinkError",
    "SinkUnavailable",
    "StaleEpoch",
    "Verdict",
    "judge",
]
