"""How a run stands: the figures that people, metrics and other processes are told."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum

route_at_work: ContextVar[str] = ContextVar("route_at_work", default="")
"""The name of the route that the running task belongs to: what is logged is about it."""


class State(StrEnum):
    """What a run is doing."""

    STARTING = "starting"
    """Nothing was moved yet: both sides are being asked."""
    MOVING = "moving"
    """In a session; also when there is nothing to move."""
    STANDING_BY = "standing-by"
    """Other processes of the group have all of the route."""
    STANDING_BACK = "standing-back"
    """Another bridge, not of a group, writes the stream."""
    RECONNECTING = "reconnecting"
    """NATS or Kafka went away."""
    ENDED = "ended"


@dataclass(slots=True)
class Progress:
    """Live figures of a run; read it at any time, from the loop's thread.

    ``records`` and ``payload_bytes`` are what this run knows to have stored, ``parked`` and
    ``skipped`` the records whose marks it knows to be stored: what the server stored before a
    connection was lost is in ``positions`` only, from the next session on.
    Of the partitions that this process moves: ``ends`` are the highest ends known, ``read`` how far
    they were read, ``due`` one past the newest records read (behind them there may be offsets that
    no record has), ``newest_ms`` those records' timestamps, ``epochs`` under which membership gave
    them. ``missed`` counts offsets that Kafka no longer had.
    """

    state: State = State.STARTING
    records: int = 0
    payload_bytes: int = 0
    sessions: int = 0
    refusals: int = 0
    stood_back: int = 0
    lag: int = 0
    positions: dict[int, int] = field(default_factory=dict)
    foreign_seqs: list[int] = field(default_factory=list)
    parked: int = 0
    skipped: int = 0
    missed: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)
    due: dict[int, int] = field(default_factory=dict)
    newest_ms: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)

    def reached(self, partition: int) -> int | None:
        """Below this offset nothing is left to be stored; None: it is not known.

        That is behind offsets that no record has, as a transaction's end takes one.
        """
        position, read = self.positions.get(partition), self.read.get(partition)
        if position is None or read is None:
            return read if position is None else position
        return max(position, read) if position >= self.due.get(partition, read) else position
