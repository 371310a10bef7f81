"""How a consumer's progress is kept on disk: a document, and a journal of what happened since.

The document holds the configuration and the whole ``AckState``. Between two documents each
round of work appends one journal entry with the round's events, in order; reading replays them
through the same ``AckState`` that wrote them, so that there is one set of rules. Deadlines are
not kept: they follow from the time of the last delivery.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from . import wire
from .acks import AckState, Pending
from .model import ConsumerConfig

DELIVERED: Final = 0
ACKED: Final = 1
EXHAUSTED: Final = 2
SETTLED: Final = 3

Event = tuple[int, ...]
"""DELIVERED: stream seq, count, time ns; ACKED: stream seq, consumer seq; others: stream seq."""


class Saved(msgspec.Struct, array_like=True):
    """A consumer as the document holds it."""

    config: dict[str, Any]
    created_ns: int
    start_seq: int
    next_seq: int
    delivered: tuple[int, int]
    floor: tuple[int, int]
    pending: list[tuple[int, int, int]]
    deliveries: dict[int, int]
    skip: list[int]
    """What last_per_subject still has to deliver."""


def encode(
    config: ConsumerConfig,
    created_ns: int,
    start_seq: int,
    next_seq: int,
    state: AckState,
    skip: Iterable[int],
) -> bytes:
    """Write the document."""
    return msgspec.msgpack.encode(
        Saved(
            wire.CONSUMER_CONFIG.write(config),
            created_ns,
            start_seq,
            next_seq,
            (state.delivered_consumer, state.delivered_stream),
            (state.floor_consumer, state.floor_stream),
            [(seq, entry.consumer_seq, entry.sent_ns) for seq, entry in state.pending.items()],
            state.deliveries,
            list(skip),
        )
    )


def decode(document: bytes) -> tuple[Saved, ConsumerConfig, AckState]:
    """Read the document. Raises msgspec.MsgspecError or JsonError when it is damaged."""
    saved = msgspec.msgpack.decode(document, type=Saved)
    config: ConsumerConfig = wire.CONSUMER_CONFIG.read(saved.config, "", strict=False)
    state = AckState(config.ack_policy, saved.start_seq)
    state.delivered_consumer, state.delivered_stream = saved.delivered
    state.floor_consumer, state.floor_stream = saved.floor
    for seq, consumer_seq, sent_ns in saved.pending:
        state.pending[seq] = Pending(consumer_seq, sent_ns, 0.0)
    state.deliveries.update(saved.deliveries)
    return saved, config, state


def encode_events(events: list[Event]) -> bytes:
    """Write one journal entry."""
    return msgspec.msgpack.encode(events)


def decode_events(entry: bytes) -> list[Event]:
    """Read one journal entry."""
    return msgspec.msgpack.decode(entry, type=list[tuple[int, ...]])


def replay(state: AckState, events: Iterable[Event]) -> None:
    """Do again what happened."""
    for kind, seq, *facts in events:
        if kind == DELIVERED:
            count, sent_ns = facts
            state.deliver(seq, count, sent_ns, 0.0)
        elif kind == ACKED:
            state.ack(seq, facts[0])
        elif kind == EXHAUSTED:
            state.exhaust(seq)
        else:
            state.settle(seq)
