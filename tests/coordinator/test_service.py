"""Leading several groups in one process."""

import asyncio
from datetime import timedelta

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from millstream_coordinator.errors import ConfigMismatch, GroupMissing, ServerUnreachable
from millstream_coordinator.events import GroupEvent, Joined, Left
from millstream_coordinator.operation import service
from millstream_coordinator.operation.service import NewGroup, connected, lead, unless_stopped
from millstream_coordinator.operation.settings import CoordinatorSettings
from millstream_coordinator.operation.view import GroupView, read_view
from tests.helpers.servers import Server


async def stream(client: Client, name: str) -> str:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    return name


def defined(name: str, partitions: int) -> NewGroup:
    return NewGroup(stream=name, key=f"{name}.*.{{key}}", partitions=partitions)


async def test_one_process_leads_several_groups(server: Server, client: Client, name: str) -> None:
    settings = CoordinatorSettings(nats_url=server.url, member="boss")
    names = [f"{name}-a", f"{name}-b"]
    new = defined(await stream(client, name), 2)
    stopping, ready = asyncio.Event(), asyncio.Event()
    events: list[tuple[str, GroupEvent]] = []

    async with connected(settings) as connection, asyncio.TaskGroup() as tasks:
        leading = tasks.create_task(
            lead(
                connection,
                names,
                settings,
                new=new,
                stopping=stopping,
                on_ready=ready.set,
                on_event=lambda group, event: events.append((group, event)),
            )
        )
        async with asyncio.timeout(10):
            await ready.wait()
            views = [await read_view(client, it) for it in names]
            stopping.set()
            await leading

    assert [list(view.members) for view in views] == [["boss"], ["boss"]]
    assert {group for group, event in events if isinstance(event, Joined)} == set(names)
    assert {group for group, event in events if isinstance(event, Left)} == set(names)
    assert [list((await read_view(client, it)).members) for it in names] == [[], []]


async def test_a_group_that_is_not_there_is_missing_unless_it_is_defined(
    server: Server, name: str
) -> None:
    settings = CoordinatorSettings(nats_url=server.url)

    async with connected(settings) as connection:
        with pytest.raises(GroupMissing, match=name):
            await lead(connection, [name], settings, stopping=asyncio.Event())


async def test_a_group_that_cannot_be_led_ends_the_others_too(
    server: Server, client: Client, name: str
) -> None:
    settings = CoordinatorSettings(nats_url=server.url)
    new = defined("NOWHERE", 2)
    async with connected(settings) as connection, asyncio.timeout(10):
        with pytest.raises(Exception, match="NOWHERE") as failed:
            await lead(connection, [name], settings, new=new, stopping=asyncio.Event())

    assert not isinstance(failed.value, BaseExceptionGroup)


async def test_a_group_that_another_process_makes_otherwise_meanwhile_is_a_mismatch(
    server: Server, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CoordinatorSettings(nats_url=server.url)
    await stream(client, name)
    stopping = asyncio.Event()

    async def nobody_made_it_yet(_connection: Client, group: str) -> GroupView:
        raise GroupMissing(group)

    async with connected(settings) as connection, asyncio.timeout(10):
        new = defined(name, 3)
        await lead(connection, [name], settings, new=new, stopping=stopping, on_ready=stopping.set)
        monkeypatch.setattr(service, "read_view", nobody_made_it_yet)
        with pytest.raises(ConfigMismatch, match=name):
            await lead(connection, [name], settings, new=defined(name, 5), stopping=asyncio.Event())


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

    async with asyncio.timeout(5):
        assert await waiting is None


async def test_an_existing_groups_own_definition_counts(
    server: Server, client: Client, name: str
) -> None:
    settings = CoordinatorSettings(nats_url=server.url)
    await stream(client, name)

    async def led(new: NewGroup) -> int:
        stopping = asyncio.Event()
        async with connected(settings) as connection, asyncio.timeout(10):
            await lead(
                connection, [name], settings, new=new, stopping=stopping, on_ready=stopping.set
            )
        return (await read_view(client, name)).config.partitions

    counts = [await led(defined(name, it)) for it in (3, 5)]

    assert counts == [3, 3]


async def test_no_server_is_told_within_the_connect_timeout() -> None:
    settings = CoordinatorSettings(
        nats_url="nats://127.0.0.1:1", connect_timeout=timedelta(seconds=0.2)
    )

    async with asyncio.timeout(5):
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
            async with connected(settings):
                pass
