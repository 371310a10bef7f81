"""The ``nats`` command against both servers: exit codes and the lines people read."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.client import Client, eventually
from tests.helpers import require
from tests.helpers.servers import Server

pytestmark = pytest.mark.natscli


@dataclass(frozen=True)
class Outcome:
    code: int
    text: str

    def has(self, pattern: str) -> bool:
        """Whether a line matches, blanks around it aside."""
        return any(re.fullmatch(pattern, line.strip()) for line in self.text.splitlines())


class Nats:
    """Runs ``nats`` with a home of its own, so that no context of the user's is read."""

    def __init__(self, url: str, home: Path) -> None:
        self._command = [str(require.nats_cli()), "--server", url]
        places = {key: str(home) for key in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
        self._environment = {**os.environ, **places}

    async def __call__(self, *arguments: str) -> Outcome:
        async with self.started(*arguments) as process:
            async with asyncio.timeout(20):
                output, _ = await process.communicate()
        return Outcome(process.returncode or 0, output.decode())

    @asynccontextmanager
    async def started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """The command in the background; it is ended with the block."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@pytest.fixture
def nats(server: Server, tmp_path: Path) -> Nats:
    require.need("natscli")
    return Nats(server.url, tmp_path)


async def listens(client: Client, subject: str) -> None:
    """Wait until somebody subscribed to the subject (nobody answers, but nobody is told so)."""

    async def heard() -> bool:
        inbox = await client.subscribe()
        await client.publish(subject, b"are you there?", reply=inbox.subject)
        await client.settle()
        found = not (inbox.waiting and inbox.waiting[0].status == (503, ""))
        await inbox.unsubscribe()
        return found

    await eventually(heard)


async def test_pub_says_what_it_published(nats: Nats, name: str) -> None:
    outcome = await nats("pub", f"{name}.packages", "a message of 27 bytes, yes!")

    assert outcome.code == 0
    assert outcome.has(rf'\d\d:\d\d:\d\d Published 27 bytes to "{name}\.packages"')


async def test_sub_prints_what_it_receives(nats: Nats, client: Client, name: str) -> None:
    async with nats.started("sub", f"{name}.x", "--count", "1") as process:
        await listens(client, f"{name}.x")
        async with asyncio.timeout(10):
            output, _ = await process.communicate()
    outcome = Outcome(process.returncode or 0, output.decode())

    assert outcome.code == 0
    assert outcome.has(rf"\d\d:\d\d:\d\d Subscribing on {name}\.x")
    assert outcome.has(rf'\[#1\] Received on "{name}\.x" with reply "_INBOX\.\w+"')
    assert outcome.has(r"are you there\?")


async def test_request_gets_the_reply(nats: Nats, client: Client, name: str) -> None:
    async with nats.started("reply", f"{name}.help", "OK {{Request}}", "--count", "2"):
        await listens(client, f"{name}.help")
        outcome = await nats("request", f"{name}.help", "please")

    assert outcome.code == 0
    assert outcome.has("OK please")


async def test_request_tells_that_nobody_listens(nats: Nats, name: str) -> None:
    outcome = await nats("request", f"{name}.nobody", "x")

    assert outcome.code == 0
    assert outcome.has(r"\d\d:\d\d:\d\d No responders are available")


async def test_a_streams_life(nats: Nats, name: str) -> None:
    added = await nats("stream", "add", name, "--subjects", f"{name}.>", "--defaults")
    published = await nats("pub", f"{name}.1", "one", "--jetstream")
    names = await nats("stream", "ls", "--names")
    info = await nats("stream", "info", name)
    got = await nats("stream", "get", name, "1")
    subjects = await nats("stream", "subjects", name)
    purged = await nats("stream", "purge", name, "--force")
    removed = await nats("stream", "rm", name, "--force")
    missing = await nats("stream", "info", name)

    assert added.code == 0
    assert added.has(f"Stream {name} was created")
    assert published.has(rf"\d\d:\d\d:\d\d Stored in Stream: {name} Sequence: 1")
    assert names.has(name)
    assert info.has(rf"Subjects: {name}\.>")
    assert info.has("Retention: Limits")
    assert info.has("Messages: 1")
    assert info.has(rf"Bytes: {22 + len(name) + 2 + 3 + 8} B")
    assert got.has("one")
    assert subjects.has(rf"│ {name}\.1 +│ 1 +│.*")
    assert purged.has(f"Purged 1 messages from {name}")
    assert removed.code == 0
    assert missing.code == 1


async def test_a_consumers_life(nats: Nats, client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)

    added = await nats("consumer", "add", name, "C", "--pull", "--defaults")
    names = await nats("consumer", "ls", name, "--names")
    read = await nats("consumer", "next", name, "C", "--count", "2")
    info = await nats("consumer", "info", name, "C")
    removed = await nats("consumer", "rm", name, "C", "--force")
    missing = await nats("consumer", "info", name, "C")

    assert added.code == 0
    assert added.has("Ack Policy: Explicit")
    assert added.has("Unprocessed Messages: 2")
    assert names.has("C")
    assert read.has(
        rf"\[\d\d:\d\d:\d\d\] subj: {name}\.a / tries: 1 / cons seq: 2 / str seq: 2 / pending: 0"
    )
    assert read.text.count("Acknowledged message") == 2
    assert info.has("Outstanding Acks: 0 out of maximum 1,000")
    assert info.has(r"Acknowledgment Floor: Consumer sequence: 2 Stream sequence: 2 Last Ack: .*")
    assert removed.code == 0
    assert missing.code == 1


async def test_a_buckets_life(nats: Nats, name: str) -> None:
    added = await nats("kv", "add", name, "--history", "5")
    put = await nats("kv", "put", name, "k", "v")
    got = await nats("kv", "get", name, "k", "--raw")
    taken = await nats("kv", "create", name, "k", "v2")
    updated = await nats("kv", "update", name, "k", "v2", "1")
    keys = await nats("kv", "ls", name)
    history = await nats("kv", "history", name, "k")
    deleted = await nats("kv", "del", name, "k", "--force")
    gone = await nats("kv", "get", name, "k")
    removed = await nats("kv", "del", name, "--force")

    assert added.has("History Kept: 5")
    assert (put.code, got.code) == (0, 0)
    assert got.has("v")
    assert taken.code == 1
    assert "err_code=10071" in taken.text
    assert updated.code == 0
    assert keys.has("k")
    assert history.has(r"│ k +│ +2 │ PUT │ .*v2 +│")
    assert deleted.code == 0
    assert gone.code == 1
    assert removed.code == 0


async def test_a_bucket_watched(nats: Nats, name: str) -> None:
    await nats("kv", "add", name)
    await nats("kv", "put", name, "before", "1")
    async with nats.started("kv", "watch", name) as process:
        assert process.stdout is not None
        async with asyncio.timeout(10):
            first = (await process.stdout.readline()).decode()
            await nats("kv", "put", name, "after", "2")
            await nats("kv", "del", name, "before", "--force")
            later = [(await process.stdout.readline()).decode() for _ in range(2)]
    await nats("kv", "del", name, "--force")

    assert re.search(rf"PUT {name} > before: 1$", first.strip())
    assert re.search(rf"PUT {name} > after: 2$", later[0].strip())
    assert re.search(rf"DELETE {name} > before$", later[1].strip())


async def test_account_info_reads_jetstream(nats: Nats) -> None:
    outcome = await nats("account", "info")

    assert outcome.code == 0
    assert outcome.has("JetStream Account Information:")
    assert outcome.has("Max Message Payload: 1.0 MiB")


async def test_rtt_measures(nats: Nats, server: Server) -> None:
    outcome = await nats("rtt")

    assert outcome.code == 0
    assert outcome.has(rf"nats://127\.0\.0\.1:{server.port}: [\d.]+(µs|ms)")
