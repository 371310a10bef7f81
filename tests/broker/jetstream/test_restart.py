"""What a killed server still knows: the disk as it was, without a goodbye."""

import pytest

from .harness import Disk, World

SECOND = 10**9


@pytest.fixture
def killed(disk: Disk) -> Disk:
    """A stream with five messages and a consumer, two of three deliveries acked, then a kill."""
    world = disk.boot()
    world.stream(max_msgs_per_subject=10, metadata={"team": "a"})
    world.consumer(ack_wait=10 * SECOND)
    world.publish_run([("s.a", b"%d" % n) for n in range(1, 6)])
    first, second, _ = world.fetch(3)
    assert world.double_ack(second)
    assert world.double_ack(first)
    return disk


def test_messages_and_configuration_are_back(killed: Disk) -> None:
    world = killed.boot()

    info = world.api("STREAM.INFO.S")
    assert (info["state"]["messages"], info["state"]["last_seq"]) == (5, 5)
    assert info["config"]["metadata"]["team"] == "a"
    assert world.publish("s.a")["seq"] == 6


def test_acks_that_were_answered_are_kept(killed: Disk) -> None:
    info = killed.boot().info()

    assert info["ack_floor"] == {"consumer_seq": 2, "stream_seq": 2}
    assert (info["num_ack_pending"], info["num_pending"]) == (1, 2)


def test_delivery_goes_on_behind_what_was_delivered(killed: Disk) -> None:
    world = killed.boot()

    assert [d.ack_tokens[:3] for d in world.fetch(5)] == [[1, 4, 4], [1, 5, 5]]


def test_what_was_owed_comes_again_when_its_wait_is_over(killed: Disk) -> None:
    world = killed.boot()
    world.fetch(5)

    world.advance(10.1)

    again = world.fetch(1)[0]
    assert again.ack_tokens[:2] == [2, 3]


def test_acks_of_the_old_server_are_taken_by_the_new_one(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.consumer()
    world.publish("s.a")
    delivery = world.fetch(1)[0]

    world = disk.boot()

    assert world.double_ack(delivery)
    assert world.info()["num_ack_pending"] == 0


def test_an_acked_message_does_not_come_back_to_a_work_queue(disk: Disk) -> None:
    world = disk.boot()
    world.stream(retention="workqueue")
    world.consumer()
    world.publish_run([("s.a", b"1"), ("s.a", b"2")])
    assert world.double_ack(world.fetch(1)[0])

    world = disk.boot()

    assert world.state()["messages"] == 1
    assert [d.payload for d in world.fetch(5)] == [b"2"]


def test_a_deleted_consumer_and_stream_stay_deleted(killed: Disk) -> None:
    world = killed.boot()
    world.api("CONSUMER.DELETE.S.C")

    world = killed.boot()
    assert world.api("CONSUMER.NAMES.S")["consumers"] == []
    world.api("STREAM.DELETE.S")

    assert killed.boot().api("STREAM.NAMES")["streams"] is None


def test_an_updated_consumer_stays_updated(killed: Disk) -> None:
    world = killed.boot()
    world.consumer(ack_wait=10 * SECOND, description="new")

    assert killed.boot().info()["config"]["description"] == "new"


def test_memory_streams_and_consumers_are_gone(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.stream("M", storage="memory")
    world.consumer("m", mem_storage=True)

    world = disk.boot()

    assert world.api("STREAM.NAMES")["streams"] == ["S"]
    assert world.api("CONSUMER.NAMES.S")["consumers"] == []


def test_many_acks_are_compacted_and_still_there(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_broker.jetstream.consumer.EVENTS_PER_DOCUMENT", 7)
    world = disk.boot()
    world.stream()
    world.consumer()
    for _ in range(20):
        world.publish("s.a")
        assert world.double_ack(world.fetch(1)[0])

    info = disk.boot().info()

    assert info["ack_floor"] == {"consumer_seq": 20, "stream_seq": 20}


def test_a_snapshot_half_delivered_goes_on(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.publish_run([("s.a", b""), ("s.b", b""), ("s.a", b"")])
    world.consumer(deliver_policy="last_per_subject", filter_subject="s.*")
    assert [d.seq for d in world.fetch(1)] == [2]

    world = disk.boot()

    assert world.info()["num_pending"] == 1
    assert [d.seq for d in world.fetch(5)] == [3]


def test_deliveries_are_counted_over_a_kill(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.consumer(ack_wait=SECOND, max_deliver=2)
    world.publish("s.a")
    world.fetch(1)

    world = disk.boot(wall_ns=world.wall_ns + 2 * SECOND)
    assert world.fetch(1)[0].ack_tokens[0] == 2
    world = disk.boot(wall_ns=world.wall_ns + 2 * SECOND)

    assert world.fetch(1) == []


def test_a_stopped_server_starts_again(disk: Disk) -> None:
    world = disk.boot()
    world.stream()
    world.consumer()
    world.publish("s.a")
    world.stop()

    assert disk.boot().fetch(1)[0].seq == 1


def test_limits_that_were_crossed_are_enforced_at_the_start(disk: Disk) -> None:
    world = disk.boot()
    world.stream(max_age=SECOND)
    world.publish("s.a")

    world = disk.boot(wall_ns=world.wall_ns + 2 * SECOND)

    assert world.state()["messages"] == 0


def test_a_stream_that_cannot_be_read_is_reported_and_the_others_run(killed: Disk) -> None:
    world: World = killed.boot()
    world.stream("T")
    config = next(killed.newest.rglob("streams/S/config*"))
    config.write_bytes(b"{")

    world = killed.boot()

    assert world.api("STREAM.NAMES")["streams"] == ["T"]
    assert [facts["stream"] for event, facts in world.reports if event == "stream_offline"] == ["S"]
