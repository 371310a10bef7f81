"""A group from the outside: on both servers, and on the one in memory."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import nats
import pytest
from nats.aio.client import Client

from millstream_coordinator import (
    ConfigMismatch,
    Group,
    GroupError,
    KeyRuleError,
    Message,
    ServerUnreachable,
    StreamMissing,
    StreamUnfit,
    read_view,
)
from millstream_coordinator.events import GroupEvent, PartitionAssigned, PartitionRevoked
from millstream_coordinator.memory import MemoryServer
from millstream_coordinator.ports import BucketGone
from millstream_coordinator.sinks import StaleEpoch
from tests.helpers.servers import Server

from .members import running, until


class Seen:
    """What handlers were called with."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        await asyncio.sleep(0)

    def of_key(self, key: bytes) -> list[int]:
        return [int(one.data) for one in self.messages if one.key == key]


def member(connection: str | Client | MemoryServer, name: str, seen: Seen, **more: object) -> Group:
    given: dict[str, object] = {"stream": name.upper(), "name": name, "partitions": 4, **more}
    group = Group(connection, **given)  # type: ignore[arg-type]
    group.handler(key=f"{name}.*.{{key}}")(seen)
    return group


async def fill(client: Client, name: str, count: int, retention: str = "limits") -> None:
    stream = client.jetstream()
    await stream.add_stream(name=name.upper(), subjects=[f"{name}.*.*"], retention=retention)
    for number in range(count):
        key = number % 7
        await stream.publish(f"{name}.{key % 4}.k{key}", str(number).encode())


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_every_message_is_handled_once_and_in_order_of_its_key(
    server: Server, client: Client, name: str, retention: str
) -> None:
    await fill(client, name, 70, retention)
    seen = Seen()

    async with running(member(server.url, name, seen)):
        await until(lambda: len(seen.messages) >= 70)

    assert len(seen.messages) == 70
    for key in range(7):
        assert seen.of_key(f"k{key}".encode()) == list(range(key, 70, 7))


async def test_a_message_says_where_it_is_from(server: Server, client: Client, name: str) -> None:
    await fill(client, name, 0)
    await client.jetstream().publish(f"{name}.3.k%2E", b"7", headers={"Color": "red"})
    seen = Seen()

    async with running(member(server.url, name, seen)):
        await until(lambda: bool(seen.messages))

    message = seen.messages[0]
    assert (message.subject, message.data) == (f"{name}.3.k%2E", b"7")
    assert (message.key, message.partition, message.seq) == (b"k.", 3, 1)
    assert message.headers["Color"] == "red"
    assert message.epoch >= 1
    assert message.num_delivered == 1


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_members_share_partitions_and_a_leaver_gives_its_own_back(
    server: Server, client: Client, name: str, retention: str
) -> None:
    await fill(client, name, 40, retention)
    seen = Seen()
    first = member(server.url, name, seen, member="a")
    second = member(server.url, name, seen, member="b")

    async with running(first):
        async with running(second):
            await until(lambda: len(first.partitions) == 2 and len(second.partitions) == 2)
            shared = {**first.partitions, **second.partitions}
        await until(lambda: len(first.partitions) == 4)
        await until(lambda: len(seen.messages) >= 40)

    assert sorted(shared) == [0, 1, 2, 3]
    assert len(seen.messages) == 40


async def test_what_was_handled_is_not_handled_by_the_next_member(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 20)
    before, after = Seen(), Seen()
    async with running(member(server.url, name, before)):
        await until(lambda: len(before.messages) == 20)

    async with running(member(server.url, name, after)):
        await client.jetstream().publish(f"{name}.0.k0", b"20")
        await until(lambda: bool(after.messages))

    assert [int(one.data) for one in after.messages] == [20]


async def test_a_connection_that_is_given_stays_open(client: Client, name: str) -> None:
    await fill(client, name, 3)
    seen = Seen()

    async with running(member(client, name, seen)):
        await until(lambda: len(seen.messages) == 3)

    await client.flush()
    assert client.is_connected


async def test_a_handler_that_raises_holds_up_only_its_key(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 21)
    handled: list[tuple[bytes | None, int]] = []
    group = Group(server.url, stream=name.upper(), name=name, partitions=4)
    has_failed = asyncio.Event()

    @group.handler(key=f"{name}.*.{{key}}")
    async def handle(message: Message) -> None:
        if message.key == b"k0" and not has_failed.is_set():
            has_failed.set()
            raise RuntimeError("once")
        handled.append((message.key, int(message.data)))

    async with running(group):
        await until(lambda: len(handled) == 21)

    assert [number for key, number in handled if key == b"k0"] == [0, 7, 14]
    assert handled.index((b"k0", 0)) > handled.index((b"k1", 1))


