"""The duplicate window: which Nats-Msg-Id was stored lately, and under which sequence.

Ids leave in the order they came, when the window has passed. What was stored at the same time
leaves together, so that an id costs no note of its time. The last id of the stream is kept by the
stream itself, since it must outlive the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Round:
    """Ids stored at the same time; ``last_seq`` is the highest of their sequences."""

    ts_ns: int
    last_seq: int
    msg_ids: list[str]


class DuplicateWindow:
    """Ids stored within ``window_ns``; 0 keeps none."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self._seqs: dict[str, int] = {}
        self._rounds: deque[_Round] = deque()

    def __len__(self) -> int:
        return len(self._seqs)

    def find(self, msg_id: str) -> int | None:
        """Give the sequence the id was stored under, if it was not forgotten since."""
        return self._seqs.get(msg_id)

    def add(self, seqs: Mapping[str, int], ts_ns: int) -> None:
        """Remember ids just stored, by their sequences, ascending."""
        if self.window_ns <= 0 or not seqs:
            return
        if not self._rounds or self._rounds[-1].ts_ns != ts_ns:
            self._rounds.append(_Round(ts_ns, 0, []))
        newest = self._rounds[-1]
        newest.msg_ids += seqs
        newest.last_seq = max(seqs.values())
        self._seqs |= seqs

    def expire(self, now_ns: int) -> None:
        """Forget ids whose window has passed."""
        seqs = self._seqs
        while self._rounds and now_ns - self._rounds[0].ts_ns >= self.window_ns:
            oldest = self._rounds.popleft()
            for msg_id in oldest.msg_ids:
                # One that was stored again since stays.
                if seqs.get(msg_id, oldest.last_seq + 1) <= oldest.last_seq:
                    del seqs[msg_id]

    def forget_above(self, seq: int) -> None:
        """Forget ids of messages that were never stored after all."""
        self._seqs = {msg_id: stored for msg_id, stored in self._seqs.items() if stored <= seq}
        for it in self._rounds:
            it.msg_ids = [msg_id for msg_id in it.msg_ids if msg_id in self._seqs]
            it.last_seq = min(it.last_seq, seq)
