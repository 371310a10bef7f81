"""A weaker guard, for the tests that show why the chain is needed."""

from millstream_bridge.moving.window import Window


class PlainSequenceWindow(Window):
    """Every frame expects the sequence before its own; no frame knows the one before it."""

    def guard(self, frame: int) -> str:
        expected = self.last_seq + frame - 1
        return f"Nats-Msg-Id: {self.session}-{frame}\r\nNats-Expected-Last-Sequence: {expected}\r\n"

    def on_acks(self, count: int, seq: int) -> None:
        """Believe every acknowledgement: the sequences of such a session may well have gaps."""
        super().on_acks(count, self.last_seq + self._in_flight[count - 1].last_frame)
