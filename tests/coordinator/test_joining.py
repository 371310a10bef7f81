"""Getting into a group: its version, what members must agree on, and the bucket that is there."""

import json
from dataclasses import replace

import pytest

from millstream_coordinator import naming
from millstream_coordinator.errors import ConfigMismatch, GroupTooNew
from millstream_coordinator.events import (
    JoinRefused,
    PartitionAssigned,
    PartitionLost,
    RecordTooNew,
    StreamDoubtful,
)
from millstream_coordinator.memory import MemoryClient
from millstream_coordinator.model import ConfigRecord, FailurePolicy, MemberRecord
from millstream_coordinator.ports import (
    Command,
    Failed,
    Failure,
    KeyChanged,
    Prepare,
    Prepared,
    Watch,
)

from .plane import GROUP, STREAM, Plane


def test_a_record_of_a_newer_version_is_left_alone() -> None:
    plane = Plane()
    a, b = plane.settle("a", "b")
    key = naming.partition_key(0)
    owner = a if 0 in a.partitions else b

    value = json.dumps({"version": 2, "epoch": "a word"}).encode()
    plane.server.put(GROUP, key, value)
    plane.run(3.0)

    assert plane.server.value(GROUP, key) == value  # also after somebody looked it over
    assert [event.partition for event in owner.told(PartitionLost)] == [0]
    assert a.told(RecordTooNew) == b.told(RecordTooNew) == [RecordTooNew(key=key, record_version=2)]
    assert (a.partitions | b.partitions) == {1, 2, 3}
    c = plane.join("c")
    plane.run(1.0)
    assert c.told(RecordTooNew) == [RecordTooNew(key=key, record_version=2)]


def test_a_group_of_a_newer_version_is_not_joined() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    plane.server.put(GROUP, naming.CONFIG_KEY, b'{"version": 3, "partitions": 4, "stream": "S"}')
    plane.run(0.5)
    b = plane.join("b")
    plane.until(lambda: not b.is_alive)

    assert isinstance(b.error, GroupTooNew)
    assert "version 3" in str(b.error)
    assert a.partitions == set()
    assert a.is_alive


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"partitions": 5}, "exists with 4 partitions, wanted 5 partitions"),
        ({"key": "s.{partition}.*.{key}"}, "wanted key 's.{partition}.*.{key}'"),
        ({"on_failure": FailurePolicy.PARK}, "exists with on_failure 'retry', wanted on_failure"),
        ({"max_attempts": 9}, "exists with max_attempts 5, wanted max_attempts 9"),
        ({"stream": "T", "partitions": 8}, "with 4 partitions, stream 'S', wanted 8 partitions,"),
    ],
)
def test_a_member_that_wants_something_else_is_told_what(
    change: dict[str, object], text: str
) -> None:
    plane = Plane()
    plane.settle("a")

    b = plane.join("b", config=replace(plane.config, **change))  # type: ignore[arg-type]
    plane.until(lambda: not b.is_alive)

    assert isinstance(b.error, ConfigMismatch)
    assert text in str(b.error)
    assert plane.read(MemberRecord, naming.member_key("b")) is None


def test_who_only_leads_takes_what_it_finds_and_is_completed() -> None:
    plane = Plane()
    bare = ConfigRecord(partitions=4, stream=STREAM, filter=None)
    lead = plane.join("lead", config=bare, capacity=0)
    plane.run(0.5)
    plane.settle("a")
    again = plane.join("again", config=bare, capacity=0)
    plane.run(0.5)

    found = plane.read(ConfigRecord, naming.CONFIG_KEY)
    assert found is not None
    assert replace(found, begins_at=0) == plane.config
    assert lead.is_alive
    assert again.is_alive


