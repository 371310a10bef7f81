"""Advisories: what happened to streams and consumers, for whoever listens; built only then."""

from __future__ import annotations

from typing import Any, Final

from . import wire
from .host import Host

HEAD: Final = "$JS.EVENT.ADVISORY."
KIND_HEAD: Final = "io.nats.jetstream.advisory.v1."


def publish(host: Host, where: str, kind: str, facts: dict[str, Any]) -> None:
    """Publish on ``$JS.EVENT.ADVISORY.<where>`` if somebody is subscribed."""
    subject = f"{HEAD}{where}"
    if not host.bus.has_interest(subject):
        return
    document: dict[str, Any] = {
        "type": f"{KIND_HEAD}{kind}",
        "id": host.random_text(22),
        "timestamp": wire.format_time(host.now.wall_ns),
        **facts,
    }
    if host.identity.domain:
        document["domain"] = host.identity.domain
    host.bus.publish(subject, wire.encode(document))


def stream_action(host: Host, event: str, stream: str, action: str) -> None:
    """A stream was created, changed or deleted (``event`` is CREATED, UPDATED or DELETED)."""
    facts = {"stream": stream, "action": action}
    publish(host, f"STREAM.{event}.{stream}", "stream_action", facts)


def consumer_action(host: Host, event: str, stream: str, consumer: str, action: str) -> None:
    """A consumer was created or deleted (``event`` is CREATED or DELETED)."""
    facts = {"stream": stream, "consumer": consumer, "action": action}
    publish(host, f"CONSUMER.{event}.{stream}.{consumer}", "consumer_action", facts)
