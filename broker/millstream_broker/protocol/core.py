"""The message path, in plain Python: bytes of one read in, bytes for every target out.

A `Connection` knows no transport. The edge gives it the bytes of each socket read (`receive`) and
writes what gathered in the outputs, once at the end of the loop's round, one write each:
connections with output put themselves on the ``dirty`` list they all share, and `take` empties
them.

`receive` walks a run of operations in place. A PUB whose whole control line was seen before costs
one dictionary lookup and two appends per target (see `route`). Everything else goes through the
parser; publishes go on to the router, all other operations to the session. Messages for
subscribers inside the server gather in runs and are handed over as batches when another kind of
operation comes and at the end of the read, so that a PING is answered after what came before it.
Where one of them was for such a subscriber, those after it mostly are: `_gather` takes them in a
row, with one expression, one look-up and one append each.

This is the reference of what a compiled core must do: same bytes in at any chunking, same bytes
out. The interface is `Connection.receive`, ``chunks``, ``dirty``, `take` and `close`, and
`Router` below.
"""

from collections.abc import Callable
from typing import Protocol

from ..errors import (
    AuthorizationViolation,
    ClientError,
    InvalidPublishSubject,
    PublishNotPermitted,
    ReplyNotPermitted,
    SlowConsumer,
    UnknownOperation,
)
from ..message import Instant, Message
from ..subjects import subject as subjects
from .encoder import OK
from .parser import PUBLISH_LINE, Incomplete, Limits, Operation, Publish, parse
from .route import InternalSubscription, Plan, Route, Routes, Subscription

NAME = "python"
"""Which core this is: said at start and by monitoring."""

RESERVED_REPLIES = (b"$JS.ACK.", b"_R_.", b"_GR_.")
_NO_LINES: dict[bytes, Plan] = {}


class Router(Protocol):
    """The account a connection publishes into."""

    routes: Routes

    def route(self, subject: bytes) -> Route:
        """Who gets ``subject``, from the table or the index."""

    def dispatch(
        self,
        origin: "Connection",
        route: Route,
        reply: bytes | None,
        headers_size: int,
        body: bytes,
    ) -> int:
        """Give one message of a client to everybody on the route; returns how many got it."""

    def run_for(self, sink: InternalSubscription) -> list[Message]:
        """Give the run that a message for ``sink`` goes to the end of."""

    def settle(self, now: Instant) -> None:
        """Hand gathered messages to the subscribers inside the server."""

    def add(self, connection: "Connection", pattern: str, queue: str | None, sid: bytes) -> None:
        """Add a client's interest under a sid that is free."""

    def remove(self, subscription: Subscription) -> None:
        """Take a client's interest out."""

    def limit(self, subscription: Subscription, max_delivered: int) -> None:
        """End a subscription after so many messages, counted from its beginning; 0: now."""


