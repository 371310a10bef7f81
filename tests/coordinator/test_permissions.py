"""Least privilege on nats-server: users with exactly what is listed, and some who lack a bit."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from nats.aio.client import Client

from millstream_coordinator import Group, Message, read_view
from millstream_coordinator.errors import PermissionMissing
from millstream_coordinator.jetstream.api import Api, Forbidden
from millstream_coordinator.jetstream.permissions import Needs, Role, config_text, needs
from tests.helpers import require
from tests.helpers.servers import REAL, Server

from .members import running, until
from .privilege_page import PAGE, text as page_text
from .test_worker import Seen

pytestmark = pytest.mark.real_server

GROUP = "g"
STREAM = "ORDERS"
LEADER = needs(Role.LEADER, GROUP, [STREAM], has_letters=False)
LACKS = [("publish", place) for place in range(len(LEADER.publish))] + [
    ("subscribe", place) for place in range(len(LEADER.subscribe))
]


def without(needed: Needs, kind: str, place: int) -> Needs:
    grants: dict[str, Any] = {kind: list(getattr(needed, kind))}
    del grants[kind][place]
    return replace(needed, **grants)


def lacking(kind: str, place: int) -> str:
    pattern = getattr(LEADER, kind)[place].pattern
    return f"{kind} to {pattern!r}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a user for each role, and one for each permission that may be missing."""
    require.need("nats")
    folder = tmp_path_factory.mktemp("permissions")
    users = {role.value: needs(role, GROUP, [STREAM]) for role in Role}
    users["mute"] = replace(LEADER, has_responses=False)
    for kind, place in LACKS:
        users[f"no-{kind}-{place}"] = without(LEADER, kind, place)
    lines = [
        f"{{user: {user}, password: pw, {config_text(needed)}}}" for user, needed in users.items()
    ]
    config = folder / "server.conf"
    config.write_text(
        f'jetstream {{ store_dir: "{folder}/store" }}\n'
        "authorization { users: [{user: root, password: pw}\n" + "\n".join(lines) + "] }\n"
    )
    with Server(REAL, folder / "unused", arguments=("-c", str(config)), jetstream=False) as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "pattern", "missing"),
    [
        ("publish", "$JS.API.INFO", "publish to '$JS.API.INFO'"),
        ("subscribe", "_INBOX.>", "subscribe to '_INBOX.>'"),
    ],
)
async def test_what_is_not_permitted_is_told_without_waiting_for_an_answer(
    server: Server, kind: str, pattern: str, missing: str
) -> None:
    place = [it.pattern for it in getattr(LEADER, kind)].index(pattern)
    async with connected(server, f"no-{kind}-{place}") as client:
        with pytest.raises(Forbidden) as raised:
            async with asyncio.timeout(60):
                await Api(client, 3_600.0).call("INFO")

    assert raised.value.missing == missing


@asynccontextmanager
async def connected(server: Server, user: str) -> AsyncIterator[Client]:
    async def ignore(_: Exception) -> None:
        pass

    client = await nats.connect(server.url, user=user, password="pw", error_cb=ignore)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def root(server: Server) -> AsyncIterator[Client]:
    """Who may do everything, with an empty stream and no group."""
    async with connected(server, "root") as client:
        stream = client.jetstream()
        for one in await stream.streams_info():
            await stream.delete_stream(str(one.config.name))
        await stream.add_stream(name=STREAM, subjects=["orders.*.*"])
        yield client


def member(client: Client, seen: Seen, **more: object) -> Group:
    given: dict[str, object] = {"stream": STREAM, "name": GROUP, "partitions": 4, **more}
    group = Group(client, **given)  # type: ignore[arg-type]
    group.handler(key="orders.*.{key}")(seen)
    return group


async def test_a_group_works_with_exactly_what_is_listed(server: Server, root: Client) -> None:
    said = len(server.log)
    seen = Seen()
    async with (
        connected(server, "leader") as one,
        connected(server, "worker") as two,
        connected(server, "observer") as eyes,
    ):
        leader, worker = member(one, seen), member(two, seen, can_lead=False)
        async with running(leader):
            await until(lambda: len(leader.partitions) == 4)
            async with running(worker):
                await until(lambda: len(leader.partitions) == len(worker.partitions) == 2)
                for number in range(40):
                    subject = f"orders.{number % 4}.k{number % 8}"
                    await root.jetstream().publish(subject, str(number).encode())
                await until(lambda: len(seen.messages) == 40)
                view = await read_view(eyes, GROUP)
            await until(lambda: len(leader.partitions) == 4)

    assert len(view.members) == 2
    assert seen.of_key(b"k3") == [3, 11, 19, 27, 35]
    assert "Violation" not in server.log[said:]


