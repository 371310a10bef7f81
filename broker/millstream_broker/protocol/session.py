"""What a client and the server have agreed on: CONNECT, subscriptions, pings.

States: before CONNECT everything is allowed when no credentials are needed (with the defaults
verbose, pedantic, echo and no headers), otherwise only CONNECT is. After CONNECT its options
hold; a second CONNECT is legal and replaces them. The first PONG to a client of protocol 1 is
followed by a second INFO. What a client does wrong is a ClientError: the connection answers it
and closes where it must.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import (
    AuthorizationViolation,
    ClientError,
    HeadersRequired,
    InvalidClientProtocol,
    InvalidSubject,
    MalformedOperation,
    SubscribeNotPermitted,
    TooManySubscriptions,
)
from ..subjects import subject as subjects
from .core import Connection
from .encoder import OK, PONG
from .parser import Connect, Operation, Ping, Pong, Subscribe, Unsubscribe

_INTERNAL_QUEUE = "_sys_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """What CONNECT said; absent keys have the server's defaults."""

    verbose: bool = True
    pedantic: bool = True
    echo: bool = True
    headers: bool = False
    no_responders: bool = False
    protocol: int = 0
    user: str = ""
    password: str = ""
    auth_token: str = ""
    account: str = ""
    new_account: bool = False
    name: str = ""
    lang: str = ""
    version: str = ""

    def updated(self, raw: bytes) -> "ConnectOptions":
        """These options with what the JSON of a CONNECT changes.

        As in nats-server: keys ignore case, unknown ones and nulls are passed over, and a second
        CONNECT keeps what it doesn't name. Raises MalformedOperation for what is no JSON object
        or has a value of a wrong type.
        """
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise MalformedOperation from error
        if document is None:
            return self
        if not isinstance(document, Mapping):
            raise MalformedOperation
        values: dict[str, Any] = {}
        for key, value in document.items():
            field = _KEYS.get(key.lower())
            if field is None or value is None:
                continue
            if type(value) is not _TYPES[field]:
                raise MalformedOperation
            values[field] = value
        return replace(self, **values)


_TEXTS = ("user", "auth_token", "account", "name", "lang", "version")
_SWITCHES = ("verbose", "pedantic", "echo", "headers", "no_responders", "new_account")
_KEYS = {key: key for key in (*_TEXTS, *_SWITCHES, "protocol")} | {"pass": "password"}
_TYPES: dict[str, type] = dict.fromkeys((*_TEXTS, "password"), str) | dict.fromkeys(_SWITCHES, bool)
_TYPES["protocol"] = int


class Authenticator(Protocol):
    """Who may come in."""

    @property
    def is_required(self) -> bool:
        """Whether a client must present credentials."""

    def accepts(self, options: ConnectOptions) -> bool:
        """Whether these credentials are good."""


class Session:
    """The state of one client, driven by the operations its connection parses."""

    __slots__ = (
        "_async_info",
        "_authenticator",
        "_connection",
        "_info_due",
        "_max_subscriptions",
        "on_pong",
        "options",
    )

    def __init__(
        self,
        connection: Connection,
        authenticator: Authenticator,
        *,
        async_info: Callable[[], bytes],
        on_pong: Callable[[], None] = lambda: None,
        max_subscriptions: int = 0,
    ) -> None:
        """``async_info`` gives the second INFO; ``max_subscriptions`` 0 means no limit."""
        self._connection = connection
        self._authenticator = authenticator
        self._async_info = async_info
        self._info_due = False
        self._max_subscriptions = max_subscriptions
        self.on_pong = on_pong
        self.options = ConnectOptions()
        connection.is_authorized = not authenticator.is_required
        connection.on_operation = self.on_operation

    def on_operation(self, operation: Operation) -> None:
        """Do what a client asks for; its mistakes are answered, not raised."""
        try:
            self._apply(operation)
        except ClientError as error:
            self._connection.fail(error)

    def _apply(self, operation: Operation) -> None:
        match operation:
            case Ping():
                self._on_ping()
            case Pong():
                self.on_pong()
            case Subscribe():
                self._on_subscribe(operation)
            case Unsubscribe():
                self._on_unsubscribe(operation)
            case Connect():
                self._on_connect(self.options.updated(operation.options))
            case _:
                pass

    def _on_connect(self, options: ConnectOptions) -> None:
        if options.account or options.new_account:
            raise AuthorizationViolation
        if not self._authenticator.accepts(options):
            raise AuthorizationViolation
        if options.protocol not in (0, 1):
            raise InvalidClientProtocol
        if options.no_responders and not options.headers:
            raise HeadersRequired
        self.options = options
        self._connection.is_authorized = True
        self._info_due = options.protocol >= 1
        self._connection.configure(
            is_verbose=options.verbose,
            is_pedantic=options.pedantic,
            is_echo=options.echo,
            accepts_headers=options.headers,
            wants_no_responders=options.no_responders,
        )
        self._acknowledge()

    def _on_ping(self) -> None:
        self._connection.send(PONG)
        if self._info_due:
            self._info_due = False
            self._connection.send(self._async_info())

    def _on_subscribe(self, operation: Subscribe) -> None:
        connection = self._connection
        pattern = operation.subject.decode("utf-8", "surrogateescape")
        queue = operation.queue
        group = None if queue is None else queue.decode("utf-8", "surrogateescape")
        if group == _INTERNAL_QUEUE:
            raise SubscribeNotPermitted(pattern, group)
        limit = self._max_subscriptions
        if limit and len(connection.subscriptions) >= limit:
            raise TooManySubscriptions
        if not subjects.is_valid(pattern):
            raise InvalidSubject
        # A sid that is in use stays with its first subscription.
        if operation.sid not in connection.subscriptions:
            connection.router.add(connection, pattern, group, operation.sid)
        self._acknowledge()

    def _on_unsubscribe(self, operation: Unsubscribe) -> None:
        connection = self._connection
        subscription = connection.subscriptions.get(operation.sid)
        if subscription is not None:
            connection.router.limit(subscription, operation.max_delivered)
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._connection.is_verbose:
            self._connection.send(OK)