class Connection:
    """One client's bytes. ``error`` is set once it has to close, after its output is written.

    While ``is_authorized`` is False nothing but CONNECT is let in.
    """

    __slots__ = (
        "_gathered",
        "_gathered_size",
        "_wanted",
        "accepts_headers",
        "chunks",
        "client_id",
        "dirty",
        "error",
        "is_authorized",
        "is_closed",
        "is_echo",
        "is_pedantic",
        "is_plain",
        "is_quiet",
        "is_verbose",
        "limits",
        "max_pending",
        "on_operation",
        "queued",
        "router",
        "subscriptions",
        "wants_no_responders",
    )

    def __init__(
        self,
        router: Router,
        dirty: list["Connection"],
        *,
        client_id: int = 0,
        limits: Limits = Limits(),  # noqa: B008 - an immutable value
        max_pending: int = 64 * 1024 * 1024,
    ) -> None:
        self.router = router
        self.dirty = dirty
        self.client_id = client_id
        self.max_pending = max_pending
        self.on_operation: Callable[[Operation], None] = _nothing
        self.chunks: list[bytes] = []
        self.queued = 0
        self.subscriptions: dict[bytes, Subscription] = {}
        self.error: ClientError | None = None
        self.is_closed = False
        self.is_authorized = True
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._wanted = 0
        self.limits = limits
        self.configure(
            is_verbose=True,
            is_pedantic=True,
            is_echo=True,
            accepts_headers=False,
            wants_no_responders=False,
        )

    def configure(
        self,
        *,
        is_verbose: bool,
        is_pedantic: bool,
        is_echo: bool,
        accepts_headers: bool,
        wants_no_responders: bool,
    ) -> None:
        """Take over what CONNECT says."""
        self.is_verbose = is_verbose
        self.is_pedantic = is_pedantic
        self.is_echo = is_echo
        self.accepts_headers = accepts_headers
        self.wants_no_responders = wants_no_responders
        self.limits = self.limits._replace(accepts_headers=accepts_headers)
        self.is_quiet = not is_verbose and not is_pedantic
        self.is_plain = is_echo and self.is_quiet

    def receive(self, data: bytes, now: Instant) -> None:
        """Work through the bytes of one read; what is incomplete waits for the next.

        Never raises for what a client sent: it is answered, and ``error`` set where it closes.
        """
        if self.error is not None:
            return
        if self._gathered:
            self._gathered.append(data)
            self._gathered_size += len(data)
            if self._gathered_size < self._wanted:
                return
            data = b"".join(self._gathered)
            self._gathered.clear()
        try:
            missing, position = self._run(data, now)
        except ClientError as error:
            self.fail(error)
        else:
            if position < len(data):
                self._gathered.append(data[position:])
                self._gathered_size = len(data) - position
                self._wanted = self._gathered_size + missing
        self.router.settle(now)

    def _run(self, data: bytes, now: Instant) -> tuple[int, int]:
        """Work in place; returns how many bytes are missing and where the rest starts."""
        position, length = 0, len(data)
        router, dirty, find = self.router, self.dirty, data.find
        lines = router.routes.lines if self.is_plain else _NO_LINES
        while position < length:
            end = find(b"\n", position) + 1
            plan = lines.get(data[position:end])
            if plan is not None:
                stop = end + plan.size
                body = data[end:stop]
                if stop <= length:
                    if body[-2:] != b"\r\n":
                        raise UnknownOperation
                    position = stop
                    if plan.heads is None:
                        router.dispatch(self, plan.route, None, 0, body)
                        continue
                    plan.count += 1
                    for chunks, head, connection in plan.heads:
                        if not chunks:
                            dirty.append(connection)
                        chunks.append(head)
                        chunks.append(body)
                    continue
            if not self.is_authorized and data[position] not in b"Cc":
                raise AuthorizationViolation
            step = parse(data, position, self.limits)
            if isinstance(step, Incomplete):
                return step.missing, position
            operation, stop = step
            if isinstance(operation, Publish):
                stop = self._publish(operation, data[position:end], data, stop)
            else:
                router.settle(now)
                self.on_operation(operation)
                if self.error is not None:
                    return 0, length
                lines = router.routes.lines if self.is_plain else _NO_LINES
            position = stop
        return 0, position

    def _gather(self, data: bytes, position: int) -> int:
        """Take publishes that go to one subscriber inside the server; where the first other one is.

        What is not whole, or not right, is another one, too: it is looked at again.
        """
        match, new, length = PUBLISH_LINE.match, tuple.__new__, len(data)
        limits, router = self.limits, self.router
        known, counts = router.routes.subjects, router.routes.counts
        sink: InternalSubscription | None = None
        run: list[Message] = []
        raw_reply: bytes | None = None
        reply: str | None = None
        while (found := match(data, position)) is not None:
            has_headers, subject, new_reply, headers_size, size = found.groups()
            route = known.get(subject) or router.route(subject)
            start = found.end()
            middle, stop = start + int(headers_size or 0), start + int(size)
            if (
                route.sink is None
                or not middle <= stop <= length - 2
                or stop - start > limits.max_payload
                or start - position > limits.max_control_line
                or (has_headers and not limits.accepts_headers)
                or data[stop : stop + 2] != b"\r\n"
            ):
                break
            if new_reply != raw_reply:
                if new_reply is not None and new_reply.startswith(RESERVED_REPLIES):
                    break
                raw_reply = new_reply
                reply = None if raw_reply is None else raw_reply.decode("utf-8", "surrogateescape")
            if route.sink is not sink:
                sink = route.sink
                run = router.run_for(sink)
            headers = data[start:middle] if middle > start else None
            run.append(new(Message, (route.text, reply, headers, data[middle:stop])))
            counts.in_messages += 1
            counts.in_bytes += stop - start
            position = stop + 2
        return position

    def _publish(self, publish: Publish, line: bytes, data: bytes, stop: int) -> int:
        """Answer or route one publish, and those behind it as well; where the next one is."""
        subject, reply, headers_size, body = publish
        router = self.router
        route = router.routes.subjects.get(subject) or router.route(subject)
        if self.is_pedantic and not subjects.is_publishable(route.text):
            self.fail(InvalidPublishSubject())
        if reply is not None and reply.startswith(RESERVED_REPLIES):
            self.fail(ReplyNotPermitted(reply.decode("utf-8", "surrogateescape")))
            return stop
        if route.is_reserved:
            self.fail(PublishNotPermitted(route.text))
            return stop
        if self.is_verbose:
            self.send(OK)
        if self.is_plain and reply is None and line[:1] in b"Pp":
            router.routes.remember_line(line, route, len(body) - 2)
        router.dispatch(self, route, reply, headers_size, body)
        is_inward = self.is_quiet and route.sink is not None
        return self._gather(data, stop) if is_inward else stop

    def send(self, data: bytes) -> None:
        """Append bytes to the output."""
        if self.is_closed:
            return
        if not self.chunks:
            self.dirty.append(self)
        self.chunks.append(data)

    def deliver(self, head: bytes, body: bytes) -> None:
        """Append one message to the output; too much of it in one round makes a slow consumer."""
        if self.error is not None:
            return
        chunks = self.chunks
        if not chunks:
            self.dirty.append(self)
        chunks.append(head)
        chunks.append(body)
        self.queued += len(body)
        if self.queued > self.max_pending:
            self.chunks.clear()
            self.chunks.append(b"")
            self.error = SlowConsumer()

    def fail(self, error: ClientError) -> None:
        """Answer a client's mistake; a fatal one marks the connection for closing."""
        self.send(error.encode())
        if error.is_fatal:
            self.error = error

    def take(self) -> bytes:
        """The output gathered so far, handed out once."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        self.queued = 0
        return data

    def close(self) -> None:
        """Take every subscription out; nothing is delivered or parsed any more."""
        self.is_closed = True
        if self.error is None:
            self.error = ClientError()
        for subscription in list(self.subscriptions.values()):
            self.router.remove(subscription)
        self.chunks.clear()


def _nothing(_operation: Operation) -> None:
    """Stand in until a session is there."""
