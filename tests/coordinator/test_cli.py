"""``millstream coordinator``: what it prints, its exit codes, how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats
import pytest
from nats.js.api import KeyValueConfig, RetentionPolicy, StreamConfig
from typer.testing import CliRunner

from millstream_coordinator import naming
from millstream_coordinator.model import (
    ConfigRecord,
    MemberRecord,
    PartitionRecord,
    PartitionState,
    Record,
    encode,
)
from millstream_coordinator.operation.cli import app
from millstream_coordinator.operation.cli_look import MEMBER_COLUMNS, PARTITION_COLUMNS
from tests.helpers.servers import Server

COMMAND = (sys.executable, "-m", "millstream", "coordinator")
READY_WAIT_S = 60.0


@pytest.fixture
def described(server: Server, name: str) -> str:
    """A group of two partitions, one of them served, three messages waiting."""

    async def make() -> None:
        client = await nats.connect(server.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
        for subject in ("0.a", "1.a", "1.b"):
            await jetstream.publish(f"{name}.{subject}", b"")
        bucket = await jetstream.create_key_value(KeyValueConfig(bucket=naming.bucket(name)))
        records: dict[str, Record] = {
            naming.CONFIG_KEY: ConfigRecord(
                partitions=2, stream=name, filter=f"{name}.{{partition}}.*"
            ),
            naming.member_key("w"): MemberRecord(instance="i", host="host1", labels={"a": "[b]"}),
            naming.partition_key(0): PartitionRecord(
                epoch=5, owner="w", state=PartitionState.OWNED
            ),
        }
        for key, record in records.items():
            await bucket.put(key, encode(record))
        await client.close()

    asyncio.run(make())
    return name


@pytest.fixture
def new_stream(server: Server, name: str) -> str:
    """A stream, and no group yet; both of the same name."""

    async def make() -> None:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
        await client.close()

    asyncio.run(make())
    return name


def coordinator(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``millstream coordinator``."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_describe_prints_plain_lines_where_there_is_no_terminal(
    server: Server, described: str
) -> None:
    code, out, err = coordinator("describe", described, "--nats", server.url)

    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0] == list(PARTITION_COLUMNS)
    assert lines[1] == [described, "0", "0", "1", "1", "w", "host1", "5", "owned"]
    assert lines[2] == [described, "1", "0", "3", "2", "-", "-", "0", "free"]
    assert lines[4] == list(MEMBER_COLUMNS)
    assert lines[5] == ["w", "host1", "0", "1", "0", "a=[b]", "-", "silent", "member"]
    assert out.splitlines()[7] == f"stream {described}, lag 3, nobody leads, on failure: retry"


def test_describe_json_is_one_document_with_its_schema(server: Server, described: str) -> None:
    code, out, _ = coordinator("describe", described, "--nats", server.url, "--json")

    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "millstream.coordinator.describe/1"
    assert [row["lag"] for row in document["partitions"]] == [1, 2]


def test_describe_draws_a_table_on_a_terminal(server: Server, described: str) -> None:
    result = CliRunner().invoke(
        app,
        ["describe", described, "--nats", server.url],
        env={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "120"},
    )

    assert result.exit_code == 0
    assert "\x1b[" in result.stdout
    assert "a=[b]" in result.stdout


def test_an_unknown_group_is_one_line_and_exit_2(server: Server, name: str) -> None:
    code, out, err = coordinator("describe", name, "--nats", server.url)

    assert (code, out) == (2, "")
    assert err == f"millstream coordinator describe: group {name!r} not found\n"


@pytest.mark.parametrize("key", [naming.partition_key(1), naming.CONTROL_KEY])
def test_a_record_that_is_none_is_one_line_that_names_its_key(
    server: Server, described: str, key: str
) -> None:
    async def spoil() -> None:
        client = await nats.connect(server.url)
        bucket = await client.jetstream().key_value(naming.bucket(described))
        await bucket.put(key, b"{}}")
        await client.close()

    asyncio.run(spoil())
    code, out, err = coordinator("describe", described, "--nats", server.url)

    assert (code, out) == (2, "")
    assert f"key '{key}': " in err
    assert err.count("\n") == 1


def test_leading_an_unknown_group_without_saying_what_it_is_is_exit_2(
    server: Server, name: str
) -> None:
    code, out, err = coordinator("run", name, "--nats", server.url)

    assert (code, out) == (2, "")
    assert err == f"millstream coordinator run: group {name!r} not found\n"


@pytest.mark.parametrize("command", ["describe", "run"])
def test_a_name_no_group_can_have_is_exit_2(command: str) -> None:
    code, _, err = coordinator(command, "a.b")

    assert code == 2
    assert "group name 'a.b'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["describe", "run"])
def test_a_server_that_is_not_there_is_one_line_and_exit_3(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_CONNECT_TIMEOUT", "0.3")

    code, out, err = coordinator(command, "delays", "--nats", "nats://127.0.0.1:1")

    assert (code, out) == (3, "")
    assert err.startswith(f"millstream coordinator {command}: NATS server nats://127.0.0.1:1: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_connecting_ends_it_at_once(number: signal.Signals, code: int) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
    with silent:
        process = subprocess.Popen(
            [*COMMAND, "run", "delays", "--nats", url],
            env={**os.environ, "MILLSTREAM_COORDINATOR_CONNECT_TIMEOUT": "600"},
        )
        silent.settimeout(READY_WAIT_S)
        try:
            with silent.accept()[0]:
                process.send_signal(number)
                assert process.wait(READY_WAIT_S) == code
        finally:
            process.kill()
            process.wait()


def test_a_server_without_jetstream_is_exit_3(server: Server, tmp_path: Path) -> None:
    with Server(server.kind, tmp_path, jetstream=False) as plain:
        code, _, err = coordinator("describe", "delays", "--nats", plain.url)

    assert code == 3
    assert err.count("\n") == 1


@pytest.mark.parametrize("url", ["nats://127.0.0.1:port", "nats://", ""])
def test_a_url_that_is_none_is_one_line_and_exit_2(url: str) -> None:
    code, _, err = coordinator("describe", "delays", "--nats", url)

    assert code == 2
    assert "nats_url" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("timeout", ["soon", "0.3"])
def test_a_wrong_setting_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, timeout: str
) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_HEARTBEAT_TIMEOUT", timeout)

    code, _, err = coordinator("run", "delays")

    assert code == 2
    assert "heartbeat_timeout" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options", [("--stream", "S"), ("--key", "a.*.{key}"), ("--stream", "S", "--partitions", "3")]
)
def test_half_a_definition_of_a_new_group_is_exit_2(options: tuple[str, ...]) -> None:
    code, _, err = coordinator("run", "delays", *options)

    assert code == 2
    assert err == ("millstream coordinator run: a new group is --stream, --key and --partitions\n")


def test_a_key_rule_that_does_not_fit_the_stream_is_exit_2(server: Server, new_stream: str) -> None:
    code, _, err = coordinator("run", new_stream, *new_group(server, new_stream, "other.*.{key}"))

    assert code == 2
    assert "key rule 'other.*.{key}'" in err
    assert err.count("\n") == 1


def new_group(server: Server, stream: str, key: str = "") -> tuple[str, ...]:
    """Options that say where the server is and what a new group is to be."""
    options = ("--nats", server.url, "--stream", stream, "--partitions", "3")
    return (*options, "--key", key or f"{stream}.*.{{key}}")


@contextmanager
def running(*arguments: str, ready: Path) -> Iterator[subprocess.Popen[str]]:
    """``millstream coordinator run`` as a process, from the moment it is ready."""
    process = subprocess.Popen(
        [*COMMAND, "run", *arguments, "--ready-file", str(ready)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(int(READY_WAIT_S / 0.02)):
            if ready.exists():
                break
            try:
                code = process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"ended with {code}: {process.communicate()[1]}")
        else:
            pytest.fail("not ready in time")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_leads_a_new_group_and_ends_cleanly_on_sigterm(
    server: Server, new_stream: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    arguments = (new_stream, *new_group(server, new_stream))
    with running(*arguments, "--member", "boss", ready=ready) as process:
        facts = json.loads(ready.read_text())
        code, out, _ = coordinator("describe", new_stream, "--nats", server.url, "--json")
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=READY_WAIT_S)

    document = json.loads(out)
    assert facts["pid"] == process.pid
    assert facts["nats"] == server.url
    assert (code, document["stream"], len(document["partitions"])) == (0, new_stream, 3)
    assert [member["member"] for member in document["members"]] == ["boss"]
    assert f"coordinator ready: can lead {new_stream} at {server.url}" in printed
    assert (process.returncode, errors) == (0, "")


def test_sigint_is_130(server: Server, new_stream: str, tmp_path: Path) -> None:
    arguments = (new_stream, *new_group(server, new_stream))
    with running(*arguments, ready=tmp_path / "ready.json") as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=READY_WAIT_S)

    assert process.returncode == 130


def test_it_ends_when_its_parents_pipe_does(
    server: Server, new_stream: str, tmp_path: Path
) -> None:
    arguments = (new_stream, *new_group(server, new_stream))
    with running(*arguments, "--end-with-stdin", ready=tmp_path / "ready.json") as process:
        process.communicate(timeout=READY_WAIT_S)

    assert process.returncode == 0
    assert not _is_alive(process.pid)


def test_sigterm_ends_it_cleanly_while_its_standard_input_is_watched(
    server: Server, new_stream: str, tmp_path: Path
) -> None:
    arguments = (new_stream, *new_group(server, new_stream))
    with running(*arguments, "--end-with-stdin", ready=tmp_path / "ready.json") as process:
        process.send_signal(signal.SIGTERM)
        code = process.wait(READY_WAIT_S)  # its standard input stays open

    assert code == 0


def test_a_ready_file_that_cannot_be_written_is_one_line_and_exit_2(
    server: Server, new_stream: str, tmp_path: Path
) -> None:
    file = tmp_path / "nowhere" / "ready.json"

    code, _, err = coordinator(
        "run", new_stream, *new_group(server, new_stream), "--ready-file", str(file)
    )

    assert code == 2
    assert err == f"millstream coordinator run: cannot write {file}: No such file or directory\n"


def test_an_existing_group_is_led_as_it_is(server: Server, described: str, tmp_path: Path) -> None:
    with running(described, "--nats", server.url, ready=tmp_path / "ready.json") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=READY_WAIT_S)

    assert process.returncode == 0


@pytest.mark.parametrize("stream", ["NOWHERE", "NO.WHERE", "*"])
def test_a_stream_that_is_not_there_is_one_line_and_exit_2(
    server: Server, name: str, stream: str
) -> None:
    code, _, err = coordinator("run", name, *new_group(server, stream, "n.*.{key}"))

    assert code == 2
    assert f"stream {stream!r} not found" in err
    assert err.count("\n") == 1


def test_a_stream_that_cannot_carry_a_group_is_one_line_and_exit_2(
    server: Server, name: str
) -> None:
    async def make() -> None:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(
            StreamConfig(name=name, subjects=[f"{name}.>"], retention=RetentionPolicy.INTEREST)
        )
        await client.close()

    asyncio.run(make())
    code, out, err = coordinator("run", name, *new_group(server, name))

    assert (code, out) == (2, "")
    assert f"stream {name!r} cannot carry the group" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--nats", "--server", "-s"])
def test_where_the_server_is_can_be_said_in_three_ways(
    server: Server, described: str, option: str
) -> None:
    code, _, err = coordinator("describe", described, option, server.url)

    assert (code, err) == (0, "")


def test_nats_url_says_where_the_server_is_unless_the_coordinators_own_variable_does(
    server: Server, described: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    by_the_common_one, _, _ = coordinator("describe", described)
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_NATS_URL", server.url)
    by_its_own, _, _ = coordinator("describe", described)

    assert (by_the_common_one, by_its_own) == (0, 0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
