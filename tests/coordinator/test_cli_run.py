"""Commands that go on until they are told to end: ``run``, ``--watch``, ``--follow``."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

import nats
import pytest
from typer.testing import CliRunner

from millstream_coordinator import naming
from millstream_coordinator.events import Joined, encode_events, event_object
from millstream_coordinator.operation.cli import app
from tests.coordinator.made_group import make_group, make_stream
from tests.helpers.servers import EMBEDDED, Server

T = TypeVar("T")

COMMAND = (sys.executable, "-m", "millstream", "coordinator")
WAIT_S = 60.0


@pytest.fixture
def group(server: Server, name: str) -> str:
    """A group of one partition and its stream."""

    async def make() -> None:
        client = await nats.connect(server.url)
        await make_stream(client, name, ["0.a"])
        await make_group(client, name)
        await client.close()

    asyncio.run(make())
    return name


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``millstream coordinator`` as a process; it is gone afterwards."""
    started = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def line_of(started: subprocess.Popen[str]) -> str:
    """Its next line; pytest's own timeout ends a test that waits in vain."""
    assert started.stdout is not None
    return started.stdout.readline()


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command that ends by itself."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stderr


def test_the_service_leads_all_groups_and_serves_metrics_and_health(
    server: Server, group: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    options = ("--all", "--http", "127.0.0.1:0", "--ready-file", str(ready))

    with process("run", *options, "--nats", server.url) as started:
        line = line_of(started)
        while "coordinator ready" not in line:
            line = line_of(started)
        facts = json.loads(ready.read_text())
        health = json.load(urlopen(f"{facts['http']}/healthz", timeout=WAIT_S))
        metrics = urlopen(f"{facts['http']}/metrics", timeout=WAIT_S).read().decode()
        started.send_signal(signal.SIGTERM)
        code = started.wait(WAIT_S)

    assert group in facts["groups"]
    assert facts["micro"] == "millstream-coordinator"
    assert health["groups"][group]["joined"]
    assert f'millstream_coordinator_joined{{group="{group}"}} 1.0' in metrics
    assert code == 0


def test_its_log_is_one_json_object_per_line(server: Server, group: str) -> None:
    with process("run", group, "--log-json", "--nats", server.url) as started:
        told = [json.loads(line_of(started))]
        while told[-1]["event"] != "ready":
            told.append(json.loads(line_of(started)))
        started.send_signal(signal.SIGTERM)
        assert started.stdout is not None
        told += [json.loads(line) for line in started.stdout]

    events = [(it["event"], it.get("group")) for it in told]
    assert ("joined", group) in events
    assert ("left", group) in events


def test_a_file_says_what_the_command_line_does_not(
    server: Server, group: str, tmp_path: Path
) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text(f'nats_url = "{server.url}"\ngroups = ["{group}"]\nmember = "from-the-file"\n')

    with process("run", "--config", str(file)) as started:
        line = line_of(started)
        while "coordinator ready" not in line:
            line = line_of(started)
        document = CliRunner().invoke(app, ["members", group, "--json", "--config", str(file)])
        started.send_signal(signal.SIGTERM)
        started.wait(WAIT_S)

    members = json.loads(document.stdout)["members"]
    assert [it["member"] for it in members] == ["from-the-file"]
    assert line == f"coordinator ready: can lead {group} at {server.url}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("groups = [", "is no TOML"),
        ("colour = 1", "coordinator.toml has it, and there is no such setting"),
        ('http = "9464"', "http: '9464' is not HOST:PORT"),
        ('creds = "nowhere"', "creds: cannot read nowhere"),
        ('tls_cert = "{file}"', "tls_cert and tls_key go together"),
        ('domain = "a"\njs_prefix = "b"', "either domain or api_prefix"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_and_exit_2(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "coordinator.toml"
    file.write_text(text.replace("{file}", str(file)))

    code, err = run("run", "g", "--config", str(file))

    assert code == 2
    assert reason in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_line_and_exit_2() -> None:
    code, err = run("run", "g", "--config", "nowhere.toml")

    assert code == 2
    assert "cannot read nowhere.toml: No such file" in err


@pytest.mark.parametrize("arguments", [(), ("g", "--all")])
def test_groups_are_named_or_all(arguments: tuple[str, ...]) -> None:
    code, err = run("run", *arguments)

    assert code == 2
    assert "name the groups to lead, or say --all" in err


def test_an_http_address_that_is_taken_is_one_line_and_exit_2(server: Server, group: str) -> None:
    port = server.url.rpartition(":")[2]

    code, err = run("run", group, "--nats", server.url, "--http", f"127.0.0.1:{port}")

    assert code == 2
    assert f"cannot serve HTTP on 127.0.0.1:{port}" in err


def test_watching_prints_the_group_again_and_again_until_interrupted(
    server: Server, group: str
) -> None:
    options = ("--watch", "--interval", "0.1", "--nats", server.url)

    with process("describe", group, *options) as started:
        heads = 0
        while heads < 2:
            heads += line_of(started).startswith("GROUP ")
        started.send_signal(signal.SIGINT)
        code = started.wait(WAIT_S)

    assert code == 130


@pytest.mark.parametrize(
    "command", [("describe", "g", "--watch", "--interval", "0.1"), ("run", "--all")]
)
def test_an_interrupt_while_the_server_is_gone_ends_as_any_other(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    async def make(url: str) -> None:
        client = await nats.connect(url)
        await make_stream(client, "g", ["0.a"])
        await make_group(client, "g")
        await client.close()

    with Server(EMBEDDED, tmp_path / "store") as own:
        asyncio.run(make(own.url))
        with process(*command, "--nats", own.url) as started:
            line_of(started)
            own.kill()
            assert started.stderr is not None
            if "--watch" in command:
                started.stderr.readline()  # it noticed
            started.send_signal(signal.SIGINT)
            code = started.wait(WAIT_S)
            said = started.stderr.read()

    assert "Traceback" not in said
    assert code == 130


def test_watching_as_json_is_one_document_per_line(server: Server, group: str) -> None:
    options = ("--watch", "--json", "--interval", "0.1", "--nats", server.url)

    with process("describe", group, *options) as started:
        documents = [json.loads(line_of(started)) for _ in range(2)]

    assert [it["schema"] for it in documents] == ["millstream.coordinator.describe/1"] * 2


def while_told(server: Server, group: str, work: Callable[[], T]) -> T:
    """What ``work`` returns; until then a member tells of another, again and again."""
    live = event_object(Joined(member="late"), group=group, member="late", at_ns=0)

    async def tell() -> T:
        client = await nats.connect(server.url)
        working = asyncio.create_task(asyncio.to_thread(work))
        async with asyncio.timeout(WAIT_S):
            while not working.done():
                await client.publish(naming.event(group, "late"), encode_events(live))
                await asyncio.sleep(0.05)
        await client.close()
        return await working

    return asyncio.run(tell())


def test_following_tells_what_happens_now_until_it_is_ended(server: Server, group: str) -> None:
    with process("events", group, "--follow", "--nats", server.url) as started:
        line = while_told(server, group, lambda: line_of(started))
        started.send_signal(signal.SIGTERM)
        code = started.wait(WAIT_S)

    assert line.endswith(" late: late joined\n")
    assert code == 0


def test_following_ends_when_nobody_reads_any_more(server: Server, group: str) -> None:
    with process("events", group, "--follow", "--nats", server.url) as started:
        while_told(server, group, lambda: line_of(started))
        assert started.stdout is not None
        started.stdout.close()
        code = while_told(server, group, lambda: started.wait(WAIT_S))
        assert started.stderr is not None
        said = started.stderr.read()

    assert (code, said) == (0, "")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watching_ends_when_nobody_reads_any_more(
    server: Server, group: str, options: tuple[str, ...]
) -> None:
    watch = ("--watch", "--interval", "0.1", "--nats", server.url)

    with process("describe", group, *watch, *options) as started:
        line_of(started)
        assert started.stdout is not None
        started.stdout.close()
        code = started.wait(WAIT_S)
        assert started.stderr is not None
        said = started.stderr.read()

    assert (code, said) == (0, "")
