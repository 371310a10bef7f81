"""Several processes at one topic: each partition has one writer, and another one when it dies."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from millstream_bridge import Bridge, ConfigurationError, KafkaSource, Route, barrier, verify
from millstream_bridge.model import Positions
from millstream_bridge.moving.progress import State
from millstream_bridge.moving.sharing import Members, Share, slots_of
from millstream_bridge.operation.status import SUBJECT as STATUS
from millstream_bridge.ports import Polled
from millstream_bridge.project.permissions import Purpose, needs
from millstream_coordinator import ServerUnreachable, Target
from millstream_coordinator.jetstream.permissions import Role, needs as group_needs
from millstream_coordinator.model import ConfigRecord
from tests.bridge.moves import a_route, offsets, stored_records, until
from tests.helpers.kafka import Kafka
from tests.helpers.require import need
from tests.helpers.servers import Server, real_server

PARTITIONS = 6
MODES: Mapping[str, dict[str, Any]] = {
    "chain": {},
    "shared": {"shared": True},
    "dense": {"mode": "dense", "stream": "FLIGHTS-{partition}"},
}


def produce(kafka: Kafka, topic: str, first: int, count: int) -> None:
    kafka.produce(
        topic,
        [
            {"partition": n % PARTITIONS, "key": b"k%d" % (n % 50), "value": b"%d" % n}
            for n in range(first, first + count)
        ],
    )


def members(server: Server, name: str, slots: int) -> Members:
    return Members(server.url, group="bridges", slots=slots, member=name)


@asynccontextmanager
async def running(kafka: Kafka, server: Server, route: Route, name: str) -> AsyncIterator[Bridge]:
    """A bridge of the group beside the block; it leaves at the end."""
    slots = slots_of([route], {route.topic: PARTITIONS})
    async with members(server, name, slots) as joined:
        bridge = Bridge(
            kafka=kafka.bootstrap, nats=server.url, route=route, share=joined.share(route)
        )
        run = asyncio.create_task(bridge.run())
        try:
            yield bridge
        finally:
            bridge.stop()
            await run


def parts(*bridges: Bridge) -> list[int]:
    """How many partitions each moves."""
    return [len(bridge.progress.epochs) for bridge in bridges]


def test_what_can_be_divided_has_a_slot_each() -> None:
    routes = [a_route("a"), a_route("b", shared=True), a_route("c", **MODES["dense"])]

    assert slots_of(routes, {"a": 10, "b": 4, "c": 3}) == 1 + 4 + 3


@pytest.mark.parametrize("mode", MODES)
async def test_partitions_are_divided_and_taken_over(
    real_nats_server: Server, mock: Kafka, topic: str, mode: str
) -> None:
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, **MODES[mode])
    server = real_nats_server
    all_of_it = [6, 0] if mode == "chain" else [3, 3]

    async with asyncio.timeout(120), running(mock, server, route, "a") as first:
        produce(mock, topic, 0, 600)
        await until(lambda: parts(first) == [6])
        epochs = dict(first.progress.epochs)
        async with running(mock, server, route, "b") as second:
            await until(lambda: parts(first, second) == all_of_it)
            if mode == "chain":
                await until(lambda: second.progress.state is State.STANDING_BY)
            produce(mock, topic, 600, 600)
            await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=60)
            assert not set(first.progress.epochs) & set(second.progress.epochs)
            for partition, epoch in second.progress.epochs.items():
                assert epoch > epochs[partition]
        await until(lambda: parts(first) == [6])
        produce(mock, topic, 1200, 600)
        await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=60)

    stored = await stored_records(server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {p: list(range(300)) for p in range(PARTITIONS)}
    proof = await verify(kafka=mock.bootstrap, nats=server.url, route=route)
    assert proof.equal
    assert proof.records == 1800


async def test_the_number_of_slots_is_the_groups(real_nats_server: Server) -> None:
    route = a_route("t", shared=True)
    async with members(real_nats_server, "a", 4), members(real_nats_server, "b", 9) as second:
        assert {second.slot(route, partition) for partition in range(9)} == {0, 1, 2, 3}


async def test_a_group_that_is_just_being_made_is_asked_again(
    real_nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster makes its bucket for a while, and answers nobody who asks for it meanwhile."""
    url = real_nats_server.url
    answers = [ServerUnreachable(url, "timeout")] * 2
    config = Target.config

    async def late(self: Target) -> ConfigRecord:
        if answers:
            raise answers.pop()
        return await config(self)

    monkeypatch.setattr(Target, "config", late)

    async with asyncio.timeout(60), members(real_nats_server, "a", 3) as a:
        await until(lambda: len(a.held) == 3)
        assert not answers


