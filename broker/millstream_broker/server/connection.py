"""One client's socket: what asyncio (or uvloop) calls, handed to the message core and back.

Reading: every read goes to the core at once. Writing: at the end of the loop's round the server
calls `flush`, which makes one write of all that gathered. What the socket does not take stays in
the transport and counts against ``max_pending``; a client over it, or one that takes nothing for
``write_deadline``, is a slow consumer and is cut off.
"""

import asyncio
import logging
import random
from typing import TYPE_CHECKING, cast

from ..errors import AuthenticationTimeout, ClientError, SlowConsumer, StaleConnection
from ..protocol.core import Connection
from ..protocol.encoder import PING
from ..protocol.keepalive import FIRST_PING_S, Action, KeepAlive
from ..protocol.session import Session

if TYPE_CHECKING:
    from .server import Broker

logger = logging.getLogger("millstream.broker")

STALL_SHARE = 0.75
"""Above this share of ``max_pending`` publishers are slowed down."""


class ClientSocket(asyncio.Protocol):
    """A client from accept to close."""

    def __init__(self, server: "Broker") -> None:
        self._server = server
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._handed = 0
        self._taken_at_check = 0
        self._ping_timer: asyncio.TimerHandle | None = None
        self._auth_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.peer = ""
        self.core: Connection = server.new_connection()
        self._keep_alive: KeepAlive | None = None
        self.session = Session(
            self.core,
            server.credentials,
            async_info=lambda: server.info(self.core.client_id, self.peer, is_first=False),
            on_pong=self._on_pong,
            max_subscriptions=server.options.max_subscriptions,
        )

    # Called by the loop

    def connection_made(self, base: asyncio.BaseTransport) -> None:
        """Greet the client with INFO and start its timers."""
        # uvloop's transports have the methods, not the base class.
        transport = cast("asyncio.Transport", base)
        self._transport = transport
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if address else ""
        # Zero water marks: pause_writing and resume_writing then say when the socket lags at all.
        transport.set_write_buffer_limits(high=0)
        server, options = self._server, self._server.options
        transport.write(server.info(self.core.client_id, self.peer, is_first=True))
        refusal = server.admit(self)
        if refusal is not None:
            transport.write(refusal.encode())
            transport.close()
            return
        self._keep_alive = KeepAlive(
            self._server.now().mono_s,
            interval_s=options.ping_interval_s,
            ping_max=options.ping_max,
            first_s=FIRST_PING_S * random.uniform(1.0, 1.2),  # noqa: S311 - jitter, no secret
        )
        self._schedule_ping(self._keep_alive)
        if not self.core.is_authorized:
            self._auth_timer = self._loop.call_later(options.auth_timeout_s, self._on_auth_timer)
        logger.debug(
            "client %d connected from %s",
            self.core.client_id,
            self.peer,
            extra={"event": "client_connected"},
        )

    def data_received(self, data: bytes) -> None:
        """Hand one read to the core."""
        now = self._server.now()
        if self._keep_alive is not None:
            self._keep_alive.last_in_s = now.mono_s
        try:
            self.core.receive(data, now)
        finally:
            # Also when a part behind the router failed: the loop then closes this client alone.
            self._server.end_round_soon(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        for timer in (self._ping_timer, self._auth_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._transport = None
        self.core.close()
        self._server.forget(self)
        logger.debug(
            "client %d closed: %s",
            self.core.client_id,
            type(self.core.error).__name__ if exc is None else exc,
            extra={"event": "client_closed"},
        )

    def pause_writing(self) -> None:
        """Start the write deadline: the socket has not taken everything."""
        self._taken_at_check = self._taken()
        self._write_timer = self._loop.call_later(
            self._server.options.write_deadline_s, self._on_write_timer
        )

    def resume_writing(self) -> None:
        """Stop the write deadline: the socket has taken everything."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # Called by the server

    def flush(self) -> bool:
        """Write what gathered; True when the client lags so far that publishers should wait."""
        transport = self._transport
        core = self.core
        if transport is None:
            return False
        data = core.take()
        pending = transport.get_write_buffer_size() + len(data)
        limit = self._server.options.max_pending
        if pending > limit and core.error is None:
            core.error = SlowConsumer()
        if isinstance(core.error, SlowConsumer):
            self._cut("pending bytes")
            return False
        if data:
            self._handed += len(data)
            transport.write(data)
        if core.error is not None:
            self.close()
        return pending > limit * STALL_SHARE

    def stall(self, seconds: float) -> None:
        """Read nothing from this client for a moment."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        self._loop.call_later(seconds, self._resume_reading)

    def close(self, error: ClientError | None = None) -> None:
        """Write what gathered and close; nothing is read or delivered any more."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if error is not None:
            self.core.fail(error)
        data = self.core.take()
        self.core.close()
        if data:
            transport.write(data)
        transport.close()

    def abort(self) -> None:
        """Close without writing anything more."""
        if self._transport is not None:
            self.core.close()
            self._transport.abort()

    # Timers

    def _schedule_ping(self, keep_alive: KeepAlive) -> None:
        # The loop's clock may be another one than the server's: only the distance counts.
        delay = max(0.0, keep_alive.next_s - self._server.now().mono_s)
        self._ping_timer = self._loop.call_later(delay, self._on_ping_timer)

    def _on_ping_timer(self) -> None:
        keep_alive = self._keep_alive
        if keep_alive is None or self._transport is None:
            return
        action = keep_alive.advance(self._server.now().mono_s)
        if action is Action.STALE:
            self._server.stale_connections += 1
            self.close(StaleConnection())
            return
        if action is Action.PING:
            self.core.send(PING)
            self._server.end_round_soon(None)
        self._schedule_ping(keep_alive)

    def _on_pong(self) -> None:
        if self._keep_alive is not None:
            self._keep_alive.on_pong(self._server.now().mono_s)

    def _on_auth_timer(self) -> None:
        if not self.core.is_authorized:
            self.close(AuthenticationTimeout())

    def _on_write_timer(self) -> None:
        self._write_timer = None
        if self._taken() == self._taken_at_check:
            self._cut("write deadline")
        else:
            self.pause_writing()

    def _taken(self) -> int:
        """How many bytes the socket has taken so far."""
        transport = self._transport
        return self._handed - (0 if transport is None else transport.get_write_buffer_size())

    def _resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _cut(self, why: str) -> None:
        self._server.slow_consumers += 1
        logger.warning(
            "client %d is a slow consumer (%s) and was cut off",
            self.core.client_id,
            why,
            extra={"event": "slow_consumer"},
        )
        self.abort()
