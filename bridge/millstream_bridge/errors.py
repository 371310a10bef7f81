"""What can go wrong in the bridge, as one tree; each error knows the exit code of its command."""

from typing import ClassVar


class BridgeError(Exception):
    """The bridge cannot go on; the text is one line naming what and where."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(BridgeError):
    """The route, the topic or the stream is not what the bridge can work with."""

    exit_code: ClassVar[int] = 2


class Unreachable(BridgeError):
    """Kafka or NATS does not answer."""

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, where: str, reason: str) -> None:
        super().__init__(f"{what} at {where} is unreachable: {reason}")
        self.what, self.where, self.reason = what, where, reason


class RecordError(BridgeError):
    """One record cannot be moved; everything before it in its partition is stored.

    ``remedy``: what can be done, where that is not of the ``reason``.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, topic: str, kafka_partition: int, offset: int, reason: str, remedy: str = ""
    ) -> None:
        text = f"{reason}; {remedy}" if remedy else reason
        super().__init__(f"topic {topic} partition {kafka_partition} offset {offset}: {text}")
        self.topic, self.kafka_partition, self.offset = topic, kafka_partition, offset
        self.reason = reason


class PoisonRecord(RecordError):
    """The record itself is the reason: it will never fit. The route says what becomes of it."""


class RecordTooLarge(PoisonRecord):
    """The record is over what one message may hold; it may go in several."""


class OffsetGone(RecordError):
    """Kafka no longer has this offset; its log begins later (``low``, None if not known)."""

    def __init__(self, topic: str, kafka_partition: int, offset: int, low: int | None) -> None:
        begins = "?" if low is None else low
        super().__init__(
            topic,
            kafka_partition,
            offset,
            f"Kafka no longer has this offset (its log begins at {begins}); going on would leave"
            ' a gap (on_gap = "continue" in the project file does)',
        )
        self.low = low


class SessionLost(Exception):
    """The publishing session is over, what was in flight is void; read the stream and open another.

    ``is_refused``: the server refused a frame because somebody else wrote; ``is_not_now``: it takes
    nothing now. Seen only by who drives a publisher.
    """

    def __init__(self, reason: str, *, is_refused: bool = False, is_not_now: bool = False) -> None:
        super().__init__(reason)
        self.is_refused, self.is_not_now = is_refused, is_not_now


class ConnectionLost(SessionLost):
    """The connection to NATS went away; the next session needs a new one."""
