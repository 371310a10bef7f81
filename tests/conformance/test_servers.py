"""The harness itself: ports, kills, restarts, and that nothing is left behind."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance.client import eventually
from tests.conformance.conftest import OpenServer
from tests.helpers import require
from tests.helpers.raw import QUIET, RawClient
from tests.helpers.servers import ServerFailed

ORPHAN = """
import os, signal, sys
from tests.helpers.servers import Server
server = Server(sys.argv[1], sys.argv[2]).open()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_sigterm_ends_it_with_code_0(open_server: OpenServer) -> None:
    async with open_server() as server:
        assert await server.stop() == 0
        assert not server.is_running


async def test_a_killed_server_comes_back_on_its_port(open_server: OpenServer) -> None:
    async with open_server() as server:
        port = server.port
        server.kill()
        assert not server.is_running

        await server.restart()

        async with RawClient.open(port, QUIET) as client:
            assert await client.flush() == b""


async def test_a_paused_server_answers_when_resumed(open_server: OpenServer) -> None:
    async with open_server() as server, RawClient.open(server.port, QUIET) as client:
        server.pause()
        await client.send(b"PING\r\n")
        with pytest.raises(TimeoutError):
            await client.operation(timeout_s=0.1)

        server.resume()

        assert await client.operation() == b"PONG\r\n"


async def test_a_wrong_flag_is_an_error_with_the_servers_words(open_server: OpenServer) -> None:
    with pytest.raises(ServerFailed, match="no-such-flag"):
        async with open_server(arguments=("--no-such-flag",)):
            pass


async def test_a_port_in_use_is_an_error(open_server: OpenServer, tmp_path: Path) -> None:
    async with open_server() as first:
        with pytest.raises(ServerFailed):
            async with open_server(store_dir=tmp_path / "other", arguments=("-p", str(first.port))):
                pass


async def test_a_server_ends_with_the_process_that_started_it(kind: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ORPHAN,
        kind,
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    assert await process.wait() == -signal.SIGKILL

    async def is_gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return _is_zombie(pid)
        return True

    await eventually(is_gone)


def test_a_name_nobody_probes_for_is_an_error() -> None:
    with pytest.raises(KeyError):
        require.missing("teleporter")


def test_what_is_required_and_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(require, "missing", lambda name: f"no {name}")
    monkeypatch.setenv("MILLSTREAM_REQUIRE", "kafka,nats")

    with pytest.raises(pytest.fail.Exception, match="MILLSTREAM_REQUIRE names nats, but no nats"):
        require.need("nats")
    with pytest.raises(pytest.skip.Exception, match="no docker"):
        require.need("docker")


def _is_zombie(pid: int) -> bool:
    """Killed, but not yet reaped by whoever inherited it (Linux only)."""
    with suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return False
