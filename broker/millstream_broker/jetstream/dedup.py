"""The duplicate window: which Nats-Msg-Id was stored lately, and under which sequence.

Entries leave in the order they came, when the window has passed. The last id of the stream is
kept by the stream itself, since it must outlive the window.
"""

from __future__ import annotations

from collections import OrderedDict


class DuplicateWindow:
    """Ids stored within ``window_ns``; 0 keeps none."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self._seqs: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """A plain dict passes over all it has forgotten on the way to its oldest entry."""

    def __len__(self) -> int:
        return len(self._seqs)

    def find(self, msg_id: str, now_ns: int) -> int | None:
        """Give the sequence the id was stored under, if it still counts."""
        found = self._seqs.get(msg_id)
        if found is None or now_ns - found[1] >= self.window_ns:
            return None
        return found[0]

    def add(self, msg_id: str, seq: int, ts_ns: int) -> None:
        """Remember an id just stored."""
        if self.window_ns > 0:
            self._seqs.pop(msg_id, None)
            self._seqs[msg_id] = (seq, ts_ns)

    def expire(self, now_ns: int) -> None:
        """Forget ids whose window has passed."""
        while self._seqs:
            msg_id = next(iter(self._seqs))
            if now_ns - self._seqs[msg_id][1] < self.window_ns:
                return
            del self._seqs[msg_id]

    def forget_above(self, seq: int) -> None:
        """Forget ids of messages that were never stored after all."""
        for msg_id in [key for key, (stored, _) in self._seqs.items() if stored > seq]:
            del self._seqs[msg_id]
