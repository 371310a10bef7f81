"""Pull requests: who waits for messages of a pull consumer, and every status they can get.

Requests stand in a line. Each message goes to the first one that may have it; a request with
more to get goes to the end of the line. A request leaves with its last message, or with a
status that says why. What is asked in a request stays as asked: a JSON request without
``batch`` gets one message, but reports 0 as still pending, as nats-server does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..protocol import headers as header_blocks
from . import wire
from .batch import REQUIRED_LEVEL, supports_level
from .model import PullRequest
from .strictjson import JsonError
from .ttl import duration_text

if TYPE_CHECKING:
    from .consumer import Consumer

PENDING_MESSAGES: Final = "Nats-Pending-Messages"
PENDING_BYTES: Final = "Nats-Pending-Bytes"


@dataclass(slots=True, eq=False)
class Waiting:
    """One request in the line."""

    reply: str
    remaining: int
    remaining_bytes: int
    is_no_wait: bool
    has_byte_limit: bool
    expires_s: float | None
    heartbeat_s: float
    heartbeat_at_s: float | None
    has_delivered: bool = False

    def status(self, code: int, text: str) -> bytes:
        """A status with what the request did not get."""
        pairs = [
            (PENDING_MESSAGES, str(self.remaining)),
            (PENDING_BYTES, str(self.remaining_bytes)),
        ]
        return header_blocks.status(code, text, pairs)


def parse_request(body: bytes, *, asked_with_next: bool = False) -> PullRequest:
    """Read a request's body; with ``+NXT`` the rest of the ack. Raises JsonError."""
    text = body.strip() if asked_with_next else body
    if text.startswith(b"{"):
        try:
            request: PullRequest = wire.read_request(wire.PULL, text, strict=False)
        except JsonError as error:
            told = str(error).partition(" at offset ")[0]
            if told == "unexpected EOF":
                told = "unexpected end of JSON input"
            raise JsonError(told) from error
        if request.idle_heartbeat_ns > 0 and request.expires_ns < 2 * request.idle_heartbeat_ns:
            raise JsonError("heartbeat value too large")
        return request
    try:
        batch = int(text) if text else 1
    except ValueError:
        batch = 1
    return PullRequest(batch=batch if batch > 0 else 1)


