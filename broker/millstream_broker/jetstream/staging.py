"""Messages that passed their checks and wait to be stored, alone or as members of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Staged:
    """A message that passed all checks and waits to be stored."""

    subject: str
    headers: bytes | None
    payload: bytes
    asked: Mapping[str, str]
    """What its headers ask of the server: those whose names begin with ``Nats-``."""
    msg_id: str = ""
    ttl_ns: int = 0
    rollup: str = ""


@dataclass(slots=True)
class Staging:
    """What an atomic batch has staged so far, for the checks of its later members."""

    count: int = 0
    size_bytes: int = 0
    """Counted where the stream's limits refuse."""
    subjects: Counter[str] = field(default_factory=Counter)
    msg_ids: set[str] = field(default_factory=set)

    def add(self, staged: Staged, size_bytes: int) -> None:
        """Count a member in."""
        self.count += 1
        self.size_bytes += size_bytes
        self.subjects[staged.subject] += 1
        if staged.msg_id:
            self.msg_ids.add(staged.msg_id)
