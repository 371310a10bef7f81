"""Leading groups as a service: named ones, all of them, and what becomes of the others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from millstream_coordinator import naming
from millstream_coordinator.errors import (
    ConfigMismatch,
    GroupError,
    GroupMissing,
    ServerUnreachable,
    StreamMissing,
)
from millstream_coordinator.events import GroupEvent, Joined, Left
from millstream_coordinator.group import Group
from millstream_coordinator.model import ConfigRecord, Message
from millstream_coordinator.operation import admin, service as service_module
from millstream_coordinator.operation.connect import connected
from millstream_coordinator.operation.process import unless_stopped
from millstream_coordinator.operation.service import NewGroup, Service
from millstream_coordinator.operation.settings import CoordinatorSettings
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import make_group, make_stream
from tests.helpers.servers import Server

from .members import until

WAIT_S = 60.0


def defined(name: str, partitions: int) -> NewGroup:
    return NewGroup(stream=name, key=f"{name}.*.{{key}}", partitions=partitions)


async def members(client: Client, group: str) -> list[str]:
    return list((await Target(client, group).view()).members)


class Running:
    """A service that runs, with what it told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.events: list[tuple[str, GroupEvent]] = []
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.ended: asyncio.Task[None] | None = None


@asynccontextmanager
async def running(
    server: Server, *groups: str, new: NewGroup | None = None, member: str = "boss"
) -> AsyncIterator[Running]:
    """A service for the groups (none: all), from the moment it is ready; ended at the end."""
    settings = CoordinatorSettings(
        nats_url=server.url, member=member, groups=groups, all_groups=not groups
    )
    async with connected(settings) as connection:
        one = Running(Service(connection, settings, new=new))
        one.service.listeners.append(lambda group, event: one.events.append((group, event)))
        one.ended = asyncio.create_task(one.service.run(one.stopping, on_ready=one.ready.set))
        try:
            async with asyncio.timeout(WAIT_S):
                waiting = asyncio.create_task(one.ready.wait())
                await asyncio.wait((waiting, one.ended), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            yield one
        finally:
            one.stopping.set()
            async with asyncio.timeout(WAIT_S):
                await asyncio.wait((one.ended,))
        if not one.ended.cancelled():
            one.ended.result()


# ---- named groups


async def test_one_process_leads_several_groups_and_leaves_them(
    server: Server, client: Client, name: str
) -> None:
    names = [f"{name}-a", f"{name}-b"]
    await make_stream(client, name)

    async with running(server, *names, new=defined(name, 2)) as one:
        while_running = [await members(client, it) for it in names]
        is_well, health = one.service.health()

    assert while_running == [["boss"], ["boss"]]
    assert is_well
    groups = health["groups"]
    assert isinstance(groups, dict)
    assert {it: groups[it]["joined"] for it in groups} == dict.fromkeys(names, True)
    assert {group for group, event in one.events if isinstance(event, Joined)} == set(names)
    assert {group for group, event in one.events if isinstance(event, Left)} == set(names)
    assert [await members(client, it) for it in names] == [[], []]


async def test_a_group_that_is_not_there_is_missing_unless_it_is_defined(
    server: Server, name: str
) -> None:
    with pytest.raises(GroupMissing, match=name):
        async with running(server, name):
            pass


async def test_a_named_group_that_cannot_be_led_ends_the_service_with_its_error(
    server: Server, name: str
) -> None:
    with pytest.raises(StreamMissing, match="NOWHERE"):
        async with running(server, name, new=defined("NOWHERE", 2)):
            pass


async def test_a_member_that_ends_by_itself_ends_the_service_instead_of_being_waited_for(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, name)
    names = [f"{name}-a", f"{name}-b"]

    async def one_ends() -> None:
        async with running(server, *names, new=defined(name, 1)) as one:
            await one.service.led[names[0]].stop()
            assert one.ended is not None
            async with asyncio.timeout(WAIT_S):
                await asyncio.wait((one.ended,))

    with pytest.raises(GroupError, match=f"'{names[0]}': its coordinator ended"):
        await one_ends()


async def test_a_group_that_another_process_makes_otherwise_meanwhile_is_a_mismatch(
    server: Server, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_stream(client, name)
    async with running(server, name, new=defined(name, 3)):
        pass

    async def nobody_made_it_yet(_target: Target) -> None:
        raise GroupMissing(name)

    monkeypatch.setattr(Target, "config", nobody_made_it_yet)
    with pytest.raises(ConfigMismatch, match=name):
        async with running(server, name, new=defined(name, 5)):
            pass


async def test_a_group_that_is_there_is_led_by_a_coordinator_that_describes_it_alike(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, name)

    for _ in range(2):
        async with running(server, name, new=defined(name, 3)):
            assert (await Target(client, name).view()).config.partitions == 3


async def test_a_coordinator_that_describes_a_group_otherwise_is_refused(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, name)
    async with running(server, name, new=defined(name, 3)):
        pass

    with pytest.raises(ConfigMismatch, match="exists with 3 partitions, wanted 5 partitions"):
        async with running(server, name, new=defined(name, 5)):
            pass


async def test_workers_that_may_not_lead_get_their_partitions_from_the_service_and_are_resized(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, name)
    levels = ConfigRecord(
        partitions=2,
        stream=name,
        filter=f"{name}.{{partition}}.{{partition:4}}.*",
        key=f"{name}.{{partition}}.{{partition:4}}.{{key}}",
        levels=(2, 4),
    )
    await make_group(client, name, config=levels)
    worker = Group(
        server.url, stream=name, name=name, partitions=2, member="worker", can_lead=False
    )

    @worker.handler(key=f"{name}.{{partition}}.{{partition:4}}.{{key}}")
    async def handle(message: Message) -> None:
        pass

    async with running(server, name) as one, asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(handle_signals=False))
        await until(lambda: list(worker.partitions) == [0, 1])
        await admin.resize(Target(client, name), 4)
        await until(lambda: list(worker.partitions) == [0, 1, 2, 3])
        is_leader = one.service.led[name].is_leader
        await worker.stop()

    assert is_leader


# ---- all groups


async def test_all_groups_are_led_also_those_that_come_later(
    server: Server, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SCAN_S", 0.05)
    await make_stream(client, f"{name}-a")
    await make_stream(client, f"{name}-b")
    await make_group(client, f"{name}-a")
    await client.jetstream().create_key_value(KeyValueConfig(bucket=naming.bucket(f"{name}-no")))

    async with running(server) as one:
        at_first = {it for it in one.service.names if it.startswith(name)}
        await make_group(client, f"{name}-b")
        await until(lambda: f"{name}-b" in one.service.names)

    assert at_first == {f"{name}-a"}


async def test_one_of_all_groups_that_cannot_be_led_is_told_and_the_others_are_led(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, f"{name}-a")
    await make_group(client, f"{name}-a")
    await make_group(client, f"{name}-bad")  # there is no such stream

    async with running(server) as one:
        await until(lambda: f"{name}-bad" in one.service.troubles)
        is_well, health = one.service.health()
        trouble = one.service.troubles[f"{name}-bad"]
        is_led = f"{name}-a" in one.service.names

    assert is_led
    assert (is_well, health["status"]) == (False, "trouble")
    assert trouble == f"stream '{name}-bad' not found"


# ---- deletion


async def test_a_group_is_left_when_it_is_deleted_and_stays_deleted(
    server: Server, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SCAN_S", 0.05)
    await make_stream(client, name)
    await make_group(client, name)

    async with running(server) as one:
        await until(lambda: name in one.service.names)
        await admin.delete(Target(client, name))
        await until(lambda: name not in one.service.led)
        await asyncio.sleep(0.3)  # several scans
        with pytest.raises(GroupMissing):
            await Target(client, name).view()


async def test_a_named_group_that_is_deleted_is_no_error_and_the_others_are_led(
    server: Server, client: Client, name: str
) -> None:
    names = [f"{name}-a", f"{name}-b"]
    await make_stream(client, name)

    async with running(server, *names, new=defined(name, 1)) as one:
        await admin.delete(Target(client, names[0]))
        await until(lambda: names[0] not in one.service.led)  # its end is judged by then

        assert one.ended is not None
        assert not one.ended.done()
        assert one.service.names == {names[1]}
        assert await members(client, names[1]) == ["boss"]


async def test_a_dry_run_of_a_deletion_leaves_the_coordinators_alone(
    server: Server, client: Client, name: str
) -> None:
    await make_stream(client, name)

    async with running(server, name, new=defined(name, 1)) as one:
        await admin.delete(Target(client, name), dry_run=True)
        await client.flush()
        assert name in one.service.names


# ---- connecting


async def test_what_cannot_be_waited_for_is_given_up_when_told_to_stop() -> None:
    stopping = asyncio.Event()
    is_waiting = asyncio.Event()

    async def never_answers() -> str:
        is_waiting.set()
        await asyncio.Event().wait()
        return "never"

    waiting = asyncio.create_task(unless_stopped(stopping, never_answers()))
    await is_waiting.wait()
    stopping.set()

    async with asyncio.timeout(60):
        assert await waiting is None


async def test_no_server_is_told_within_the_connect_timeout_without_a_password() -> None:
    settings = CoordinatorSettings(
        nats_url="nats://user:secret@127.0.0.1:1", connect_timeout=timedelta(seconds=0.2)
    )

    async with asyncio.timeout(5):
        with pytest.raises(ServerUnreachable, match=r"nats://127\.0\.0\.1:1: ") as failed:
            async with connected(settings):
                pass

    assert "secret" not in str(failed.value)
