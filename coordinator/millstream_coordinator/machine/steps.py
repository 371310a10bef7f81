"""Sequences of commands written as they are read: one generator, one reply per step.

What changes hands in a group takes several commands, each needing the answer of the one before. A
**script** is such a sequence as a generator: it yields a command, gets the reply, goes on. It does
no I/O and knows no clock, so it is as pure as the machine that owns it, and a simulation can stop
it between any two steps. ``yield Pause(delay_s)`` waits; ``yield Pause(delay_s, key)`` waits no
longer than the script under that key runs: steps that do not need each other go on together.

Scripts have keys, and there is at most one per key: starting another under the same key abandons
the first (an answer that still comes for it is dropped), which is how a newer decision replaces an
older one.
"""

import heapq
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass

from ..ports import Command, Failed, Failure, Reply

Key = Hashable


@dataclass(frozen=True, slots=True)
class Pause:
    """Go on after ``delay_s``; the script gets ``Failed`` with the reason timeout as the reply."""

    delay_s: float
    script: Key | None = None
    """… or sooner, when the script under this key has come to its end."""


Script = Generator[Command | Pause, Reply, None]


class Steps:
    """Runs scripts. Commands go to ``out``, which the owner empties."""

    def __init__(self, out: list[Command]) -> None:
        self._out = out
        self._last_id = 0
        self._scripts: dict[Key, Script] = {}
        self._awaited: dict[int, Key] = {}
        self._pauses: list[tuple[float, int, Key]] = []
        self._waiting: dict[Key, list[int]] = {}
        """Key of a script → pauses that its end ends."""
        self._executing: list[Script] = []
        """Scripts between two commands right now: one may start or abandon another, or itself."""

    def __contains__(self, key: Key) -> bool:
        """Whether a script runs under ``key``."""
        return key in self._scripts

    @property
    def next_deadline(self) -> float | None:
        """When the first pause ends."""
        return self._pauses[0][0] if self._pauses else None

    def take_id(self) -> int:
        """Return an id for the next command."""
        self._last_id += 1
        return self._last_id

    def start(self, key: Key, script: Script, now: float) -> None:
        """Run ``script`` up to its first command, in place of what runs under ``key``."""
        self.cancel(key)
        self._scripts[key] = script
        self._advance(key, script, None, now)

    def cancel(self, key: Key) -> None:
        """Abandon the script under ``key``, if there is one."""
        script = self._scripts.pop(key, None)
        if script is not None:
            if script not in self._executing:
                script.close()
            self._awaited = {id_: one for id_, one in self._awaited.items() if one != key}

    def cancel_if(self, is_meant: Callable[[Key], bool]) -> None:
        """Abandon the scripts whose keys are meant."""
        for key in list(self._scripts):
            if is_meant(key):
                self.cancel(key)

    def receive(self, reply: Reply, now: float) -> bool:
        """Give a reply to the script that waits for it; False if none does."""
        key = self._awaited.pop(reply.id, None)
        if key is None:
            return False
        self._advance(key, self._scripts[key], reply, now)
        return True

    def tick(self, now: float) -> None:
        """End the pauses whose time has come."""
        while self._pauses and self._pauses[0][0] <= now:
            _, id_, key = heapq.heappop(self._pauses)
            if self._awaited.get(id_) == key:
                self.receive(Failed(id=id_, reason=Failure.TIMEOUT, detail="pause"), now)

    def _advance(self, key: Key, script: Script, reply: Reply | None, now: float) -> None:
        self._executing.append(script)
        try:
            command = next(script) if reply is None else script.send(reply)
        except StopIteration:
            if self._scripts.get(key) is script:
                del self._scripts[key]
                for id_ in self._waiting.pop(key, ()):
                    self.receive(Failed(id=id_, reason=Failure.TIMEOUT, detail="pause"), now)
            return
        finally:
            self._executing.pop()
        if self._scripts.get(key) is not script:
            script.close()
            return
        if isinstance(command, Pause):
            id_ = self.take_id()
            self._awaited[id_] = key
            heapq.heappush(self._pauses, (now + command.delay_s, id_, key))
            if command.script is not None:
                self._waiting.setdefault(command.script, []).append(id_)
            return
        self._awaited[command.id] = key  # type: ignore[union-attr]
        self._out.append(command)
