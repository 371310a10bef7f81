"""What the parts behind the router (JetStream, monitoring) see of it.

Past the wire a subject is ``str`` (UTF-8 with surrogateescape, decoded once per distinct subject by
the route cache); headers and payload stay the bytes that came.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from ..message import Instant, Message, Sink

__all__ = ["Bus", "Instant", "Message", "Sink"]


class Bus(Protocol):
    """An account's subject space, for subscribers that live inside the server."""

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        reply: str | None = None,
        headers: bytes | None = None,
        deliver_as: str | None = None,
    ) -> int:
        """Route by ``subject`` (what MSG shows is ``deliver_as`` or it); returns how many got it.

        ``deliver_as`` is how a consumer's message arrives on an inbox under its stored subject.
        """

    def publish_all(self, subject: str, payloads: Sequence[bytes]) -> None:
        """Route a run of messages to one subject, in order."""

    def deliver_all(self, to: str, messages: Sequence[Message]) -> None:
        """Route a run of messages by ``to``, in order; what MSG shows is each one's own subject."""

    def takes_runs(self, subject: str) -> bool:
        """Whether all of a run on a subject gets to one client, however long it is."""

    def has_interest(self, subject: str, queue: str | None = None) -> bool:
        """Whether anybody (with ``queue``: a member of that queue group) would get the subject."""

    def subscribe(self, pattern: str, sink: Sink) -> Callable[[], None]:
        """Add an internal subscription; the answer removes it."""