@pytest.mark.parametrize("is_caught_up", [False, True], ids=["catching up", "caught up"])
def test_a_late_cfg_of_the_bucket_before_is_set_right_and_moves_nothing(
    is_caught_up: bool,
) -> None:
    plane = Plane(1)
    plane.loses = lambda _process, command: isinstance(command, Watch) and not is_caught_up
    a = plane.join("a")
    plane.until(plane.is_served if is_caught_up else lambda: plane.server.has_bucket(GROUP))
    plane.run(1.0)
    config = plane.read(ConfigRecord, naming.CONFIG_KEY)
    assert config is not None

    plane.put(naming.CONFIG_KEY, replace(config, begins_at=config.begins_at + 7))
    plane.loses = lambda _process, _command: False
    if not is_caught_up:
        plane.server.execute(a.client, Watch())
    plane.run(0.1)

    assert plane.read(ConfigRecord, naming.CONFIG_KEY) == config
    plane.until(plane.is_served)
    assert [it.epoch for it in a.told(PartitionAssigned)] == [1]
    assert a.told(PartitionLost) == []


def test_who_was_counted_out_before_it_had_caught_up_is_a_member_all_the_same() -> None:
    plane = Plane(1)
    plane.loses = lambda _process, command: isinstance(command, Watch)
    a = plane.join("a")
    plane.until(lambda: plane.read(MemberRecord, naming.member_key("a")) is not None)
    plane.server.put(GROUP, naming.member_key("a"), None)
    plane.loses = lambda _process, _command: False
    plane.server.execute(a.client, Watch())

    plane.until(plane.is_served, plane.timing.lease_s / 6)


def test_a_member_whose_bucket_cannot_be_made_again_yet_keeps_trying() -> None:
    plane = Plane()
    (a,) = plane.settle("a")
    is_refused = True
    execute = plane.server.execute

    def refuse(client: MemoryClient, command: Command) -> None:
        if is_refused and isinstance(command, Prepare):
            client.send(Failed(id=command.id, reason=Failure.REFUSED, detail="no suitable peers"))
        else:
            execute(client, command)

    plane.server.execute = refuse  # type: ignore[method-assign]
    plane.server.delete_bucket(GROUP)
    plane.run(6.0)
    assert a.told(JoinRefused) == [JoinRefused(member="a", reason="no suitable peers")]
    is_refused = False
    plane.until(plane.is_served)

    assert a.is_alive


def test_late_news_of_a_bucket_that_is_gone_is_no_news() -> None:
    plane = Plane(2)
    a, b = plane.settle("a", "b")
    keys = naming.partition_key(next(iter(b.partitions))), naming.member_key("b")
    late = [
        KeyChanged(
            key=key,
            value=plane.server.value(GROUP, key),
            revision=a.machine.context.book.revision(key),
        )
        for key in keys
    ]
    is_slow = True
    execute = plane.server.execute

    def delay(client: MemoryClient, command: Command) -> None:
        if is_slow and isinstance(command, Prepare):
            client.send(Failed(id=command.id, reason=Failure.TIMEOUT))
        else:
            execute(client, command)

    plane.server.execute = delay  # type: ignore[method-assign]
    plane.server.delete_bucket(GROUP)
    plane.run(5.0)
    for news in late:
        a.take(news)
    is_slow = False

    plane.until(plane.is_served)


def test_what_a_stream_may_do_to_messages_is_told_once() -> None:
    plane = Plane()
    execute = plane.server.execute

    def warn(client: MemoryClient, command: Command) -> None:
        if isinstance(command, Prepare):
            send = client.send
            client.send = lambda event: send(
                replace(event, warnings=("drops by age",)) if isinstance(event, Prepared) else event
            )
            execute(client, command)
            client.send = send
        else:
            execute(client, command)

    plane.server.execute = warn  # type: ignore[method-assign]
    (a,) = plane.settle("a")
    plane.server.delete_bucket(GROUP)
    plane.run(6.0)

    assert a.told(StreamDoubtful) == [StreamDoubtful(text="drops by age")]