async def test_a_group_that_reads_a_stream_is_not_taken_for_bridges(
    real_nats_server: Server,
) -> None:
    """Slots of another kind of group would be given to nobody, or to workers."""
    import nats

    from millstream_coordinator import Group

    connection = await nats.connect(real_nats_server.url)
    await connection.jetstream().add_stream(name="T", subjects=["t.>"])
    group = Group(connection, stream="T", name="bridges", partitions=2)

    @group.handler("t.{partition}.{key}")
    async def handle(message: Any) -> None: ...

    run = asyncio.create_task(group.run(handle_signals=False))
    try:
        await until(lambda: len(group.partitions) == 2)
        with pytest.raises(ConfigurationError, match="bridges is a consumer group of stream T"):
            await members(real_nats_server, "a", 2).join()
    finally:
        await group.stop()
        await run
        await connection.close()


async def test_one_of_several_has_no_end(real_nats_server: Server, mock: Kafka, topic: str) -> None:
    route = a_route(topic)
    async with members(real_nats_server, "a", 1) as joined:
        bridge = Bridge(
            kafka=mock.bootstrap,
            nats=real_nats_server.url,
            route=route,
            share=joined.share(route),
        )
        with pytest.raises(ConfigurationError, match="cannot know the end of all"):
            await bridge.run(stop_at_end=True)


@asynccontextmanager
async def process(
    kafka: Kafka, server: Server, route: Route, folder: Path, name: str
) -> AsyncIterator[Process]:
    """``millstream bridge run --group`` as a process of its own, ready; killed at the end."""
    project = folder / "project.toml"
    project.write_text(
        f'[kafka]\nbootstrap = "{kafka.bootstrap}"\n[nats]\nurl = "{server.url}"\n'
        f'[[route]]\ntopic = "{route.topic}"\nstream = "{route.stream}"\n'
        f'subject = "{route.subject}"\nmode = "{route.mode}"\n'
        f"shared = {str(route.shared).lower()}\n"
    )
    ready = folder / f"{name}.ready"
    with (folder / f"{name}.log").open("wb") as log:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream_bridge", "run", "--project", str(project)),
            *("--group", "bridges", "--member", name, "--ready-file", str(ready)),
            *("--http", "127.0.0.1:0", "--log-json", "--end-with-stdin"),
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=log,
        )
    try:
        await until(lambda: ready.exists() or started.returncode is not None, pause_s=0.02)
        assert started.returncode is None, (folder / f"{name}.log").read_text()
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def status(server: Server, *options: str) -> tuple[int | None, dict[str, Any]]:
    """``millstream bridge status --json``: exit code and document."""
    asked = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "millstream_bridge", "status", "--nats", server.url, "--json"),
        *("--wait", "0.3", *options),
        stdout=PIPE,
        stderr=PIPE,
    )
    out, error = await asked.communicate()
    assert out, error
    return asked.returncode, json.loads(out)


def held(routes: list[dict[str, Any]]) -> list[int]:
    """The partitions that the processes move; one that two claim comes twice."""
    return sorted(int(partition) for it in routes for partition in it["partitions"])


async def status_when(
    server: Server, is_so: Callable[[list[dict[str, Any]]], bool], *options: str
) -> tuple[int | None, list[dict[str, Any]]]:
    """The first exit code and routes of which that is true: not all need answer at once."""
    async with asyncio.timeout(60):
        while True:
            code, document = await status(server, *options)
            routes: list[dict[str, Any]] = document["routes"]
            if is_so(routes):
                return code, routes


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
async def test_when_a_process_is_killed_another_goes_on(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path, mode: str
) -> None:
    """SIGKILL of a process in the middle of a backfill: nothing lost, nothing twice, in order."""
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, **MODES[mode])
    server = real_nats_server
    produce(mock, topic, 0, 30_000)

    async with (
        asyncio.timeout(150),
        process(mock, server, route, tmp_path, "a") as a,
        process(mock, server, route, tmp_path, "b") as b,
        process(mock, server, route, tmp_path, "c") as c,
    ):
        _, before = await status_when(
            server, lambda routes: len(routes) == 3 and bool(held(routes))
        )
        by_name = {it["process"]["member"]: it for it in before}
        victim = next(
            it for name, it in zip("abc", (a, b, c), strict=True) if by_name[name]["partitions"]
        )
        produce(mock, topic, 30_000, 30_000)
        victim.kill()
        await victim.wait()
        await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=100)
        # All may have been stored before the kill, and then the barrier waits for no takeover.
        code, after = await status_when(
            server,
            lambda routes: len(routes) == 2 and held(routes) == list(range(PARTITIONS)),
            *("--route", route.name),
        )

    assert by_name.keys() == {"a", "b", "c"}
    assert code == 0
    assert all(it["lag"] == 0 for one in after for it in one["partitions"].values())
    stored = await stored_records(server.url, route, dense_partitions=PARTITIONS)
    assert offsets(stored) == {p: list(range(10_000)) for p in range(PARTITIONS)}
    proof = await verify(kafka=mock.bootstrap, nats=server.url, route=route)
    assert proof.equal
    code, nobody = await status(server, "--route", route.name)
    assert code == 1
    assert nobody["missing"] == [route.name]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chain", "shared"])
