"""Who is dead: heartbeats, probes, and patience after a reconnect.

A watched member is **late** when its heartbeat is ``heartbeat_slack_s`` overdue. Then it is probed,
in a small group even before (every ``probe_interval_s``: a probe is one small request):

* somebody answers: its process and its connection are well, the heartbeat was only late;
* **no responders**: its connection is gone. It gets ``reconnect_grace_s`` to come back, is probed
  once more, and a second no-responders is the verdict. So a crash is known in well under half a
  second without any timeout having run out;
* nothing: it is probed again and again, for a probe may have reached a process in its last moment.
  If it stays silent, it hangs or is cut off; the verdict comes after ``heartbeat_timeout_s``. A
  member trusts itself no longer than that either, counted from when it *sent* the heartbeat that
  was heard, so it has stopped before anybody takes over.

Two things must not look like death. After the watcher's own reconnect everybody may still be on
their way back, so nobody is judged for ``restart_grace_s``. And a watcher that was stopped itself
(SIGSTOP, a busy loop) has heard nobody: a tick that comes much too late starts everyone's time
anew.

And one thing must not look like life: a member that can send and hears nothing (half a connection
is dead) beats on, though it has fenced itself. So each heartbeat says how long its sender has been
**deaf**, and one whose sender did not hear its own last beat is not counted. Nor does who is deaf
judge the silence of others; when it hears again, everyone's time starts anew.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from ..model import Timing

DEAF_INTERVALS = 1.5
"""A sender whose own heartbeats have not come back for so many intervals is deaf."""
DEAF_JUDGE_INTERVALS = 2.2
"""So many, and it judges nobody: one heartbeat may get lost."""


class _Suspicion(Enum):
    NONE = auto()
    GONE = auto()
    """No responders once; probed again after the grace."""
    PROBED_AGAIN = auto()
    """A second no-responders is the verdict."""


@dataclass(slots=True)
class _Watched:
    instance: str
    heard_at: float
    suspicion: _Suspicion = _Suspicion.NONE
    next_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A member is dead; ``reason`` is ``no responders`` or ``silent``."""

    member: str
    instance: str
    reason: str
    heard_at: float = field(default=0.0, compare=False)
    """When it was last heard, on the watcher's clock."""


class Detector:
    """Watches members for one watcher (the leader: all others; the rest: the leader)."""

    def __init__(self, timing: Timing, *, is_eager: bool = True) -> None:
        """``is_eager`` False: probe nobody before a heartbeat is late."""
        self._timing = timing
        self.is_eager = is_eager
        self._watched: dict[str, _Watched] = {}
        self._num_watched = 0
        self._is_connected = True
        self._quiet_until = 0.0
        self._ticked_at: float | None = None

    @property
    def members(self) -> set[str]:
        """Who is watched."""
        return set(self._watched)

    def watch(self, instances: dict[str, str], now: float) -> None:
        """Watch exactly these members (id → instance); new ones have been heard just now."""
        self._num_watched = len(instances)
        for member in self._watched.keys() - instances.keys():
            del self._watched[member]
        for member, instance in instances.items():
            known = self._watched.get(member)
            if known is None or known.instance != instance:
                self._watched[member] = _Watched(instance, now, next_at=self._next_probe_at(now))

    def suspect_all(self, now: float) -> None:
        """Probe everybody at the next tick: a new leader does not know who is there."""
        for one in self._watched.values():
            one.next_at = now

    def heard(self, member: str, instance: str, now: float, deaf_s: float = 0.0) -> None:
        """Note a heartbeat; one of a deaf member does not count."""
        one = self._watched.get(member)
        if one is None or one.instance != instance:
            return
        if self.is_deaf(deaf_s):
            return
        one.heard_at = now
        if not self.is_eager or one.suspicion is _Suspicion.GONE:
            one.next_at = self._next_probe_at(now)
        one.suspicion = _Suspicion.NONE

    def heard_at(self, member: str, now: float) -> float:
        """When a member was last heard; ``now`` for one that is not watched."""
        one = self._watched.get(member)
        return now if one is None else one.heard_at

    def is_deaf(self, deaf_s: float) -> bool:
        """Whether who has not heard itself for so long hears nobody."""
        return deaf_s > DEAF_INTERVALS * self._timing.heartbeat_interval_s

    def disconnected(self) -> None:
        """Stop judging: the watcher itself is cut off."""
        self._is_connected = False

    def reconnected(self, now: float) -> None:
        """Give everybody a grace: they may be on their way back too."""
        self._is_connected = True
        self._quiet_until = now + self._timing.restart_grace_s
        self._restart(now)

    def probe_answered(self, member: str, instance: str, now: float) -> None:
        """Note a probe's answer; one of another instance says nothing about this one."""
        one = self._watched.get(member)
        if one is None:
            return
        if one.instance == instance:
            one.heard_at = now
        one.suspicion = _Suspicion.NONE
        one.next_at = self._next_probe_at(now)

    def probe_unheard(self, member: str, now: float) -> Verdict | None:
        """Note a no-responders; the second one in a row is a verdict."""
        one = self._watched.get(member)
        if one is None or not self._is_connected:
            return None
        if now < self._quiet_until:
            one.next_at = self._quiet_until
            return None
        if one.suspicion is _Suspicion.PROBED_AGAIN:
            return Verdict(member, one.instance, "no responders", one.heard_at)
        if one.suspicion is _Suspicion.NONE:
            one.suspicion = _Suspicion.GONE
            one.next_at = now + self._timing.reconnect_grace_s
        return None

    def may_judge(self, deaf_s: float) -> bool:
        """Whether who has not heard itself for so long may say of others that they are silent."""
        return deaf_s <= DEAF_JUDGE_INTERVALS * self._timing.heartbeat_interval_s

    def tick(self, now: float, deaf_s: float = 0.0) -> tuple[list[str], list[Verdict]]:
        """Return whom to probe now and who has been silent for too long."""
        timing = self._timing
        last, self._ticked_at = self._ticked_at, now
        is_late = last is not None and now - last > timing.heartbeat_timeout_s / 2
        if is_late or not self.may_judge(deaf_s):
            self._restart(now)
        if not self._is_connected:
            return [], []
        probes = []
        verdicts = []
        for member, one in self._watched.items():
            silent_at = max(one.heard_at + timing.heartbeat_timeout_s, self._quiet_until)
            if now >= silent_at:
                verdicts.append(Verdict(member, one.instance, "silent", one.heard_at))
            elif now >= one.next_at:
                if one.suspicion is _Suspicion.GONE:
                    one.suspicion = _Suspicion.PROBED_AGAIN
                one.next_at = now + self._repeat_s()
                probes.append(member)
        return probes, verdicts

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None while nobody is watched or nobody may be judged."""
        if not self._watched or not self._is_connected:
            return None
        timeout = self._timing.heartbeat_timeout_s
        return min(
            min(max(one.heard_at + timeout, self._quiet_until), one.next_at)
            for one in self._watched.values()
        )

    def _repeat_s(self) -> float:
        """How long a probe may be without an answer before the next one goes out."""
        return max(self._timing.probe_interval_s, self._num_watched / self._timing.max_probes_per_s)

    def _next_probe_at(self, now: float) -> float:
        timing = self._timing
        late_s = timing.heartbeat_interval_s + timing.heartbeat_slack_s
        if not self.is_eager:
            return now + late_s
        return now + min(late_s, self._repeat_s())

    def _restart(self, now: float) -> None:
        for one in self._watched.values():
            one.heard_at = now
            one.suspicion = _Suspicion.NONE
            one.next_at = max(self._next_probe_at(now), self._quiet_until)
