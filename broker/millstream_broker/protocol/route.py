"""Who gets a subject: the values the message core and the router share.

`Routes` is the table of the hot path. It maps a subject to its `Route` and, one step before that,
a whole control line (``PUB orders.7 128``) to a `Plan`, because the same lines come again and
again and one lookup then replaces parsing. Any change of interest raises the generation and
empties both maps; they fill again from the router's index, one miss per subject. Both are
bounded: the oldest subject makes room for a new one, and full lines are emptied.

A plan counts its messages in one number. What subscriptions and statistics are owed is added up
when the table is emptied or somebody asks (`settle_counts`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ..message import Sink

if TYPE_CHECKING:
    from .core import Connection

ROUTES_MAX = 16_384
LINES_MAX = 8_192


class Subscription:
    """A client's interest. ``max_delivered`` 0 means no limit."""

    __slots__ = ("connection", "delivered", "max_delivered", "pattern", "queue", "sid")

    def __init__(self, connection: Connection, pattern: str, queue: str | None, sid: bytes) -> None:
        self.connection = connection
        self.pattern = pattern
        self.queue = queue
        self.sid = sid
        self.delivered = 0
        self.max_delivered = 0


class InternalSubscription:
    """Interest from inside the server; ``sink`` takes runs of messages."""

    __slots__ = ("pattern", "sink")

    def __init__(self, pattern: str, sink: Sink) -> None:
        self.pattern = pattern
        self.sink = sink


class Route:
    """Everybody who gets one literal subject; ``prefix`` is the beginning of the MSG line.

    ``is_reserved``: no client may publish there. Runs of messages have a quick way where there is
    but one who gets them: ``client`` is its plain subscription without a limit, ``sink`` the
    subscriber inside the server.
    """

    __slots__ = (
        "client",
        "is_reserved",
        "is_seen",
        "plain",
        "queues",
        "sink",
        "sinks",
        "subject",
        "text",
    )

    def __init__(
        self,
        subject: bytes,
        text: str,
        plain: list[tuple[Subscription, bytes]],
        queues: dict[str, list[tuple[Subscription, bytes]]],
        sinks: list[InternalSubscription],
        *,
        is_reserved: bool,
    ) -> None:
        self.subject = subject
        self.text = text
        self.plain = plain
        self.queues = queues
        self.sinks = sinks
        self.is_reserved = is_reserved
        self.is_seen = False
        self.client: tuple[Subscription, bytes] | None = None
        self.sink: InternalSubscription | None = None
        if len(plain) == 1 and not queues and not sinks and not plain[0][0].max_delivered:
            self.client = plain[0]
        elif len(sinks) == 1 and not queues and not plain and not is_reserved:
            self.sink = sinks[0]

    def has_interest(self) -> bool:
        """Whether a message would get anywhere."""
        return bool(self.plain or self.queues or self.sinks)

    def is_direct(self) -> bool:
        """Whether every message goes to the same clients, with nothing to decide per message."""
        return not (self.queues or self.sinks) and all(
            not subscription.max_delivered for subscription, _ in self.plain
        )


class Plan:
    """What to do with a PUB line seen before: ``size`` counts its payload and the CR LF after it.

    ``heads`` (output list, MSG line, connection) is None where each message needs a decision.
    """

    __slots__ = ("count", "heads", "route", "size")

    def __init__(self, route: Route, payload_size: int) -> None:
        self.route = route
        self.size = payload_size + 2
        self.count = 0
        self.heads: list[tuple[list[bytes], bytes, Connection]] | None = None
        if route.is_direct():
            tail = b"%d\r\n" % payload_size
            self.heads = [
                (subscription.connection.chunks, prefix + tail, subscription.connection)
                for subscription, prefix in route.plain
            ]


class Counts:
    """Messages and payload bytes in and out; control lines are not counted."""

    __slots__ = ("in_bytes", "in_messages", "out_bytes", "out_messages")

    def __init__(self) -> None:
        self.in_messages = self.in_bytes = self.out_messages = self.out_bytes = 0


class Routes:
    """The table; ``lines`` and ``subjects`` stay the same objects for its whole life."""

    __slots__ = ("counts", "generation", "lines", "subjects")

    def __init__(self) -> None:
        self.generation = 0
        self.lines: dict[bytes, Plan] = {}
        self.subjects: OrderedDict[bytes, Route] = OrderedDict()
        self.counts = Counts()

    def renew(self) -> None:
        """Forget everything: interest has changed."""
        self.generation += 1
        self.settle_counts()
        self.lines.clear()
        self.subjects.clear()

    def remember(self, route: Route) -> None:
        """Keep a route that was just computed."""
        if len(self.subjects) >= ROUTES_MAX:
            self.subjects.popitem(last=False)
        self.subjects[route.subject] = route

    def remember_line(self, line: bytes, route: Route, payload_size: int) -> None:
        """Keep a plan for a control line, from the second time its subject is seen on."""
        if not route.is_seen:
            # Subjects used once (acks, inboxes) would only push the others out.
            route.is_seen = True
            return
        if len(self.lines) >= LINES_MAX:
            self.settle_counts()
            self.lines.clear()
        self.lines[line] = Plan(route, payload_size)

    def settle_counts(self) -> None:
        """Add what plans counted to subscriptions and totals."""
        counts = self.counts
        for plan in self.lines.values():
            count = plan.count
            if count:
                plan.count = 0
                targets = plan.route.plain
                counts.in_messages += count
                counts.in_bytes += count * (plan.size - 2)
                counts.out_messages += count * len(targets)
                counts.out_bytes += count * len(targets) * (plan.size - 2)
                for subscription, _ in targets:
                    subscription.delivered += count
