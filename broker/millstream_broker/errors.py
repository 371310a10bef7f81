"""Everything the broker raises.

    BrokerError
    ├── ClientError            what a client did wrong; the wire text, and whether it closes
    │   ├── MalformedOperation, UnknownOperation, ControlLineTooLong, PayloadTooLarge
    │   ├── InvalidSubject, InvalidPublishSubject, TooManySubscriptions
    │   ├── PublishNotPermitted, ReplyNotPermitted, SubscribeNotPermitted
    │   ├── AuthorizationViolation, AuthenticationTimeout, InvalidClientProtocol, HeadersRequired
    │   └── TooManyConnections, StaleConnection, SlowConsumer
    ├── TransformError         a subject transform that can't be (the server's own words)
    └── StartError             the server can't start: which thing, and why

A protocol error is data: the class says what goes on the wire (``wire`` None: nothing) and whether
the connection closes (``is_fatal``). Texts are those of nats-server 2.15; clients compare them.
"""

from typing import ClassVar


class BrokerError(Exception):
    """Anything the broker raises on purpose."""


class ClientError(BrokerError):
    """A client broke the rules: ``wire`` is the text of its -ERR, ``is_fatal`` closes."""

    wire: str | None = None
    is_fatal: ClassVar[bool] = True

    def encode(self) -> bytes:
        """The -ERR line, or nothing when the server closes without a word."""
        if self.wire is None:
            return b""
        return b"-ERR '%b'\r\n" % self.wire.encode("utf-8", "surrogateescape")


class MalformedOperation(ClientError):
    """The arguments of an operation make no sense; nats-server closes in silence."""


class UnknownOperation(ClientError):
    """A line that starts with no operation, or a payload that doesn't end where it said."""

    wire = "Unknown Protocol Operation"


class ControlLineTooLong(ClientError):
    """The arguments of an operation are over ``max_control_line``."""

    wire = "maximum control line exceeded"


class PayloadTooLarge(ClientError):
    """The announced payload is over ``max_payload``."""

    wire = "Maximum Payload Violation"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"payload of {size} bytes is over the limit of {limit}")
        self.size, self.limit = size, limit


class InvalidSubject(ClientError):
    """SUB with a subject that is none."""

    wire, is_fatal = "Invalid Subject", False


class InvalidPublishSubject(ClientError):
    """A pedantic client published to a wildcard or an empty token."""

    wire, is_fatal = "Invalid Publish Subject", False


class TooManySubscriptions(ClientError):
    """The connection has ``max_subscriptions`` already."""

    wire, is_fatal = "maximum subscriptions exceeded", False


class PublishNotPermitted(ClientError):
    """Publishing to a subject that belongs to the server."""

    is_fatal = False

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.wire = f'Permissions Violation for Publish to "{subject}"'


class ReplyNotPermitted(ClientError):
    """A reply subject that only the server may give out."""

    is_fatal = False

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.wire = f'Permissions Violation for Publish with Reply of "{reply}"'


class SubscribeNotPermitted(ClientError):
    """A subscription this client may not have."""

    is_fatal = False

    def __init__(self, subject: str, queue: str | None = None) -> None:
        super().__init__(subject)
        using = "" if queue is None else f' using queue "{queue}"'
        self.wire = f'Permissions Violation for Subscription to "{subject}"{using}'


class AuthorizationViolation(ClientError):
    """Wrong credentials, none where some are needed, or an account asked for."""

    wire = "Authorization Violation"


class AuthenticationTimeout(ClientError):
    """No CONNECT came in time."""

    wire = "Authentication Timeout"


class InvalidClientProtocol(ClientError):
    """CONNECT with a ``protocol`` other than 0 or 1."""

    wire = "invalid client protocol"


class HeadersRequired(ClientError):
    """CONNECT wants no_responders and refuses headers."""

    wire = "no responders requires headers support"


class TooManyConnections(ClientError):
    """The server has ``max_connections`` already."""

    wire = "maximum connections exceeded"


class StaleConnection(ClientError):
    """The client left too many PINGs unanswered."""

    wire = "Stale Connection"


class SlowConsumer(ClientError):
    """More waits for this client than it may keep; closed without a word, as nats-server does."""


class TransformError(BrokerError):
    """A subject transform that can't be; the text is nats-server's."""


class StartError(BrokerError):
    """The server can't start: ``what`` is the address, file or folder concerned."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what, self.why = what, why
