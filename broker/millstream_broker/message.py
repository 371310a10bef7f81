"""What was published, and when: the values that cross every seam inside the broker.

Past the wire a subject is ``str`` (UTF-8 with surrogateescape, decoded once per distinct subject by
the route cache); headers and payload stay the bytes that came.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Instant(NamedTuple):
    """One reading of both clocks, taken at the edge: timers use the first, stores the second."""

    mono_s: float
    wall_ns: int


class Message(NamedTuple):
    """What was published. ``headers`` is the whole block from ``NATS/1.0`` to the empty line."""

    subject: str
    reply: str | None
    headers: bytes | None
    payload: bytes


Sink = Callable[[Sequence[Message], Instant], None]
"""Takes a run of messages for one internal subscription, in order, from one socket read."""