class PullLine:
    """The requests waiting on one pull consumer."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._line: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._line)

    def receive(self, reply: str, headers: bytes | None, body: bytes) -> None:
        """Take a request, or refuse it with a status."""
        level = header_blocks.get(headers, REQUIRED_LEVEL)
        if level and not supports_level(level):
            self._send(reply, header_blocks.status(412, "Required Api Level"))
            return
        try:
            request = parse_request(body)
        except JsonError as error:
            self._send(reply, header_blocks.status(400, f"Bad Request - {error}"))
            return
        self.add(reply, request)

    def add(self, reply: str, request: PullRequest) -> None:
        """Take a request that could be read, or refuse it with a status."""
        refusal = self._refusal(request)
        if refusal is None and len(self._line) >= self._consumer.config.max_waiting:
            self.expire()
            if len(self._line) >= self._consumer.config.max_waiting:
                if request.idle_heartbeat_ns <= 0:
                    self._send(reply, header_blocks.status(409, "Exceeded MaxWaiting"))
                return
        if refusal is not None:
            self._send(reply, refusal)
            return
        now_s = self._consumer.host.now.mono_s
        has_expiry = request.expires_ns != 0
        heartbeat_s = max(request.idle_heartbeat_ns, 0) / 1e9
        self._line.append(
            Waiting(
                reply=reply,
                remaining=request.batch,
                remaining_bytes=max(request.max_bytes, 0),
                is_no_wait=request.no_wait,
                has_byte_limit=request.max_bytes > 0,
                expires_s=now_s + request.expires_ns / 1e9 if has_expiry else None,
                heartbeat_s=heartbeat_s,
                heartbeat_at_s=now_s + heartbeat_s if heartbeat_s else None,
            )
        )

    def _refusal(self, request: PullRequest) -> bytes | None:
        """The status that turns a request away at once, if any."""
        consumer = self._consumer
        config = consumer.config
        text = ""
        if 0 < config.max_batch < request.batch:
            text = f"Exceeded MaxRequestBatch of {config.max_batch}"
        elif 0 < config.max_expires_ns < request.expires_ns:
            text = f"Exceeded MaxRequestExpires of {duration_text(config.max_expires_ns)}"
        elif 0 < config.max_bytes < request.max_bytes:
            text = f"Exceeded MaxRequestMaxBytes of {config.max_bytes}"
        if text:
            return header_blocks.status(409, text)
        if request.no_wait:
            available = consumer.num_available
            if available == 0 and request.expires_ns == 0:
                return header_blocks.status(404, "No Messages")
            if 0 < available < sum(max(waiting.remaining, 1) for waiting in self._line):
                return header_blocks.status(408, "Requests Pending")
        return None

    def take(self, size_bytes: int) -> Waiting | None:
        """Find who gets a message of this size.

        Who is late or too small for it leaves with a status, who is no longer there without one.
        """
        line, host = self._line, self._consumer.host
        while line:
            first = line[0]
            if first.expires_s is not None and first.expires_s <= host.now.mono_s:
                self._send(first.reply, first.status(408, "Request Timeout"))
            elif host.bus.has_interest(first.reply):
                if not first.has_byte_limit or size_bytes <= first.remaining_bytes:
                    return first
                self._send(first.reply, first.status(409, "Message Size Exceeds MaxBytes"))
            line.popleft()
        return None

    def only(self) -> Waiting | None:
        """Give the request that gets all there is: the only one, in time, and listened to."""
        if len(self._line) != 1:
            return None
        first, host = self._line[0], self._consumer.host
        is_late = first.expires_s is not None and first.expires_s <= host.now.mono_s
        return first if not is_late and host.bus.takes_runs(first.reply) else None

    def on_delivered(self, waiting: Waiting, size_bytes: int, count: int = 1) -> None:
        """The first in line got messages: count them, and move or end the request."""
        self._line.popleft()
        waiting.remaining -= count
        waiting.has_delivered = True
        if waiting.has_byte_limit:
            waiting.remaining_bytes -= size_bytes
        if waiting.heartbeat_at_s is not None:
            waiting.heartbeat_at_s = self._consumer.host.now.mono_s + waiting.heartbeat_s
        if waiting.remaining > 0 and not (waiting.has_byte_limit and waiting.remaining_bytes <= 0):
            self._line.append(waiting)
        elif waiting.has_byte_limit and waiting.remaining_bytes > 0:
            self._send(waiting.reply, waiting.status(409, "Batch Completed"))

    def on_exhausted(self) -> None:
        """There is no message left: end the requests that wanted only what was there."""
        kept: deque[Waiting] = deque()
        for waiting in self._line:
            has_patience = waiting.expires_s is not None and not waiting.has_delivered
            if not waiting.is_no_wait or has_patience:
                kept.append(waiting)
            elif waiting.expires_s is None:
                self._send(waiting.reply, header_blocks.status(404, "No Messages"))
            else:
                self._send(waiting.reply, waiting.status(408, "Request Timeout"))
        self._line = kept

    def expire(self) -> None:
        """End what has waited long enough or left, and keep the others' connections alive."""
        consumer = self._consumer
        now_s = consumer.host.now.mono_s
        kept: deque[Waiting] = deque()
        for waiting in self._line:
            if waiting.expires_s is not None and waiting.expires_s <= now_s:
                self._send(waiting.reply, waiting.status(408, "Request Timeout"))
            elif consumer.host.bus.has_interest(waiting.reply):
                kept.append(waiting)
                if waiting.heartbeat_at_s is not None and waiting.heartbeat_at_s <= now_s:
                    self._send(waiting.reply, consumer.heartbeat())
                    waiting.heartbeat_at_s = now_s + waiting.heartbeat_s
        self._line = kept

    def next_deadline(self) -> float | None:
        """Give the time of the next expiry or heartbeat."""
        nearest: float | None = None
        for waiting in self._line:
            for at_s in (waiting.expires_s, waiting.heartbeat_at_s):
                if at_s is not None and (nearest is None or at_s < nearest):
                    nearest = at_s
        return nearest

    def end(self, code: int, text: str, *, shows_pending: bool = False) -> None:
        """End every request with a status."""
        for waiting in self._line:
            plain = header_blocks.status(code, text)
            self._send(waiting.reply, waiting.status(code, text) if shows_pending else plain)
        self._line.clear()

    def _send(self, reply: str, block: bytes) -> None:
        self._consumer.host.bus.publish(reply, headers=block)
