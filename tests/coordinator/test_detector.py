"""Verdicts: quick where a connection is gone, patient where it may come back."""

from millstream_coordinator.machine.detector import Detector, Verdict
from millstream_coordinator.model import Timing

TIMING = Timing()


def watching(*members: str, now: float = 0.0, is_eager: bool = False) -> Detector:
    detector = Detector(TIMING, is_eager=is_eager)
    detector.watch({member: f"{member}.1" for member in members}, now)
    detector.tick(now)
    return detector


def test_a_late_heartbeat_is_answered_with_a_probe() -> None:
    detector = watching("a")

    assert detector.tick(0.29) == ([], [])
    assert detector.tick(0.31) == (["a"], [])


def test_a_small_group_is_probed_before_a_heartbeat_is_late() -> None:
    detector = watching("a", is_eager=True)

    assert detector.tick(0.11) == (["a"], [])


def test_a_large_group_is_not() -> None:
    detector = watching(*(f"m{i}" for i in range(100)), is_eager=True)

    assert detector.tick(0.11) == ([], [])


def test_one_no_responders_is_not_a_verdict() -> None:
    detector = watching("a")
    detector.tick(0.31)

    assert detector.probe_unheard("a", 0.32) is None


def test_a_second_no_responders_after_the_grace_is() -> None:
    detector = watching("a")
    detector.tick(0.31)
    detector.probe_unheard("a", 0.32)

    assert detector.tick(0.41) == ([], [])
    assert detector.tick(0.43) == (["a"], [])
    assert detector.probe_unheard("a", 0.44) == Verdict("a", "a.1", "no responders")


def test_a_member_that_reconnects_within_the_grace_lives() -> None:
    detector = watching("a")
    detector.tick(0.31)
    detector.probe_unheard("a", 0.32)

    detector.heard("a", "a.1", 0.4)

    detector.tick(0.71)
    assert detector.probe_unheard("a", 0.72) is None


def test_a_heartbeat_of_another_instance_is_no_sign_of_life() -> None:
    detector = watching("a")

    detector.heard("a", "a.2", 0.45)
    detector.tick(0.45)

    assert detector.tick(0.9)[1] == []
    assert detector.tick(1.0)[1] == [Verdict("a", "a.1", "silent")]


def test_a_probe_that_is_not_answered_is_repeated() -> None:
    detector = watching("a")
    detector.tick(0.31)

    assert detector.tick(0.42) == (["a"], [])


def test_silence_is_a_verdict_after_the_timeout() -> None:
    detector = watching("a")
    for now in (0.31, 0.6, 0.99):
        assert detector.tick(now)[1] == []

    assert detector.tick(1.0)[1] == [Verdict("a", "a.1", "silent")]


def test_a_watcher_that_stood_still_blames_nobody() -> None:
    detector = watching("a")

    assert detector.tick(3.0) == ([], [])
    assert detector.tick(3.31) == (["a"], [])


def test_nobody_is_judged_while_the_watcher_is_cut_off() -> None:
    detector = watching("a")
    detector.disconnected()

    assert detector.tick(0.4) == ([], [])
    assert detector.probe_unheard("a", 0.4) is None
    assert detector.next_deadline is None


def test_nobody_is_judged_for_a_while_after_the_watcher_came_back() -> None:
    detector = watching("a")
    detector.disconnected()
    detector.reconnected(0.4)

    for now in (0.8, 1.2, 1.6):
        assert detector.tick(now)[1] == []
        assert detector.probe_unheard("a", now) is None
    assert detector.tick(1.91)[1] == [Verdict("a", "a.1", "silent")]


def test_a_restarted_member_is_watched_anew() -> None:
    detector = watching("a")

    detector.watch({"a": "a.2"}, 0.45)
    detector.tick(0.45)

    assert detector.tick(0.9)[1] == []
    assert detector.tick(1.2)[1] == []
    assert detector.tick(1.46)[1] == [Verdict("a", "a.2", "silent")]