async def test_callbacks_tell_what_is_assigned_and_revoked(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 0)
    assigned: list[int] = []
    revoked: list[int] = []
    events: list[GroupEvent] = []
    group = member(
        server.url,
        name,
        Seen(),
        on_assigned=lambda partition, _: assigned.append(partition),
        on_revoked=lambda partition, _: revoked.append(partition),
        on_event=events.append,
    )

    async with running(group):
        await until(lambda: len(group.partitions) == 4)

    assert sorted(assigned) == sorted(revoked) == [0, 1, 2, 3]
    assert sum(isinstance(event, PartitionAssigned) for event in events) == 4
    assert sum(isinstance(event, PartitionRevoked) for event in events) == 4


async def test_the_bucket_says_who_owns_what(server: Server, client: Client, name: str) -> None:
    await fill(client, name, 0)
    group = member(server.url, name, Seen(), member="a", capacity=3)

    async with running(group):
        await until(lambda: len(group.partitions) == 4)
        view = await read_view(client, name)

    assert view.config.filter == f"{name}.{{partition}}.*"
    assert view.leader is not None
    assert view.leader.member == "a"
    assert view.members["a"].capacity == 3
    assert {n: record.owner for n, record in view.partitions.items()} == dict.fromkeys(
        range(4), "a"
    )


async def test_a_group_without_a_stream_shares_numbers(server: Server, name: str) -> None:
    first = Group(server.url, stream=None, name=name, partitions=5)
    second = Group(server.url, stream=None, name=name, partitions=5)

    async with running(first, second):
        await until(lambda: len(first.partitions) + len(second.partitions) == 5)
        await until(lambda: abs(len(first.partitions) - len(second.partitions)) == 1)
        assert not first.partitions.keys() & second.partitions.keys()


async def test_a_lost_bucket_is_made_again_above_the_old_epochs(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 20)
    seen = Seen()
    group = member(server.url, name, seen)
    async with running(group):
        await until(lambda: len(seen.messages) == 20)
        before = group.partitions

        await client.jetstream().delete_stream(f"KV_MILLSTREAM_{name}")
        await until(
            lambda: (
                len(group.partitions) == 4
                and all(epoch > before[n] for n, epoch in group.partitions.items())
            )
        )
        await client.jetstream().publish(f"{name}.1.k1", b"20")
        await until(lambda: any(int(one.data) == 20 for one in seen.messages))

    assert seen.of_key(b"k1")[-1] == 20


async def test_a_group_with_other_partitions_is_refused(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 0)
    group = member(server.url, name, Seen())
    async with running(group):
        await until(lambda: len(group.partitions) == 4)
        other = member(server.url, name, Seen(), partitions=5)

        with pytest.raises(ConfigMismatch, match="4 partitions"):
            await other.run(handle_signals=False)


async def test_a_missing_stream_is_said(server: Server, name: str) -> None:
    with pytest.raises(StreamMissing, match=f"stream '{name.upper()}' not found"):
        await member(server.url, name, Seen()).run(handle_signals=False)


async def test_a_key_rule_that_does_not_fit_the_stream_is_refused(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 0)
    group = Group(server.url, stream=name.upper(), name=name, partitions=4)
    group.handler(key="elsewhere.*.{key}")(Seen())

    with pytest.raises(KeyRuleError, match="no subject of partition 0"):
        await group.run(handle_signals=False)


async def test_more_partitions_than_the_stream_takes_consumers_are_refused(
    server: Server, client: Client, name: str
) -> None:
    stream = client.jetstream()
    await stream.add_stream(name=name.upper(), subjects=[f"{name}.*.*"], max_consumers=7)

    with pytest.raises(StreamUnfit, match="up to 8 consumers, it takes 7"):
        await member(server.url, name, Seen()).run(handle_signals=False)


async def test_nobody_at_the_url_is_said() -> None:
    group = member("nats://127.0.0.1:9", "gone", Seen())

    with pytest.raises(ServerUnreachable):
        await group.run(handle_signals=False)


