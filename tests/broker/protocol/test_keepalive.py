from millstream_broker.protocol.keepalive import ROUND_TRIP_S, Action, KeepAlive


def keep_alive() -> KeepAlive:
    return KeepAlive(100.0, interval_s=10.0, ping_max=2, first_s=2.0)


def test_the_first_ping_comes_soon_even_when_the_client_talks() -> None:
    timer = keep_alive()
    timer.last_in_s = 102.0

    assert timer.advance(101.9) is Action.NONE
    assert timer.advance(102.0) is Action.PING
    assert timer.next_s == 112.0


def test_a_client_that_talks_is_not_pinged() -> None:
    timer = keep_alive()
    timer.advance(102.0)
    timer.on_pong(102.1)
    timer.last_in_s = 111.0

    assert timer.advance(112.0) is Action.NONE
    assert timer.next_s == 122.0


def test_a_silent_client_is_pinged_every_interval() -> None:
    timer = keep_alive()
    timer.advance(102.0)
    timer.on_pong(102.1)

    assert timer.advance(112.0) is Action.PING


def test_a_client_that_leaves_two_pings_unanswered_is_stale_at_the_third() -> None:
    timer = keep_alive()

    assert [timer.advance(t) for t in (102.0, 112.0, 122.0)] == [
        Action.PING,
        Action.PING,
        Action.STALE,
    ]


def test_an_answer_starts_the_count_again() -> None:
    timer = keep_alive()
    timer.advance(102.0)
    timer.advance(112.0)

    timer.on_pong(113.0)

    assert timer.advance(122.0) is Action.PING


def test_a_client_that_always_talks_is_pinged_hourly() -> None:
    timer = keep_alive()
    timer.advance(102.0)
    timer.on_pong(102.0)
    timer.last_in_s = 102.0 + ROUND_TRIP_S

    assert timer.advance(102.0 + ROUND_TRIP_S) is Action.PING
