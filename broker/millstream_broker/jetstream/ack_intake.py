"""What clients answer to deliveries: every kind of ack, read from the wire and acted upon.

An ack is published to the reply subject of its delivery, which names the message by stream and
consumer sequence; the payload says which kind it is. What can't be read is ignored, as
nats-server does. An ack with a reply of its own (a double ack) is answered once it is written
down, also when it changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..protocol import headers as header_blocks
from ..routing.port import Message
from . import wire
from .consumer_state import ACKED, SETTLED
from .pull import parse_request
from .strictjson import JsonError
from .ttl import parse_duration

if TYPE_CHECKING:
    from .consumer import Consumer


class AckIntake:
    """Takes the acks of one consumer; ``head`` is what its ack subjects begin with."""

    def __init__(self, consumer: Consumer, head: str) -> None:
        self._consumer = consumer
        self._head_length = len(head) + 1

    def receive(self, messages: Sequence[Message]) -> None:
        """Act upon a run of acks, in order."""
        consumer = self._consumer
        if consumer.is_closed:
            return
        consumer.on_used()
        for message in messages:
            parts = message.subject[self._head_length :].split(".")
            try:
                _, seq, consumer_seq, _, _ = map(int, parts)
            except ValueError:
                continue
            payload = message.payload
            is_next = payload.startswith(b"+NXT")
            if not payload or payload in (b"+ACK", b"+OK") or is_next:
                self._ack(seq, consumer_seq)
            elif payload.startswith(b"-NAK"):
                self._nak(seq, consumer_seq, payload[4:])
            elif payload == b"+WPI":
                self._postpone(seq)
            elif payload.startswith(b"+TERM"):
                self._terminate(seq, consumer_seq, payload[5:])
            if is_next and message.reply is not None:
                self._ask_next(message.reply, payload[4:])
            elif message.reply is not None:
                consumer.owe(message.reply)
        consumer.host.wake(consumer)

    def _ask_next(self, reply: str, body: bytes) -> None:
        """Take the pull request inside a ``+NXT``."""
        consumer = self._consumer
        if consumer.config.is_push:
            return
        try:
            request = parse_request(body, asked_with_next=True)
        except JsonError as error:
            block = header_blocks.status(400, f"Bad Request - {error}")
            consumer.host.bus.publish(reply, headers=block)
            return
        consumer.line.add(reply, request)

    def _ack(self, seq: int, consumer_seq: int) -> None:
        settled = self._consumer.state.ack(seq, consumer_seq)
        if settled:
            self._consumer.on_acked((ACKED, seq, consumer_seq), settled)

    def _nak(self, seq: int, consumer_seq: int, body: bytes) -> None:
        """Deliver again: at once, or after the delay the client asks for."""
        consumer = self._consumer
        delay_s = _delay(body.strip())
        deadline_s = None if delay_s is None else consumer.host.now.mono_s + delay_s
        count = consumer.state.delivery_count(seq)
        if consumer.state.nak(seq, deadline_s):
            facts = {"consumer_seq": consumer_seq, "stream_seq": seq, "deliveries": count}
            consumer.advise("MSG_NAKED", "nak", facts)

    def _postpone(self, seq: int) -> None:
        consumer = self._consumer
        wait_s = consumer.wait_s(consumer.state.delivery_count(seq))
        consumer.state.postpone(seq, consumer.host.now.mono_s + wait_s)

    def _terminate(self, seq: int, consumer_seq: int, reason: bytes) -> None:
        consumer = self._consumer
        count = consumer.state.delivery_count(seq)
        if not consumer.state.settle(seq):
            return
        facts: dict[str, Any] = {
            "consumer_seq": consumer_seq,
            "stream_seq": seq,
            "deliveries": count,
        }
        if reason.strip():
            facts["reason"] = reason.strip().decode("utf-8", "replace")
        consumer.advise("MSG_TERMINATED", "terminated", facts)
        consumer.on_acked((SETTLED, seq), [seq])


def _delay(text: bytes) -> float | None:
    """Read what follows ``-NAK``: seconds to wait, None for at once."""
    if not text:
        return None
    if text.startswith(b"{"):
        try:
            request = wire.read_request(wire.NAK, text, strict=False)
        except JsonError:
            return None
        return request.delay_ns / 1e9 if request.delay_ns > 0 else None
    delay_ns = parse_duration(text.decode("utf-8", "replace"))
    return delay_ns / 1e9 if delay_ns is not None and delay_ns > 0 else None
