"""One subject space: who is subscribed, and how a message gets to them.

The index (`Trie`) holds every interest, the table (`Routes`) the answers already computed; any
change of interest empties the table. `dispatch` is the general way of a message: plain
subscriptions each get it, of every queue group one random member does, subscribers inside the
server get it in a batch. The fast way for the common case lives in `protocol.core` and uses the
same table.

Order: one publisher's messages reach one connection in the order they came. Subscribers inside the
server are called by `settle`, never from within `dispatch`: what they publish while they work is
appended to outputs at once, and what reaches other internal subscribers waits its turn.

Chance is an argument: ``random(n)`` gives an integer at or above 0 and below n.
"""

from collections import deque
from collections.abc import Callable

from ..message import Instant, Message, Sink
from ..protocol.core import Connection
from ..protocol.encoder import message_prefix, no_responders
from ..protocol.route import InternalSubscription, Route, Routes, Subscription
from ..subjects.trie import Trie

RESERVED_SUBJECTS = ("$NRG.", "_GR_.", "$GR.")
"""Prefixes a client may not publish to (nats-server's own traffic between nodes)."""


class Account:
    """The account every client is in: `Router` for connections, `Bus` for JetStream."""

    def __init__(self, random: Callable[[int], int]) -> None:
        self.routes = Routes()
        self._random = random
        self._index: Trie[Subscription | InternalSubscription] = Trie()
        self._runs: deque[tuple[InternalSubscription, list[Message]]] = deque()

    @property
    def subscription_count(self) -> int:
        """Interests in place, internal ones included."""
        return len(self._index)

    # Interest

    def add(self, connection: Connection, pattern: str, queue: str | None, sid: bytes) -> None:
        """Add a client's interest under a sid that is free."""
        subscription = Subscription(connection, pattern, queue, sid)
        connection.subscriptions[sid] = subscription
        self._index.insert(pattern, subscription)
        self.routes.renew()

    def remove(self, subscription: Subscription) -> None:
        """Take a client's interest out; its sid is free again."""
        subscription.connection.subscriptions.pop(subscription.sid, None)
        self._index.remove(subscription.pattern, subscription)
        self.routes.renew()

    def limit(self, subscription: Subscription, max_delivered: int) -> None:
        """End a subscription after so many messages, counted from its beginning; 0: now."""
        self.routes.settle_counts()
        if max_delivered <= subscription.delivered:
            self.remove(subscription)
            return
        subscription.max_delivered = max_delivered
        self.routes.renew()

    def subscribe(self, pattern: str, sink: Sink) -> Callable[[], None]:
        """Add interest from inside the server; the answer removes it."""
        subscription = InternalSubscription(pattern, sink)
        self._index.insert(pattern, subscription)
        self.routes.renew()

        def unsubscribe() -> None:
            if self._index.remove(pattern, subscription):
                self.routes.renew()

        return unsubscribe

    def has_interest(self, subject: str, queue: str | None = None) -> bool:
        """Whether anybody (with ``queue``: a member of that queue group) would get the subject."""
        route = self.route(subject.encode("utf-8", "surrogateescape"))
        return route.has_interest() if queue is None else queue in route.queues

    def route(self, subject: bytes) -> Route:
        """Who gets ``subject``, from the table or the index."""
        known = self.routes.subjects.get(subject)
        if known is not None:
            return known
        route = self._find(subject)
        self.routes.remember(route)
        return route

    def _find(self, subject: bytes) -> Route:
        text = subject.decode("utf-8", "surrogateescape")
        plain: list[tuple[Subscription, bytes]] = []
        queues: dict[str, list[tuple[Subscription, bytes]]] = {}
        sinks: list[InternalSubscription] = []
        for interest in self._index.match(text):
            if isinstance(interest, InternalSubscription):
                sinks.append(interest)
                continue
            target = (interest, message_prefix(subject, interest.sid))
            if interest.queue is None:
                plain.append(target)
            else:
                queues.setdefault(interest.queue, []).append(target)
        is_reserved = text.startswith(RESERVED_SUBJECTS)
        return Route(subject, text, plain, queues, sinks, is_reserved=is_reserved)

    # Messages

    def dispatch(
        self,
        origin: Connection,
        route: Route,
        reply: bytes | None,
        headers_size: int,
        body: bytes,
    ) -> int:
        """Give one message of a client to everybody on the route; returns how many got it."""
        counts = self.routes.counts
        counts.in_messages += 1
        counts.in_bytes += len(body) - 2
        reached = self._deliver(route, reply, headers_size, body, origin, None)
        if not reached and reply is not None and origin.wants_no_responders:
            self._tell_no_responders(origin, route.subject, reply)
        return reached

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        reply: str | None = None,
        headers: bytes | None = None,
        deliver_as: str | None = None,
    ) -> int:
        """Route a message of the server's own; what MSG shows is ``deliver_as`` or the subject."""
        route = self.route(subject.encode("utf-8", "surrogateescape"))
        if not route.has_interest():
            return 0
        return self._deliver(
            route,
            None if reply is None else reply.encode("utf-8", "surrogateescape"),
            0 if headers is None else len(headers),
            b"%b\r\n" % payload if headers is None else b"%b%b\r\n" % (headers, payload),
            None,
            deliver_as,
        )

    def _deliver(
        self,
        route: Route,
        reply: bytes | None,
        headers_size: int,
        body: bytes,
        origin: Connection | None,
        shown_as: str | None,
    ) -> int:
        reached = 0
        if route.plain or route.queues:
            message = _Outgoing(reply, headers_size, body, shown_as)
            for subscription, prefix in route.plain:
                connection = subscription.connection
                if connection is not origin or connection.is_echo:
                    self._send(subscription, prefix, message)
                    reached += 1
            for members in route.queues.values():
                chosen = self._choose(members, origin)
                if chosen is not None:
                    self._send(*chosen, message)
                    reached += 1
        if route.sinks:
            arrived = Message(
                shown_as or route.text,
                None if reply is None else reply.decode("utf-8", "surrogateescape"),
                body[:headers_size] if headers_size else None,
                body[headers_size:-2],
            )
            for sink in route.sinks:
                self._gather(sink, arrived)
            reached += len(route.sinks)
        return reached

    def _choose(
        self, members: list[tuple[Subscription, bytes]], origin: Connection | None
    ) -> tuple[Subscription, bytes] | None:
        """One member at random; who publishes without echo is passed over."""
        count = len(members)
        first = self._random(count) if count > 1 else 0
        for step in range(count):
            member = members[(first + step) % count]
            connection = member[0].connection
            if connection is not origin or connection.is_echo:
                return member
        return None

    def _send(self, subscription: Subscription, prefix: bytes, message: "_Outgoing") -> None:
        connection = subscription.connection
        if message.shown_as is not None:
            prefix = message_prefix(message.shown_as, subscription.sid)
        head, body = message.encode(prefix, accepts_headers=connection.accepts_headers)
        connection.deliver(head, body)
        counts = self.routes.counts
        counts.out_messages += 1
        counts.out_bytes += len(body) - 2
        subscription.delivered += 1
        if subscription.max_delivered and subscription.delivered >= subscription.max_delivered:
            self.remove(subscription)

    def _tell_no_responders(self, origin: Connection, subject: bytes, reply: bytes) -> None:
        """Answer 503 on the requester's own plain subscription for the reply, if it has one."""
        for interest in self._index.match(reply.decode("utf-8", "surrogateescape")):
            if (
                isinstance(interest, Subscription)
                and interest.connection is origin
                and interest.queue is None
            ):
                origin.send(no_responders(subject, reply, interest.sid))
                return

    # Subscribers inside the server

    def _gather(self, subscription: InternalSubscription, message: Message) -> None:
        if self._runs and self._runs[-1][0] is subscription:
            self._runs[-1][1].append(message)
        else:
            self._runs.append((subscription, [message]))

    def settle(self, now: Instant) -> None:
        """Hand gathered runs to the subscribers inside the server, in order, until none is left."""
        runs = self._runs
        while runs:
            subscription, messages = runs.popleft()
            subscription.sink(messages, now)


class _Outgoing:
    """One message on its way to clients; what they share is encoded once."""

    __slots__ = ("_address", "_body", "_headers_size", "_tail", "shown_as")

    def __init__(
        self, reply: bytes | None, headers_size: int, body: bytes, shown_as: str | None
    ) -> None:
        self._headers_size = headers_size
        self._body = body
        self.shown_as = None if shown_as is None else shown_as.encode("utf-8", "surrogateescape")
        self._address = b"" if reply is None else reply + b" "
        self._tail = b"%b%d\r\n" % (self._address, len(body) - 2 - headers_size)

    def encode(self, prefix: bytes, *, accepts_headers: bool) -> tuple[bytes, bytes]:
        """The control line and what follows it; headers go only to who accepts them."""
        size = self._headers_size
        if not size:
            return prefix + self._tail, self._body
        if accepts_headers:
            line = b"H%b%b%d %d\r\n" % (prefix, self._address, size, len(self._body) - 2)
            return line, self._body
        return prefix + self._tail, self._body[size:]
