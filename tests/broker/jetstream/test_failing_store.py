"""A disk that fails: an error ack, nothing half stored, and life goes on."""

from pathlib import Path

import pytest

from millstream_broker.protocol import headers as header_blocks
from millstream_broker.store.directory import FileStorage
from tests.broker.store.faults import FaultyFiles

from .harness import World


class Failing:
    def __init__(self, folder: Path) -> None:
        self.storage_dir = folder
        self.files = FaultyFiles()
        self.storage = FileStorage(folder, files=self.files)
        self.world = World(self.storage)
        self.world.stream(allow_atomic=True)


@pytest.fixture
def failing(tmp_path: Path) -> Failing:
    return Failing(tmp_path)


def test_a_failed_write_is_an_error_for_every_message_of_the_read(failing: Failing) -> None:
    world = failing.world
    world.publish("s.a", b"before")

    failing.files.fail_at(1, part=0.5)
    acks = world.publish_run([("s.a", b"1"), ("s.b", b"2")])

    assert [ack.json()["error"]["err_code"] for ack in acks.got] == [10077, 10077]
    state = world.state()
    assert (state["messages"], state["last_seq"]) == (1, 1)
    assert ("store_failed", "S") in [(e, f["stream"]) for e, f in world.reports]


def test_after_a_failed_write_the_next_one_is_stored(failing: Failing) -> None:
    world = failing.world
    failing.files.fail_at(1)
    world.publish("s.a", b"1")

    assert world.publish("s.a", b"2")["seq"] == 1


def test_an_id_of_a_failed_write_is_not_a_duplicate(failing: Failing) -> None:
    world = failing.world
    failing.files.fail_at(1)
    world.publish("s.a", b"1", {"Nats-Msg-Id": "x"})

    assert world.publish("s.a", b"1", {"Nats-Msg-Id": "x"}) == {"stream": "S", "seq": 1}


def test_what_comes_before_a_rollup_that_fails_is_not_acknowledged_either(
    failing: Failing,
) -> None:
    world = failing.world
    world.stream(name="R", subjects=["r.>"], allow_rollup_hdrs=True)
    failing.files.fail_at(1)

    acks = world.inbox()
    for subject, asked in (("r.a", ("Nats-Msg-Id", "1")), ("r.b", ("Nats-Rollup", "sub"))):
        headers = header_blocks.add(None, [asked])
        world.bus.publish(subject, b"x", reply=acks.pattern, headers=headers)
    world.bus.publish("r.c", b"x", reply=acks.pattern)
    world.settle()
    again = world.publish("r.a", b"x", {"Nats-Msg-Id": "1"})

    assert [ack.json()["error"]["err_code"] for ack in acks.got] == [10077] * 3
    assert again == {"stream": "R", "seq": 1}


def test_a_consumer_never_sees_what_was_not_stored(failing: Failing) -> None:
    world = failing.world
    world.consumer()
    pull = world.pull(batch=5, expires=10**10)
    failing.files.fail_at(1)

    world.publish("s.a", b"lost")
    world.publish("s.a", b"kept")

    assert pull.payloads == [b"kept"]
    assert world.info()["num_pending"] == 0


def test_a_double_ack_that_could_not_be_written_is_not_answered(failing: Failing) -> None:
    world = failing.world
    world.consumer()
    world.publish("s.a")
    delivery = world.fetch()[0]

    failing.files.fail_at(1)
    assert not world.double_ack(delivery)

    assert world.double_ack(delivery)


def test_a_stream_that_cannot_be_made_is_refused(failing: Failing) -> None:
    world = failing.world
    failing.files.fail_at(1)

    assert world.err_code("STREAM.CREATE.T", {"name": "T"}) == 10049
    assert world.api("STREAM.CREATE.T", {"name": "T"})["did_create"] is True


def test_what_was_written_is_synced_two_minutes_later(failing: Failing) -> None:
    failing.world.publish("s.a")
    failing.files.syncs.clear()

    failing.world.advance(119)
    assert failing.files.syncs == []
    failing.world.advance(2)

    assert failing.files.syncs


def test_a_message_gone_bad_on_disk_is_reported_and_the_others_are_served(
    failing: Failing,
) -> None:
    failing.world.publish_run([("s.a", b"first"), ("s.a", b"second")])
    failing.storage.close()
    block = next(failing.storage_dir.rglob("*.blk"))
    block.write_bytes(block.read_bytes().replace(b"first", b"fIrst"))

    storage = FileStorage(failing.storage_dir)
    world = World(storage)
    world.consumer()

    assert [delivery.payload for delivery in world.fetch(5)] == [b"second"]
    assert world.state()["lost"]["bytes"] > 0
    damaged = [
        facts["lost_messages"] for event, facts in world.reports if event == "stream_damaged"
    ]
    assert damaged == [1]
    storage.close()


def test_a_message_that_goes_bad_while_it_is_kept_is_passed_over(failing: Failing) -> None:
    world = failing.world
    for payload in (b"first", b"second", b"third", b"fourth"):
        world.publish("s.a", payload)
    block = next(failing.storage_dir.rglob("*.blk"))
    block.write_bytes(block.read_bytes().replace(b"second", b"sEcond"))
    world.consumer()

    assert [delivery.payload for delivery in world.fetch(5)] == [b"first", b"third", b"fourth"]
    assert [facts["seq"] for event, facts in world.reports if event == "message_damaged"] == [2]
