"""Key lanes: order per key, keys beside each other, retries that hold up only their key."""

from hypothesis import given, strategies as st

from millstream_coordinator.machine.lanes import Lanes
from millstream_coordinator.model import NO_HEADERS, Message


def message(seq: int, key: bytes | None) -> Message:
    return Message(
        subject=f"s.0.{seq}",
        data=b"",
        headers=NO_HEADERS,
        key=key,
        partition=0,
        seq=seq,
        epoch=1,
    )


def start_all(lanes: Lanes) -> list[int]:
    started = []
    while (one := lanes.start()) is not None:
        started.append(one.seq)
    return started


def test_one_message_of_a_key_runs_at_a_time() -> None:
    lanes = Lanes()
    for seq in (1, 2, 3):
        lanes.add(message(seq, b"a"))

    assert start_all(lanes) == [1]


def test_messages_of_different_keys_run_beside_each_other() -> None:
    lanes = Lanes()
    lanes.add(message(1, b"a"))
    lanes.add(message(2, b"b"))

    assert start_all(lanes) == [1, 2]


def test_messages_without_a_key_wait_for_nobody() -> None:
    lanes = Lanes()
    for seq in (1, 2, 3):
        lanes.add(message(seq, None))

    assert start_all(lanes) == [1, 2, 3]


def test_a_retry_keeps_its_place_and_its_lane_waits() -> None:
    lanes = Lanes()
    first = message(1, b"a")
    lanes.add(first)
    lanes.add(message(2, b"a"))
    lanes.add(message(3, b"b"))
    lanes.start()

    lanes.retry(first, at=5.0)

    assert start_all(lanes) == [3]
    lanes.wake(4.9)
    assert start_all(lanes) == []
    lanes.wake(5.0)
    assert start_all(lanes) == [1]


def test_dropping_what_waits_keeps_what_runs() -> None:
    lanes = Lanes()
    first = message(1, b"a")
    lanes.add(first)
    lanes.add(message(2, b"a"))
    lanes.start()

    lanes.drop_waiting()

    assert len(lanes) == 1
    lanes.finish(first)
    assert len(lanes) == 0


def test_a_message_that_comes_back_after_a_drop_follows_the_running_one() -> None:
    lanes = Lanes()
    first = message(1, b"a")
    lanes.add(first)
    lanes.start()
    lanes.drop_waiting()

    lanes.add(message(2, b"a"))

    assert start_all(lanes) == []
    lanes.finish(first)
    assert start_all(lanes) == [2]


@given(st.lists(st.sampled_from([b"a", b"b", b"c", None]), max_size=40), st.randoms())
def test_each_key_is_handled_in_order_however_calls_end(keys: list[bytes | None], chance) -> None:  # type: ignore[no-untyped-def]
    lanes = Lanes()
    for seq, key in enumerate(keys, 1):
        lanes.add(message(seq, key))
    running: list[Message] = []
    handled: list[tuple[bytes | None, int]] = []
    while len(lanes):
        one = lanes.start() if chance.random() < 0.6 else None
        if one is not None:
            running.append(one)
        elif running:
            ended = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.2:
                lanes.retry(ended, at=0.0)
                lanes.wake(0.0)
            else:
                lanes.finish(ended)
                handled.append((ended.key, ended.seq))

    for key in (b"a", b"b", b"c"):
        seqs = [seq for one, seq in handled if one == key]
        assert seqs == sorted(seqs)
    assert len(handled) == len(keys)
