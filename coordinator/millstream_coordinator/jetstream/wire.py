"""What the parts of a port share: one member's connection, its tasks, and who is told.

What goes out without an answer (acks, heartbeats, pull requests) goes through the outbox, in the
order it was asked for. What cannot go out now is dropped: its time is over when a connection comes
back, and nats-py would send it late.

Acks are the one thing that goes out per message, and `Client.publish` costs three microseconds, a
quarter of what a message may cost in all. So a run of them becomes one block of the wire's own
PUBs, which nats-py's ``_send_command`` takes as one command. Where a client has no such method
they are published one by one.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from urllib.parse import urlsplit, urlunsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from ..errors import ServerUnreachable
from ..model import MemberSettings
from ..partitioning.key import KeyRule
from ..ports import Happening, Listener, Reply, Spawn
from .api import Api, pass_cancellation

logger = logging.getLogger(__name__)

NS = 1_000_000_000
_REFUSALS = ("authorization violation", "authentication", "revoked", "maximum connections")
"""What a server says to one it does not let in."""


class Complaints:
    """What goes wrong with a client's connection: why the first connect failed, and what later."""

    def __init__(self, client: Client) -> None:
        self.first = ""
        """Its first word; its last is only that no server was left."""
        self.has_connected = False
        self._client = client
        self._told_at = -1

    async def note(self, error: Exception) -> None:
        """For ``error_cb``. Why a server no longer lets it in is told once, until it is back."""
        text = str(error) or type(error).__name__
        self.first = self.first or text
        reconnects = self._client.stats["reconnects"]
        is_refusal = any(it in text.lower() for it in _REFUSALS)
        if not (self.has_connected and is_refusal) or self._told_at == reconnects:
            logger.debug("connection: %s", text, extra={"event": "connection_error"})
            return
        self._told_at = reconnects
        logger.warning(
            "the server lets the connection in no more, and is asked again and again: %s",
            text,
            extra={"event": "connection_refused"},
        )


async def connect(url: str) -> Client:
    """Connect for a group: quick and patient reconnects; raises ServerUnreachable.

    ``url``: one server, or several of one cluster with commas between them.
    """
    client = Client()
    complaints = Complaints(client)
    try:
        await client.connect(
            [one.strip() for one in url.split(",")],
            name="millstream group",
            connect_timeout=2,
            allow_reconnect=True,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            error_cb=complaints.note,
        )
    except (OSError, nats.errors.Error, ValueError, TimeoutError) as error:
        reason = complaints.first or str(error) or type(error).__name__
        raise ServerUnreachable(without_password(url), reason) from error
    except asyncio.CancelledError:
        await client.close()
        raise
    # Only now: with it from the start, nats-py tries for ever to connect the first time.
    client.options["max_reconnect_attempts"] = -1
    complaints.has_connected = True
    client.options["reconnect_time_wait"] = random.uniform(0.05, 0.2)  # noqa: S311 - spreads them
    return client


async def close(client: Client) -> None:
    """Close a client of `connect`, also one that has no server at the moment.

    Its own end cancels the task that looks for a server, but Python 3.11's ``wait_for``, in which
    that task may be, can drop a cancellation. So it is told as well that a few tries are enough:
    else it looks for ever, and the process does not end.
    """
    client.options["max_reconnect_attempts"] = 1
    await client.close()


def without_password(urls: str) -> str:
    """The URLs as they may be shown: what stands before ``@`` is left out."""
    shown = []
    for url in urls.split(","):
        parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
        host = parts.netloc.rpartition("@")[2]
        shown.append(urlunsplit((parts.scheme, host, parts.path, "", "")))
    return ",".join(shown)


async def unsubscribe(subscription: Subscription) -> None:
    """Unsubscribe, also where there is no connection any more."""
    try:
        await subscription.unsubscribe()
    except nats.errors.Error as error:
        logger.debug("unsubscribe: %s", error, extra={"event": "unsubscribe_failed"})


class Wire:
    """One member's connection. ``settings`` and ``rule`` are the member's; ``api`` asks."""

    def __init__(
        self,
        client: Client,
        api: Api,
        settings: MemberSettings,
        rule: KeyRule | None,
        listener: Listener,
        spawn: Spawn,
    ) -> None:
        """``client`` is connected; the loop that runs now is the member's."""
        self.client = client
        self.api = api
        self.settings = settings
        self.rule = rule
        self.is_closed = False
        self._listener = listener
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[tuple[str, bytes, str] | list[str] | Callable[[], None]] = deque()
        self._has_output = asyncio.Event()

    @property
    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def tell(self, news: Happening | Reply) -> None:
        """Tell the machine, unless the port is closed."""
        if not self.is_closed:
            self._listener(news)

    def start(self, task: Coroutine[None, None, None], name: str) -> None:
        """Run a task that ends with the member."""
        self._spawn(task, name)

    def soon(self, call: Callable[[], None]) -> None:
        """Call at the next round of the loop."""
        self._loop.call_soon(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call after ``delay_s``, unless the port is closed by then."""
        self._loop.call_later(delay_s, lambda: None if self.is_closed else call())

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Put a message into the outbox."""
        self._outbox.append((subject, payload, reply))
        self._has_output.set()

    def acknowledge(self, replies: list[str]) -> None:
        """Put acks into the outbox: one for each of these reply subjects."""
        self._outbox.append(replies)
        self._has_output.set()

    def after_output(self, call: Callable[[], None]) -> None:
        """Call once everything that is in the outbox now has been handed to the client."""
        self._outbox.append(call)
        self._has_output.set()

    async def send(self) -> None:
        """Empty the outbox, for ever."""
        while True:
            await self._has_output.wait()
            self._has_output.clear()
            while self._outbox:
                one = self._outbox.popleft()
                if callable(one):
                    one()
                    await asyncio.sleep(0)
                    continue
                if not self.client.is_connected:
                    continue
                try:
                    if isinstance(one, list):
                        await self._send_acks(one)
                    else:
                        await self.client.publish(one[0], one[1], reply=one[2])
                except nats.errors.Error as error:
                    logger.debug("publish: %s", error, extra={"event": "publish_failed"})
                pass_cancellation()

    async def _send_acks(self, replies: list[str]) -> None:
        client = self.client
        if not hasattr(client, "_send_command"):
            for reply in replies:
                await client.publish(reply, b"+ACK")
            return
        block = "PUB " + " 4\r\n+ACK\r\nPUB ".join(replies) + " 4\r\n+ACK\r\n"
        client.stats["out_msgs"] += len(replies)
        client.stats["out_bytes"] += 4 * len(replies)
        await client._send_command(block.encode())
        await client._flush_pending()