async def test_a_connection_that_does_not_come_back_ends_the_member(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 0)
    own = await nats.connect(server.url)
    group = member(own, name, Seen())
    run = asyncio.create_task(group.run(handle_signals=False))
    await until(lambda: len(group.partitions) == 4)

    await own.close()

    async with asyncio.timeout(30):
        with pytest.raises(ServerUnreachable, match="its client does not open it again"):
            await run
    assert not group.is_healthy
    assert not group.partitions


@pytest.mark.parametrize(
    "wrong",
    [
        {"partitions": 0},
        {"max_ack_pending": 0},
        {"max_lanes": 0},
        {"heartbeat_timeout": timedelta(seconds=0.3)},
        {"partitions": "4"},
    ],
)
def test_a_number_out_of_range_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        member("nats://x", "g", Seen(), **wrong)


def test_a_bad_name_is_refused_at_once() -> None:
    with pytest.raises(GroupError, match=r"group name 'a\.b'"):
        Group("nats://x", stream="S", name="a.b", partitions=1)


async def test_users_can_test_their_handlers_without_a_server() -> None:
    server = MemoryServer()
    server.add_stream("G")
    for number in range(20):
        server.publish("G", f"g.{number % 4}.k{number % 4}", str(number).encode())
    seen = Seen()
    first, second = member(server, "g", seen), member(server, "g", seen)

    async with running(first, second):
        await until(lambda: len(seen.messages) == 20)
        await until(lambda: len(first.partitions) == len(second.partitions) == 2)

    assert seen.of_key(b"k3") == [3, 7, 11, 15, 19]


async def test_events_can_be_read_as_they_come() -> None:
    server = MemoryServer()
    server.add_stream("G")
    group = member(server, "g", Seen())
    told: list[GroupEvent] = []

    async def read() -> None:
        told.extend([event async for event in group.events()])

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    async with running(group):
        await until(lambda: len(group.partitions) == 4)
    with suppress(asyncio.CancelledError):
        await reading

    assert sum(isinstance(event, PartitionAssigned) for event in told) == 4


async def test_what_a_callback_raises_comes_out_of_run() -> None:
    server = MemoryServer()
    server.add_stream("G")

    def on_assigned(_partition: int, _epoch: int) -> None:
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        await member(server, "g", Seen(), on_assigned=on_assigned).run(handle_signals=False)


async def test_a_group_can_be_stopped_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Client.connect

    async def patient(self: Client, servers: list[str], **options: object) -> None:
        await connect(self, servers, **options | {"connect_timeout": 3_600})  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "connect", patient)  # the connecting does not end by itself
    is_connecting = asyncio.Event()
    release = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_connecting.set()
        await release.wait()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    group = member(f"nats://127.0.0.1:{port}", "g", Seen())
    running_group = asyncio.create_task(group.run(handle_signals=False))
    await is_connecting.wait()

    async with asyncio.timeout(60):
        await group.stop()
        await running_group

    release.set()
    silent.close()


async def test_a_bucket_that_only_seemed_lost_leaves_no_partition_unserved(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 8)
    seen = Seen()
    group = member(server.url, name, seen)
    async with running(group):
        await until(lambda: len(seen.messages) == 8)
        before = group.partitions

        assert group._worker is not None
        group._worker.receive(BucketGone())
        for partition in range(4):
            await client.jetstream().publish(f"{name}.{partition}.late", b"99")
        await until(lambda: len(seen.of_key(b"late")) == 4)

        assert group.partitions == before


async def test_a_cancellation_inside_a_handler_is_an_error_of_that_message(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 14)
    seen, calls = Seen(), 0

    async def careless(message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise asyncio.CancelledError
        await seen(message)

    group = Group(server.url, stream=name.upper(), name=name, partitions=4, max_lanes=2)
    group.handler(key=f"{name}.*.{{key}}")(careless)
    async with running(group):
        await until(lambda: len(seen.messages) == 14)

    for key in range(7):
        assert seen.of_key(f"k{key}".encode()) == [key, key + 7]


async def test_a_sink_of_a_higher_epoch_raises_the_epoch_above_it(
    server: Server, client: Client, name: str
) -> None:
    await fill(client, name, 1)
    seen = Seen()

    async def refused(message: Message) -> None:
        if message.epoch <= 7:
            raise StaleEpoch(message.partition, message.epoch, 7)
        await seen(message)

    group = Group(server.url, stream=name.upper(), name=name, partitions=4)
    group.handler(key=f"{name}.*.{{key}}")(refused)
    async with running(group):
        await until(lambda: bool(seen.messages))
        assert group.partitions[0] == 8

    assert seen.messages[0].epoch == 8
