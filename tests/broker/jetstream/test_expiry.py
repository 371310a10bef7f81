import pytest

from .harness import Disk, World


def test_messages_leave_when_they_are_too_old(world: World) -> None:
    world.stream(max_age=10**9)
    world.publish("s.a")
    world.advance(0.6)
    world.publish("s.b")

    world.advance(0.5)

    assert world.state()["first_seq"] == 2
    world.advance(0.6)
    assert world.state()["messages"] == 0


def test_a_message_with_a_ttl_leaves_at_its_time(world: World) -> None:
    world.stream(allow_msg_ttl=True)
    world.publish("s.a", b"", {"Nats-TTL": "2s"})
    world.publish("s.b")

    world.advance(1.9)
    assert world.state()["messages"] == 2
    world.advance(0.2)

    assert world.state()["messages"] == 1


def test_never_is_exempt_from_the_stream_age(world: World) -> None:
    world.stream(allow_msg_ttl=True, max_age=10**9)
    world.publish("s.a", b"", {"Nats-TTL": "never"})
    world.publish("s.b")

    world.advance(5)

    state = world.state()
    assert (state["messages"], state["first_seq"]) == (1, 1)


@pytest.mark.parametrize("ttl", ["0", "-1", "0.5s", "text", "100ms", "+1", "1d"])
def test_a_wrong_ttl_is_refused(world: World, ttl: str) -> None:
    world.stream(allow_msg_ttl=True)

    assert world.publish("s.a", b"", {"Nats-TTL": ttl})["error"]["err_code"] == 10165


@pytest.mark.parametrize("ttl", ["1", "1s", "1.5s", "1m30s", "1h", "never", "NEVER"])
def test_a_right_ttl_is_taken(world: World, ttl: str) -> None:
    world.stream(allow_msg_ttl=True)

    assert world.publish("s.a", b"", {"Nats-TTL": ttl})["seq"] == 1


def test_a_ttl_is_refused_where_it_is_not_allowed(world: World) -> None:
    world.stream()

    assert world.publish("s.a", b"", {"Nats-TTL": "1"})["error"]["err_code"] == 10166


def test_the_last_message_of_a_subject_leaves_a_marker(world: World) -> None:
    world.stream(subject_delete_marker_ttl=10**9, max_msgs_per_subject=1)
    world.publish("s.a", b"1", {"Nats-TTL": "1"})

    world.advance(1.1)

    marker = world.request("$JS.API.STREAM.MSG.GET.S", b'{"last_by_subj":"s.a"}')
    assert marker is not None
    assert marker.json()["message"]["seq"] == 2
    assert "data" not in marker.json()["message"]
    world.advance(1.1)
    assert world.state()["messages"] == 0


def test_a_marker_says_why_and_how_long(world: World) -> None:
    world.stream(subject_delete_marker_ttl=10**9, allow_direct=True)
    world.publish("s.a", b"1", {"Nats-TTL": "1"})
    world.advance(1.1)

    marker = world.request("$JS.API.DIRECT.GET.S.s.a")

    assert marker is not None
    assert marker.header("Nats-Marker-Reason") == "MaxAge"
    assert marker.header("Nats-TTL") == "1s"
    assert marker.header("Nats-Rollup") == "sub"


def test_a_subject_with_messages_left_gets_no_marker(world: World) -> None:
    world.stream(subject_delete_marker_ttl=10**9)
    world.publish("s.a", b"1", {"Nats-TTL": "1"})
    world.publish("s.a", b"2")

    world.advance(5)

    assert world.state()["last_seq"] == 2


def test_deletes_and_purges_leave_no_marker(world: World) -> None:
    world.stream(subject_delete_marker_ttl=10**9)
    world.publish_run([("s.a", b""), ("s.b", b"")])

    world.api("STREAM.MSG.DELETE.S", {"seq": 1})
    world.api("STREAM.PURGE.S", {"filter": "s.b"})

    assert world.state()["last_seq"] == 2


def test_ttls_go_on_after_a_kill(disk: Disk) -> None:
    world = disk.boot()
    world.stream(allow_msg_ttl=True)
    world.publish("s.a", b"", {"Nats-TTL": "10s"})
    world.publish("s.b", b"", {"Nats-TTL": "2s"})

    world = disk.boot(wall_ns=world.wall_ns + 5 * 10**9)

    assert world.state()["messages"] == 1
    world.advance(5.1)
    assert world.state()["messages"] == 0


def test_a_consumer_is_told_when_what_it_owes_has_expired(world: World) -> None:
    world.stream(max_age=10**9)
    world.consumer()
    world.publish("s.a")
    world.fetch()

    world.advance(2)

    info = world.info()
    assert (info["num_ack_pending"], info["ack_floor"]["stream_seq"]) == (0, 1)
