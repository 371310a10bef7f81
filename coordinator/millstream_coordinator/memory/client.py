"""A member's connection as the server sees it, and who sees what the server does."""

from collections.abc import Callable, Sequence

from ..model import MemberSettings
from ..partitioning.key import KeyRule
from ..ports import Alive, Happening, Reply, StoreLetter
from .letters import MemoryLetter

Send = Callable[[Happening | Reply], None]


class MemoryClient:
    """One member's connection: ``send`` takes what the server has for it."""

    def __init__(self, settings: MemberSettings, rule: KeyRule | None, send: Send) -> None:
        self.settings = settings
        self.rule = rule
        self.send = send
        self.bucket: object | None = None
        """The bucket that was there when it prepared; another by the same name is another."""
        self.watched: object | None = None
        """The bucket it watches."""
        self.num_watches = 0
        """So many times it began to watch; what an earlier watch had under way it must drop."""
        self.silent_at = float("inf")
        """When it notices that what it watches is gone."""
        self.hears: str | None = None
        """Whose heartbeats: a member, ``*`` for everybody's, None for nobody's but its own."""

    def probed(self, asker: "MemoryClient", id_: int) -> None:
        """Answer a probe at once; a simulated member that is paused overrides this."""
        asker.send(Alive(id=id_, instance=self.settings.instance))

    def cut(self, duration_s: float) -> None:
        """Lose the connection for a while; who simulates connections overrides this."""


class Observer:
    """Sees what the server does; the simulation's checkers override it."""

    def wrote(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        """A write took place."""

    def read(self, client: MemoryClient, key: str, value: bytes | None) -> None:
        """A key was read."""

    def acked(self, partition: int, seq: int) -> None:
        """A message that was pending is acked."""

    def made(self, client: MemoryClient, name: str) -> None:
        """A consumer was made."""

    def pulls(self, client: MemoryClient, name: str) -> None:
        """A pull was opened on a consumer that is there."""

    def stored(
        self,
        client: MemoryClient,
        command: StoreLetter,
        reply: Reply,
        letters: Sequence[MemoryLetter],
    ) -> None:
        """A letter was to be stored; all that are there now."""

    def announced(self, client: MemoryClient, value: bytes) -> None:
        """A member told the world."""
