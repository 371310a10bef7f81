"""When to ping a client, and when to give it up.

The first PING comes about two seconds after the connection, the next ones every interval unless
the client sent something in it. A client that leaves more than ``ping_max`` of them unanswered is
stale. Times are monotonic seconds and given from outside.
"""

from enum import StrEnum

FIRST_PING_S = 2.0
ROUND_TRIP_S = 3600.0
"""A client that never falls silent is still pinged this often."""


class Action(StrEnum):
    """What `KeepAlive.advance` asks for."""

    NONE = "none"
    PING = "ping"
    STALE = "stale"


class KeepAlive:
    """The ping timer of one connection."""

    __slots__ = (
        "_answered_s",
        "_interval_s",
        "_is_first",
        "_ping_max",
        "last_in_s",
        "next_s",
        "unanswered",
    )

    def __init__(self, now: float, *, interval_s: float, ping_max: int, first_s: float) -> None:
        self._interval_s = interval_s
        self._ping_max = ping_max
        self._is_first = True
        self._answered_s = now
        self.last_in_s = now
        self.unanswered = 0
        self.next_s = now + min(first_s, interval_s)

    def on_pong(self, now: float) -> None:
        """The client answered."""
        self.unanswered = 0
        self._answered_s = now

    def advance(self, now: float) -> Action:
        """What is due at ``now``; ``next_s`` says when to ask again."""
        if now < self.next_s:
            return Action.NONE
        self.next_s = now + self._interval_s
        is_silent = now - self.last_in_s >= self._interval_s
        if not (self._is_first or is_silent or now - self._answered_s >= ROUND_TRIP_S):
            return Action.NONE
        self._is_first = False
        if self.unanswered >= self._ping_max:
            return Action.STALE
        self.unanswered += 1
        return Action.PING
