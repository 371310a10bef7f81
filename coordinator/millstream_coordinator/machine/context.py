"""What the machines of one member share: settings, the book, running scripts, commands to go out.

Also the two clocks that matter for fencing. ``now`` is set by the group machine before anything
else runs. ``confirmed_at`` is when the newest heartbeat that came back was *sent*: nobody else can
have counted this member dead before that plus the heartbeat timeout.
"""

from collections.abc import Generator

from ..events import GroupEvent
from ..model import MemberSettings, PartitionRecord
from ..naming import consumer, partition_key
from ..ports import Command, KeyRead, ReadKey, Reply, Tell
from .book import Book
from .steps import Pause, Steps

Part = Generator[Command | Pause, Reply, bool]
"""Part of a script; True if what it is for was settled, False if it is to be tried again."""


class Context:
    """Shared by the machines of one member; owned by its ``GroupMachine``."""

    def __init__(self, settings: MemberSettings) -> None:
        self.settings = settings
        self.book = Book()
        self.out: list[Command] = []
        self.steps = Steps(self.out)
        self.now = 0.0
        self.confirmed_at = float("-inf")
        self.is_connected = True
        self.changed: list[str] = []
        """Keys with news the machines have not been told yet."""

    def restart(self) -> None:
        """Forget what was known of a bucket that is gone."""
        self.book = Book()
        self.changed.clear()

    @property
    def is_fenced(self) -> bool:
        """Whether this member's ownership could not be confirmed within the timeout."""
        return self.now - self.confirmed_at > self.settings.timing.heartbeat_timeout_s

    @property
    def has_stream(self) -> bool:
        """Whether the group has a data plane."""
        return self.settings.config.stream is not None

    def note(self, key: str, value: bytes | None, revision: int) -> None:
        """Take news of a key into the book; the machines are told after the step that brought it.

        Not at once: the step may be in the middle of the script that the news abandons.
        """
        if self.book.note(key, value, revision):
            self.changed.append(key)

    def tell(self, event: GroupEvent) -> None:
        """Tell the world."""
        self.out.append(Tell(event=event))

    def consumer(self, partition: int, epoch: int) -> str:
        """Name of this group's consumer."""
        return consumer(self.settings.group, partition, epoch)

    def is_mine(self, record: PartitionRecord | None) -> bool:
        """Whether a partition's record names this very process as the owner."""
        return (
            record is not None
            and record.owner == self.settings.member
            and record.instance == self.settings.instance
        )

    def refresh(self, partition: int) -> Part:
        """Read a partition's record from the server into the book."""
        return (yield from self.refresh_key(partition_key(partition)))

    def refresh_key(self, key: str) -> Part:
        """Read a key from the server into the book."""
        reply = yield ReadKey(id=self.steps.take_id(), key=key)
        if not isinstance(reply, KeyRead):
            return False
        if reply.value is None and reply.revision == 0:
            self.book.reset(key)
        self.note(key, reply.value, reply.revision)
        return True