async def test_a_process_that_was_paused_and_taken_over_from_does_no_harm(
    real_nats_server: Server, mock: Kafka, topic: str, tmp_path: Path, mode: str
) -> None:
    """SIGSTOP in the middle of a backfill: it wakes up with frames in hand, and is refused."""
    mock.create_topic(topic, PARTITIONS)
    route = a_route(topic, **MODES[mode])
    server = real_nats_server

    async with asyncio.timeout(150), process(mock, server, route, tmp_path, "a") as first:
        produce(mock, topic, 0, 600)
        await status_when(server, lambda routes: any(it["records"] for it in routes))
        produce(mock, topic, 600, 29_400)
        first.send_signal(signal.SIGSTOP)
        try:
            async with process(mock, server, route, tmp_path, "b"):
                await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=60)
                produce(mock, topic, 30_000, 30_000)
                first.send_signal(signal.SIGCONT)
                await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=60)
        finally:
            first.send_signal(signal.SIGCONT)
        # The one that was paused is a member again, and the only one.
        produce(mock, topic, 60_000, 600)
        await barrier(kafka=mock.bootstrap, nats=server.url, route=route, timeout_s=60)

    stored = await stored_records(server.url, route)
    assert offsets(stored) == {p: list(range(10_100)) for p in range(PARTITIONS)}
    assert (await verify(kafka=mock.bootstrap, nats=server.url, route=route)).equal


class FewMembers:
    """The slots of a process, as a test says them."""

    def __init__(self, held: dict[int, int]) -> None:
        self.held = held

    def slot(self, route: Route, partition: int) -> int:
        return partition

    def check(self) -> None:
        return

    def wake(self) -> None:
        return


async def test_a_session_is_bound_to_the_epochs_it_began_under() -> None:
    members = FewMembers({0: 5, 2: 7, 9: 1})
    share = Share(cast(Members, members), a_route("t", shared=True))

    def has_changed(held: dict[int, int]) -> bool:
        members.held = held
        return share.has_changed

    assert await share.take(range(3)) == {0: 5, 2: 7}
    assert not has_changed({0: 5, 2: 7, 9: 1})
    assert not has_changed({0: 5, 2: 7})  # a slot of another route went
    assert has_changed({0: 5, 2: 8})  # went and came back: another process may have written
    assert has_changed({0: 5})
    assert has_changed({0: 5, 1: 1, 2: 7})


class LateShare:
    """Loses all it has as soon as it was taken, again and again."""

    has_changed = True

    def __init__(self) -> None:
        self.sessions = 0

    async def take(self, partitions: Sequence[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 1)

    def settle(self) -> None:
        self.sessions += 1


class Patient(KafkaSource):
    """Waits for a session's first records, however long Kafka takes."""

    has_begun = False

    async def assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        self.has_begun = False
        await super().assign(positions, partitions)

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        polled = await super().poll(records_max, wait_s if self.has_begun else 60.0)
        self.has_begun = True
        return polled


async def test_nothing_is_sent_for_what_was_lost_meanwhile(
    nats_server: Server, mock: Kafka, topic: str
) -> None:
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "value": b"x"} for _ in range(10)])
    share = LateShare()
    bridge = Bridge(
        source=Patient(mock.bootstrap, topic),
        nats=nats_server.url,
        route=a_route(topic),
        share=cast(Share, share),
    )

    run = asyncio.create_task(bridge.run())
    await until(lambda: share.sessions > 3)
    bridge.stop()
    await run

    assert await stored_records(nats_server.url, a_route(topic)) == {}


async def test_a_member_needs_the_rights_of_its_routes_and_of_the_group(
    mock: Kafka, topic: str, tmp_path: Path
) -> None:
    """The bridge's list for `run`, the coordinator's for a leader, and the status subject."""
    need("nats")
    mock.create_topic(topic, PARTITIONS)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"v"}])
    route = a_route(topic, shared=True)
    own = needs(Purpose.RUN, [route])
    of_group = group_needs(Role.LEADER, "bridges")
    publish = [*own.publish, *(it.pattern for it in of_group.publish)]
    subscribe = [*own.subscribe, *(it.pattern for it in of_group.subscribe), STATUS]
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { user: run, password: p, permissions {"
        f" publish: {json.dumps(publish)}, subscribe: {json.dumps(subscribe)},"
        " allow_responses: true } }\n"
    )

    async with real_server(tmp_path / "nats", arguments=["-c", str(config)]) as server:
        url = f"nats://run:p@{server.url.removeprefix('nats://')}"
        async with Members(url, group="bridges", slots=PARTITIONS) as members:
            bridge = Bridge(kafka=mock.bootstrap, nats=url, route=route, share=members.share(route))
            run = asyncio.create_task(bridge.run())
            await until(lambda: bridge.progress.records == 1 or run.done())
            bridge.stop()
            await run
