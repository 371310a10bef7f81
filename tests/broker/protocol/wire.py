"""Clients and an account joined in memory: bytes in, bytes out, no socket, no clock."""

from collections.abc import Callable

from millstream_broker.auth.credentials import Credentials
from millstream_broker.message import Instant
from millstream_broker.protocol.core import Connection
from millstream_broker.protocol.parser import Limits
from millstream_broker.protocol.session import Session
from millstream_broker.routing.account import Account

NOW = Instant(0.0, 0)
QUIET = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
MODERN = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,'
    b'"protocol":1}\r\n'
)
SECOND_INFO = b"INFO second \r\n"


class Wire:
    """One server without its edge; `client` adds a connection."""

    def __init__(
        self,
        *,
        random: Callable[[int], int] = lambda below: 0,
        credentials: Credentials | None = None,
        max_subscriptions: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.account = Account(random)
        self.dirty: list[Connection] = []
        self._credentials = credentials or Credentials()
        self._max_subscriptions = max_subscriptions
        self._limits = limits or Limits()
        self._count = 0

    def client(self, *sent: bytes) -> "Client":
        self._count += 1
        core = Connection(self.account, self.dirty, client_id=self._count, limits=self._limits)
        Session(
            core,
            self._credentials,
            async_info=lambda: SECOND_INFO,
            max_subscriptions=self._max_subscriptions,
        )
        client = Client(core)
        for data in sent:
            client.send(data)
        return client


class Client:
    """The remote end of one connection."""

    def __init__(self, core: Connection) -> None:
        self.core = core

    def send(self, data: bytes) -> "Client":
        self.core.receive(data, NOW)
        return self

    def read(self) -> bytes:
        """What the server wrote since the last time."""
        return self.core.take()

    @property
    def is_ended(self) -> bool:
        return self.core.error is not None


def transcript(*sent: bytes, wire: Wire | None = None) -> tuple[bytes, bool]:
    """Everything a lone client gets for what it sends, and whether the server then closes."""
    client = (wire or Wire()).client(*sent)
    return client.read(), client.is_ended
