"""Kafka's partitions, per-key order and self-balancing groups, on NATS.

The public names live in the packages that own them and are loaded when first asked for, so that a
worker never imports Kafka and a broker never imports a client:

- ``Group``, ``Membership``, ``Message``, ``Publisher``, the sinks, ``MemoryServer`` and
  ``run_virtual`` from ``millstream_coordinator``
- ``Broker`` from ``millstream_broker``
- ``Bridge`` from ``millstream_bridge``
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream_bridge import Bridge
    from millstream_broker import Broker
    from millstream_coordinator import (
        BatchSink,
        Group,
        KvSink,
        Membership,
        MemoryServer,
        Message,
        Publisher,
        PublishSink,
        SqlSink,
        run_virtual,
    )

__all__ = [
    "BatchSink",
    "Bridge",
    "Broker",
    "Group",
    "KvSink",
    "Membership",
    "MemoryServer",
    "Message",
    "PublishSink",
    "Publisher",
    "SqlSink",
    "run_virtual",
]

_HOMES = {
    "Bridge": "millstream_bridge",
    "Broker": "millstream_broker",
    **dict.fromkeys(
        (
            "BatchSink",
            "Group",
            "KvSink",
            "MemoryServer",
            "Membership",
            "Message",
            "Publisher",
            "PublishSink",
            "SqlSink",
            "run_virtual",
        ),
        "millstream_coordinator",
    ),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its package. Raises AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
