"""Push delivery: when messages may flow to ``deliver_subject``, and keeping the receiver in step.

Messages flow while somebody is subscribed. With flow control a window of unprocessed bytes
opens slowly: it starts at a sixteenth of its limit and doubles with every answer of the
receiver. Past half the window the receiver is asked (``100 FlowControl Request``) to answer
when it has got that far; past the whole of it delivery stops. When nothing went out for
``idle_heartbeat`` a heartbeat does, so that the receiver can tell silence from loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol import headers as header_blocks

if TYPE_CHECKING:
    from .consumer import Consumer

WINDOW_BYTES_MAX: Final = 32 * 1024 * 1024
_INTEREST_POLL_S: Final = 0.1


class PushWindow:
    """The state of one push consumer's delivery."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._window_bytes = WINDOW_BYTES_MAX // 16
        self._sent_bytes = 0
        self._asked_bytes = 0
        self._asked: str | None = None
        self._free_at_s = 0.0
        self.heartbeat_at_s: float | None = None
        self.is_bound = False
        self.rest_of_heartbeat()

    def rest_of_heartbeat(self) -> None:
        """Something went out: silence begins anew."""
        consumer = self._consumer
        wait_ns = consumer.config.idle_heartbeat_ns
        self.heartbeat_at_s = consumer.host.now.mono_s + wait_ns / 1e9 if wait_ns else None

    def look(self) -> bool:
        """Whether somebody is subscribed now."""
        consumer = self._consumer
        group = consumer.config.deliver_group or None
        self.is_bound = consumer.host.bus.has_interest(consumer.config.deliver_subject, group)
        return self.is_bound

    def is_open(self) -> bool:
        """Whether a message may go out now."""
        if not self.is_bound or self._free_at_s > self._consumer.host.now.mono_s:
            return False
        return not (self._consumer.config.flow_control and self._sent_bytes > self._window_bytes)

    def on_delivered(self, size_bytes: int) -> None:
        """A message went out."""
        consumer = self._consumer
        config = consumer.config
        self.rest_of_heartbeat()
        if config.rate_limit_bps:
            start_s = max(self._free_at_s, consumer.host.now.mono_s)
            self._free_at_s = start_s + size_bytes * 8 / config.rate_limit_bps
        if not config.flow_control:
            return
        self._sent_bytes += size_bytes
        if self._asked is None and self._sent_bytes > self._window_bytes // 2:
            self._asked = f"{consumer.flow_prefix}.{consumer.host.random_text(4)}"
            self._asked_bytes = self._sent_bytes
            block = header_blocks.status(100, "FlowControl Request")
            self._send(block, reply=self._asked)

    def on_answer(self, subject: str) -> None:
        """The receiver has processed what was sent before the question ``subject``."""
        if subject != self._asked:
            return
        self._window_bytes = min(self._window_bytes * 2, WINDOW_BYTES_MAX)
        self._sent_bytes = max(self._sent_bytes - self._asked_bytes, 0)
        self._asked = None

    def beat(self) -> None:
        """Send a heartbeat if it is time for one."""
        consumer = self._consumer
        at_s = self.heartbeat_at_s
        if at_s is None or at_s > consumer.host.now.mono_s:
            return
        if self.is_bound:
            is_stalled = self._asked is not None and self._sent_bytes > self._window_bytes
            pairs = [("Nats-Consumer-Stalled", self._asked or "")] if is_stalled else []
            self._send(consumer.heartbeat(pairs))
        self.rest_of_heartbeat()

    def next_deadline(self, *, has_messages: bool) -> float | None:
        """Give the time of the next heartbeat, free slot, or look for a subscriber."""
        now_s = self._consumer.host.now.mono_s
        times = [] if self.heartbeat_at_s is None else [self.heartbeat_at_s]
        if has_messages and not self.is_bound:
            times.append(now_s + _INTEREST_POLL_S)
        if has_messages and self._free_at_s > now_s:
            times.append(self._free_at_s)
        return min(times, default=None)

    def _send(self, block: bytes, reply: str | None = None) -> None:
        consumer = self._consumer
        consumer.host.bus.publish(consumer.config.deliver_subject, headers=block, reply=reply)
