"""The frames of one atomic batch: what the server is told, in which of them."""

from millstream_bridge.errors import RecordError
from millstream_bridge.moving.chain import _Batch
from millstream_bridge.moving.window import Window


def a_batch(poison: int = -1) -> _Batch:
    window = Window("session", last_seq=40)
    window.sent_count = window.stored_count = 2

    def frame(n: int, guard: str, reply: str) -> bytes:
        if n == poison:
            raise RecordError("t", 0, n, "too large")
        return f"<{n} {guard.strip()} to {reply or 'nobody'}>".replace("\r\n", ", ").encode()

    return _Batch(window, frame)


def test_the_first_frame_expects_the_sequence_and_the_last_commits_and_asks() -> None:
    batch = a_batch()

    assert batch.fill(3) is None

    assert batch.encode("inbox").decode() == (
        "<0 Nats-Batch-Id: session-3, Nats-Batch-Sequence: 1, Nats-Expected-Last-Sequence: 42"
        " to nobody>"
        "<1 Nats-Batch-Id: session-3, Nats-Batch-Sequence: 2 to nobody>"
        "<2 Nats-Batch-Id: session-3, Nats-Batch-Sequence: 3, Nats-Batch-Commit: 1 to inbox>"
    )


def test_a_batch_of_one_expects_and_commits() -> None:
    batch = a_batch()

    batch.fill(1)

    assert batch.encode("inbox").decode() == (
        "<0 Nats-Batch-Id: session-3, Nats-Batch-Sequence: 1, Nats-Expected-Last-Sequence: 42,"
        " Nats-Batch-Commit: 1 to inbox>"
    )


def test_a_record_that_is_no_message_ends_the_batch_before_it() -> None:
    batch = a_batch(poison=2)

    error = batch.fill(4)

    assert error is not None
    assert error.offset == 2
    assert batch.count == 2
    assert b"Nats-Batch-Sequence: 2, Nats-Batch-Commit: 1 to inbox" in batch.encode("inbox")
