"""How a way back stands, and what one run of it did."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import BridgeError
from ..kafka.sink import Position
from ..moving.progress import State


@dataclass(slots=True)
class BackProgress:
    """Live figures of a run; of its states it knows starting, moving, reconnecting and ended.

    ``records`` and ``payload_bytes`` were committed by this run, ``from_kafka`` are messages that
    were there already, ``passed_over`` those that could not go back (by policy, see the log).
    ``lag`` counts the messages that were not read yet, ``newest_ns`` is when the newest that was
    read had been stored (0: none was). ``error`` is what ended it, if an error did.
    """

    state: State = State.STARTING
    records: int = 0
    payload_bytes: int = 0
    from_kafka: int = 0
    passed_over: int = 0
    transactions: int = 0
    sessions: int = 0
    lag: int = 0
    newest_ns: int = 0
    error: BridgeError | None = None
    positions: dict[int, Position] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackReport:
    """What one run did; ``positions`` is, per stream, the next sequence to be read."""

    topic: str
    stream: str
    ended: str
    records: int
    payload_bytes: int
    from_kafka: int
    passed_over: int
    transactions: int
    sessions: int
    seconds: float
    positions: Mapping[str, int]

    @property
    def records_per_second(self) -> float:
        """The mean over the whole run, waiting included."""
        return self.records / self.seconds if self.seconds else 0.0
