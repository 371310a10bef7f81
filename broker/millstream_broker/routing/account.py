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
from collections.abc import Callable, Sequence

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
        raw = subject.encode("utf-8", "surrogateescape")
        route = self.routes.subjects.get(raw) or self.route(raw)
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
        raw = subject.encode("utf-8", "surrogateescape")
        route = self.routes.subjects.get(raw) or self.route(raw)
        if not (route.plain or route.queues or route.sinks):
            return 0
        return self._deliver(
            route,
            None if reply is None else reply.encode("utf-8", "surrogateescape"),
            0 if headers is None else len(headers),
            payload + b"\r\n" if headers is None else b"%b%b\r\n" % (headers, payload),
            None,
            deliver_as,
        )

    def publish_all(self, subject: str, payloads: Sequence[bytes]) -> None:
        """Route messages of the server's own to one subject, in order."""
        target = self._only_client(subject)
        if target is None:
            for payload in payloads:
                self.publish(subject, payload)
            return
        subscription, prefix = target
        lines = [b"%b%d\r\n%b\r\n" % (prefix, len(payload), payload) for payload in payloads]
        self._deliver_run(subscription, b"".join(lines), len(payloads), sum(map(len, payloads)))

    def takes_runs(self, subject: str) -> bool:
        """Whether all of a run gets to the one client that listens, whatever comes first."""
        return self._only_client(subject) is not None

    def deliver_all(self, to: str, messages: Sequence[Message]) -> None:
        """Route messages by ``to``, in order; each arrives under its own subject."""
        target = self._only_client(to)
        if target is None or not target[0].connection.accepts_headers:
            for subject, reply, headers, payload in messages:
                self.publish(to, payload, reply=reply, headers=headers, deliver_as=subject)
            return
        subscription = target[0]
        sid = subscription.sid.decode("utf-8", "surrogateescape")
        parts: list[bytes] = []
        size = 0
        for subject, reply, headers, payload in messages:
            address = f"{subject} {sid} " if reply is None else f"{subject} {sid} {reply} "
            if headers is None:
                total = len(payload)
                line = f"MSG {address}{total}\r\n"
            else:
                total = len(headers) + len(payload)
                line = f"HMSG {address}{len(headers)} {total}\r\n"
            parts += (
                line.encode("utf-8", "surrogateescape"),
                headers or b"",
                payload,
                b"\r\n",
            )
            size += total
        self._deliver_run(subscription, b"".join(parts), len(messages), size)

    def _only_client(self, subject: str) -> tuple[Subscription, bytes] | None:
        raw = subject.encode("utf-8", "surrogateescape")
        return (self.routes.subjects.get(raw) or self.route(raw)).client

    def _deliver_run(self, subscription: Subscription, data: bytes, count: int, size: int) -> None:
        """Append whole MSG operations to a client's output and count them."""
        subscription.connection.deliver(b"", data)
        subscription.delivered += count
        counts = self.routes.counts
        counts.out_messages += count
        counts.out_bytes += size

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
        targets = route.plain
        if route.queues:
            chosen = (self._choose(members, origin) for members in route.queues.values())
            targets = [*targets, *(member for member in chosen if member is not None)]
        if targets:
            shown = b"" if shown_as is None else shown_as.encode("utf-8", "surrogateescape")
            address = b"" if reply is None else reply + b" "
            size = len(body) - 2
            tail = b"%b%d\r\n" % (address, size - headers_size)
            counts = self.routes.counts
            for subscription, prefix in targets:
                connection = subscription.connection
                if connection is origin and not connection.is_echo:
                    continue
                line = prefix if shown_as is None else message_prefix(shown, subscription.sid)
                if not headers_size:
                    connection.deliver(line + tail, body)
                    counts.out_bytes += size
                elif connection.accepts_headers:
                    head = b"H%b%b%d %d\r\n" % (line, address, headers_size, size)
                    connection.deliver(head, body)
                    counts.out_bytes += size
                else:
                    connection.deliver(line + tail, body[headers_size:])
                    counts.out_bytes += size - headers_size
                counts.out_messages += 1
                reached += 1
                subscription.delivered += 1
                if 0 < subscription.max_delivered <= subscription.delivered:
                    self.remove(subscription)
        if route.sinks:
            arrived = Message(
                shown_as or route.text,
                None if reply is None else reply.decode("utf-8", "surrogateescape"),
                body[:headers_size] if headers_size else None,
                body[headers_size:-2],
            )
            for sink in route.sinks:
                self.run_for(sink).append(arrived)
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

    def run_for(self, sink: InternalSubscription) -> list[Message]:
        """Give the run that a message for ``sink`` goes to the end of."""
        runs = self._runs
        if not runs or runs[-1][0] is not sink:
            runs.append((sink, []))
        return runs[-1][1]

    def settle(self, now: Instant) -> None:
        """Hand gathered runs to the subscribers inside the server, in order, until none is left."""
        runs = self._runs
        while runs:
            subscription, messages = runs.popleft()
            subscription.sink(messages, now)
