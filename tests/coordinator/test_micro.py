"""The coordinator as a NATS micro service: plain JSON requests, documents, errors in headers."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client

from millstream_coordinator import naming
from millstream_coordinator.operation.micro import NAME, Micro
from millstream_coordinator.operation.service import Service
from millstream_coordinator.operation.settings import CoordinatorSettings
from tests.coordinator.made_group import (
    control,
    make_group,
    make_letters,
    make_stream,
    partition,
    served,
)
from tests.helpers import require
from tests.helpers.servers import Server

ERROR, CODE = "Nats-Service-Error", "Nats-Service-Error-Code"


@pytest.fixture(autouse=True)
async def serving(client: Client) -> AsyncIterator[None]:
    """The endpoints, on the test's own connection."""
    async with Micro(client, Service(client, CoordinatorSettings())).serving():
        yield


@pytest.fixture
async def group(client: Client, name: str) -> str:
    """Two partitions of a stream with three messages, two members, a dead letter."""
    await make_stream(client, name, ["0.a", "1.x", "0.b"])
    await make_group(client, name, served(["a", "b"]), partitions=2)
    await make_letters(client, name, "k")
    return name


async def ask(client: Client, command: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """The document, and the error's code and text ("" when it is none)."""
    reply = await client.request(
        f"{naming.REQUESTS}.{command}", json.dumps(fields).encode(), timeout=5
    )
    if reply.headers and ERROR in reply.headers:
        return {}, f"{reply.headers[CODE]} {reply.headers[ERROR]}"
    return json.loads(reply.data), ""


REQUESTS: dict[str, dict[str, Any]] = {
    "ls": {},
    "describe": {},
    "members": {},
    "lag": {},
    "events": {},
    "pause": {"partitions": [1]},
    "resume": {},
    "drain": {"member": "a"},
    "move": {"partitions": [1], "to": "a"},
    "reset": {"to": "latest", "yes": True},
    "delete": {"yes": True},
    "dlq.ls": {},
    "dlq.show": {"letter": 1},
    "dlq.replay": {"all": True},
    "dlq.drop": {"letters": [1], "yes": True},
}


@pytest.mark.parametrize("command", REQUESTS)
async def test_each_request_is_answered_with_its_document(
    client: Client, group: str, command: str
) -> None:
    fields = REQUESTS[command] if command == "ls" else {"group": group, **REQUESTS[command]}

    document, error = await ask(client, command, **fields)

    assert error == ""
    assert document["schema"] == f"{naming.REQUESTS}.{command}/1"


@pytest.mark.parametrize("command", [it for it in REQUESTS if it != "ls"])
async def test_a_group_that_is_not_there_is_404(client: Client, name: str, command: str) -> None:
    _, error = await ask(client, command, group=name, **REQUESTS[command])

    assert error == f"404 group {name!r} not found"


async def test_a_request_changes_the_group(client: Client, group: str) -> None:
    target = Service(client, CoordinatorSettings()).target(group)
    await ask(client, "pause", group=group)
    await ask(client, "drain", group=group, member="b")
    await ask(client, "move", group=group, partitions=[1], to="a")
    before = await control(target)
    await ask(client, "resume", group=group)
    await ask(client, "drain", group=group, member="b", undo=True)
    await ask(client, "move", group=group, partitions=[1], to=None)
    after = await control(target)

    assert (before.is_paused, before.draining, before.pins) == (True, ("b",), {1: "a"})
    assert (after.is_paused, after.draining, after.pins) == (False, (), {})


async def test_positions_are_given_for_each_partition(client: Client, group: str) -> None:
    target = Service(client, CoordinatorSettings()).target(group)

    positions = {"0": "sequence:2", "1": "latest"}
    await ask(client, "reset", group=group, positions=positions, yes=True)

    assert [(await partition(target, it)).floor for it in (0, 1)] == [1, 3]


@pytest.mark.parametrize(
    ("command", "fields", "error"),
    [
        ("pause", {"partition": [1]}, "400 Object contains unknown field `partition`"),
        ("pause", {"partitions": ["x"]}, "400 Expected `int`"),
        ("drain", {}, "400 Object missing required field `member`"),
        ("reset", {"to": "latest"}, '400 this cannot be undone: say "yes": true'),
        ("delete", {}, '400 this cannot be undone: say "yes": true'),
        ("resize", {"partitions": 4}, '400 this cannot be undone: say "yes": true'),
        ("dlq.drop", {"all": True}, '400 this cannot be undone: say "yes": true'),
        ("reset", {"yes": True}, "400 say either to or positions"),
        ("reset", {"to": "soon", "yes": True}, "400 'soon' is none of"),
        ("dlq.replay", {}, "400 say which: letters, key, partition, or all"),
        ("pause", {"partitions": [7]}, "404 "),
        ("drain", {"member": "nobody"}, "404 "),
        ("dlq.show", {"letter": 9}, "404 "),
        ("resize", {"partitions": 4, "yes": True}, "409 "),
        ("resume", {"skip": True}, "409 "),
    ],
)
async def test_what_is_wrong_is_an_error_in_the_headers(
    client: Client, group: str, command: str, fields: dict[str, Any], error: str
) -> None:
    _, told = await ask(client, command, group=group, **fields)

    assert told.startswith(error)
    assert "\n" not in told


async def test_what_is_no_json_is_400(client: Client) -> None:
    reply = await client.request(f"{naming.REQUESTS}.pause", b"pause!", timeout=5)

    assert reply.headers is not None
    assert reply.headers[CODE] == "400"


async def test_a_name_no_group_can_have_is_400(client: Client) -> None:
    _, error = await ask(client, "describe", group="a.b")

    assert error.startswith("400 group name 'a.b'")


async def test_a_dry_run_needs_no_yes(client: Client, group: str) -> None:
    document, error = await ask(client, "reset", group=group, to="latest", dry_run=True)

    assert error == ""
    assert document["dry_run"]


async def test_it_is_found_as_a_micro_service_with_its_endpoints(client: Client) -> None:
    reply = await client.request(f"$SRV.INFO.{NAME}", b"", timeout=5)

    info = json.loads(reply.data)
    subjects = {it["subject"] for it in info["endpoints"]}
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert subjects == {f"{naming.REQUESTS}.{it}" for it in (*REQUESTS, "resize")}


@pytest.mark.natscli
@pytest.mark.parametrize("verb", [("ls",), ("info", NAME), ("stats", NAME)])
async def test_the_nats_command_sees_it(server: Server, verb: tuple[str, ...]) -> None:
    require.need("natscli")
    process = await asyncio.create_subprocess_exec(
        str(require.nats_cli()),
        "--server",
        server.url,
        "micro",
        *verb,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()

    assert process.returncode == 0
    assert NAME in out.decode()