@pytest.mark.parametrize("policy", ["dead-letter", "park"])
async def test_dead_letters_and_parked_keys_need_nothing_else(
    server: Server, root: Client, policy: str
) -> None:
    said = len(server.log)
    seen = Seen()

    async def handle(message: Message) -> None:
        if message.key == b"bad":
            raise ValueError("never")
        await seen(message)

    async with connected(server, "leader") as client:
        group = Group(
            client, stream=STREAM, name=GROUP, partitions=4, on_failure=policy, max_attempts=1
        )
        group.handler(key="orders.*.{key}")(handle)
        async with running(group):
            await until(lambda: len(group.partitions) == 4)
            for key in ("bad", "good"):
                await root.jetstream().publish(f"orders.1.{key}", b"1")
            await until(lambda: len(seen.messages) == 1)
            async with asyncio.timeout(60):
                while not await _num_letters(root):  # noqa: ASYNC110 - the server is polled
                    await asyncio.sleep(0.05)

    assert "Violation" not in server.log[said:]


async def _num_letters(client: Client) -> int:
    try:
        info = await client.jetstream().stream_info(f"MILLSTREAM_DLQ_{GROUP}")
    except nats.js.errors.NotFoundError:
        return 0
    return info.state.messages


@pytest.mark.parametrize(("kind", "place"), LACKS, ids=[lacking(*it) for it in LACKS])
async def test_what_is_missing_is_named_before_anything_is_changed(
    server: Server, root: Client, kind: str, place: int
) -> None:
    async with connected(server, f"no-{kind}-{place}") as client:
        with pytest.raises(PermissionMissing) as raised:
            await member(client, Seen()).run(handle_signals=False)

    assert raised.value.missing == (lacking(kind, place),)
    assert str(raised.value) == f"group 'g': no permission to {lacking(kind, place)}"
    assert [one.config.name for one in await root.jetstream().streams_info()] == [STREAM]


async def test_a_member_that_may_not_answer_probes_is_told(server: Server, root: Client) -> None:
    del root
    async with connected(server, "mute") as client:
        with pytest.raises(PermissionMissing, match="answer a probe"):
            await member(client, Seen()).run(handle_signals=False)


async def test_many_missing_permissions_are_one_line(server: Server, root: Client) -> None:
    del root
    async with connected(server, "observer") as client:
        with pytest.raises(PermissionMissing, match=r"^group 'g': no permission to .* more$"):
            await member(client, Seen()).run(handle_signals=False)


async def test_a_stranger_is_told_what_looking_at_a_group_needs(
    server: Server, root: Client
) -> None:
    del root
    async with connected(server, "leader") as client:
        with pytest.raises(PermissionMissing, match=r"STREAM\.INFO\.KV_MILLSTREAM_other"):
            await read_view(client, "other")


async def test_trying_permissions_stores_nothing(root: Client, server: Server) -> None:
    seen = Seen()
    async with connected(server, "leader") as client, running(group := member(client, seen)):
        await until(lambda: len(group.partitions) == 4)
        before = await read_view(root, GROUP)
        late = member(client, seen, partitions=5)

        with pytest.raises(Exception, match="4 partitions"):
            await late.run(handle_signals=False)

        assert (await read_view(root, GROUP)).config == before.config
        assert (await root.jetstream().stream_info(STREAM)).state.messages == 0


async def test_a_permission_that_is_taken_away_later_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require.need("nats")
    config = tmp_path / "server.conf"

    def write(needed: Needs) -> None:
        user = f"{{user: u, password: pw, {config_text(needed)}}}"
        config.write_text(
            f'jetstream {{ store_dir: "{tmp_path}/store" }}\n'
            f"authorization {{ users: [{{user: root, password: pw}}, {user}] }}\n"
        )

    saving = f"$KV.MILLSTREAM_{GROUP}.done.*"
    place = [grant.pattern for grant in LEADER.publish].index(saving)
    write(LEADER)
    with Server(
        REAL, tmp_path / "unused", arguments=("-c", str(config)), jetstream=False
    ) as server:
        async with connected(server, "root") as root, connected(server, "u") as client:
            await root.jetstream().add_stream(name=STREAM, subjects=["orders.*.*"])
            async with running(group := member(client, Seen(), member="m")):
                await until(lambda: len(group.partitions) == 4)
                write(without(LEADER, "publish", place))
                os.kill(server.pid, signal.SIGHUP)
                await until(lambda: "Reloaded" in server.log)
                await root.jetstream(timeout=10).publish("orders.1.k", b"1")
                await until(lambda: "no permission" in caplog.text)
                write(LEADER)
                os.kill(server.pid, signal.SIGHUP)
                await until(lambda: server.log.count("Reloaded") > 1)

    said = [one.getMessage() for one in caplog.records if "no permission" in one.getMessage()]
    assert said == [f"group g: no permission to publish to '$KV.MILLSTREAM_{GROUP}.done.m'"]


def test_the_snippet_is_a_users_permissions(tmp_path: Path) -> None:
    del tmp_path
    text = config_text(needs(Role.OBSERVER, GROUP, [STREAM]))

    assert text.startswith('permissions {\n  publish: [\n    "$JS.API.INFO"\n')
    assert '"millstream.group.g.event.*"' in text
    assert "allow_responses" not in text


def test_the_documentation_lists_what_the_code_asks_for() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text()
