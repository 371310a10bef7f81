"""Operators who lack a permission: each command names it, with exit code 2, and changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import nats
import pytest
from nats.aio.client import Client
from typer.testing import CliRunner

from millstream_coordinator import naming
from millstream_coordinator.jetstream.permissions import SERVICE, Needs, Role, config_text, needs
from millstream_coordinator.model import LetterReason, ParkedRecord, PartitionRecord
from millstream_coordinator.operation.cli import app
from tests.helpers import require
from tests.helpers.servers import REAL, Server

from .made_group import make_group, make_letters, make_stream, served

pytestmark = pytest.mark.real_server

T = TypeVar("T")
GROUP = "g"
ADMIN = needs(Role.ADMIN, GROUP, [GROUP])
RUNNER = needs(Role.SERVICE, GROUP, [GROUP])


def without(needed: Needs, pattern: str) -> Needs:
    kept: dict[str, Any] = {
        kind: tuple(it for it in getattr(needed, kind) if it.pattern != pattern)
        for kind in ("publish", "subscribe")
    }
    assert kept != {"publish": needed.publish, "subscribe": needed.subscribe}
    return replace(needed, **kept)


LACKS = [
    (("ls",), "publish to", "$JS.API.STREAM.NAMES"),
    (("ls",), "subscribe to", "_INBOX.>"),
    (("describe", GROUP), "subscribe to", "_INBOX.>"),
    (("describe", GROUP), "subscribe to", "millstream.group.g.heartbeat.*"),
    (("describe", GROUP), "publish to", "$JS.API.CONSUMER.INFO.g.*"),
    (("lag", GROUP), "publish to", "$JS.API.CONSUMER.INFO.g.*"),
    (("events", GROUP, "--follow"), "subscribe to", "millstream.group.g.event.*"),
    (("resume", GROUP), "publish to", "$KV.MILLSTREAM_g.ctl"),
    (("resume", GROUP), "publish to", "$KV.MILLSTREAM_g.part.*"),
    (("drain", GROUP, "a", "--wait"), "publish to", "$KV.MILLSTREAM_g.ctl"),
    (("reset", GROUP, "--to", "latest"), "publish to", "$KV.MILLSTREAM_g.part.*"),
    (("resize", GROUP, "2"), "publish to", "$KV.MILLSTREAM_g.cfg"),
    (("dlq", "replay", GROUP, "--all"), "publish to", "$JS.API.STREAM.MSG.DELETE.MILLSTREAM_DLQ_g"),
    (("dlq", "replay", GROUP, "--all"), "publish to", "$KV.MILLSTREAM_g.parked.*"),
    (("dlq", "drop", GROUP, "--all", "--yes"), "publish to", "$KV.MILLSTREAM_g.parked.*"),
    (("dlq", "replay", GROUP, "1"), "publish to", "g.>"),
    (("delete", GROUP, "--yes"), "publish to", "millstream.group.g.probe.*"),
    (("delete", GROUP, "--yes"), "publish to", "$JS.API.CONSUMER.DELETE.g.*"),
    (("delete", GROUP, "--yes"), "publish to", "$JS.API.STREAM.DELETE.KV_MILLSTREAM_g"),
    (("create", "FILE"), "publish to", "$JS.API.STREAM.CREATE.KV_MILLSTREAM_new"),
    *((("run", GROUP), "subscribe to", one.pattern) for one in SERVICE),
]


def user(command: tuple[str, ...], pattern: str) -> str:
    """Of those who have all that the command needs but this."""
    return f"u{[(it[0], it[2]) for it in LACKS].index((command, pattern))}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a user for each of LACKS, who has all a command needs but one."""
    require.need("nats")
    folder = tmp_path_factory.mktemp("operators")
    also = ["g.>", "$JS.API.STREAM.*.new", "$KV.MILLSTREAM_new.cfg"]
    also += [f"$JS.API.STREAM.{it}.KV_MILLSTREAM_new" for it in ("INFO", "CREATE")]
    lines = []
    for number, (command, _, pattern) in enumerate(LACKS):
        needed = RUNNER if command[0] == "run" else ADMIN
        if pattern not in also:
            needed = without(needed, pattern)
        more = "\n".join(f'    "{it}"' for it in also if it != pattern)
        text = config_text(needed).replace("publish: [", f"publish: [\n{more}", 1)
        lines.append(f"{{user: u{number}, password: pw, {text}}}")
    config = folder / "server.conf"
    config.write_text(
        f'jetstream {{ store_dir: "{folder}/store" }}\n'
        "authorization { users: [{user: root, password: pw}\n" + "\n".join(lines) + "] }\n"
    )
    with Server(REAL, folder / "unused", arguments=("-c", str(config)), jetstream=False) as opened:
        asyncio.run(_make(opened.url.replace("nats://", "nats://root:pw@")))
        yield opened


async def _make(url: str) -> None:
    """A group that every command could change: nothing here may, so it is made once."""
    client = await nats.connect(url)
    await make_stream(client, GROUP, ["0.a", "1.x", "0.b"])
    stopped = PartitionRecord(epoch=2, owner="b", stopped_seq=2, stopped_error="ValueError: x")
    records = {**served("ab"), naming.partition_key(1): stopped}
    records[naming.parked_key(0)] = ParkedRecord(keys={"p": 12})
    await make_group(client, GROUP, records, partitions=2)
    await client.jetstream().add_consumer(GROUP, durable_name=naming.consumer(GROUP, 0, 1))
    await make_letters(client, GROUP, "k")
    await make_letters(client, GROUP, "p", reason=LetterReason.PARK)
    await client.close()


def at(server: Server, name: str) -> str:
    return server.url.replace("nats://", f"nats://{name}:pw@")


async def _state(client: Client) -> dict[str | None, tuple[int, int, int]]:
    """Last sequence, messages and consumers of every stream."""
    infos = await client.jetstream().streams_info()
    states = ((it.config.name, it.state) for it in infos)
    return {name: (it.last_seq, it.messages, it.consumer_count) for name, it in states}


def on(server: Server, work: Callable[[Client], Awaitable[T]]) -> T:
    async def run() -> T:
        client = await nats.connect(at(server, "root"))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("command", "verb", "pattern"), LACKS, ids=[f"{it[0][0]} {it[2]}" for it in LACKS]
)
def test_the_permission_that_is_missing_is_named_before_anything_is_changed(
    server: Server, tmp_path: Path, command: tuple[str, ...], verb: str, pattern: str
) -> None:
    file = tmp_path / "new.toml"
    file.write_text('[topic.new]\nsubject = "new.{partition}.{k}"\npartitions = 2\n[group.new]\n')
    before = on(server, _state)

    arguments = [str(file) if it == "FILE" else it for it in command]
    result = CliRunner().invoke(app, [*arguments, "--nats", at(server, user(command, pattern))])

    beginning = pattern.rstrip("*>").rstrip(".")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"no permission to {verb} '{beginning}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert on(server, _state) == before
