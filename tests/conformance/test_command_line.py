"""Flags that both servers take, and what they change on the wire or on disk."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import OpenServer
from tests.helpers.raw import QUIET, RawClient
from tests.helpers.servers import Server

VIOLATION = b"-ERR 'Authorization Violation'\r\n"


async def test_the_log_has_the_lines_tools_wait_for(open_server: OpenServer) -> None:
    async with open_server() as server:
        assert f"Listening for client connections on 127.0.0.1:{server.port}" in server.log
        assert "Server is ready" in server.log


@pytest.mark.parametrize("flag", ["-n", "-name", "--name", "--server_name"])
async def test_the_server_has_the_name(open_server: OpenServer, flag: str) -> None:
    async with open_server(arguments=(flag, "my-node")) as server:
        assert (await _info(server))["server_name"] == "my-node"


@pytest.mark.parametrize("flag", ["-P", "--pid"])
async def test_the_pid_file_holds_digits_only(
    open_server: OpenServer, tmp_path: Path, flag: str
) -> None:
    file = tmp_path / "server.pid"
    async with open_server(arguments=(flag, str(file))) as server:
        assert file.read_bytes() == str(server.pid).encode()


async def test_without_jetstream_the_api_has_no_responders(kind: str, tmp_path: Path) -> None:
    with Server(kind, tmp_path, jetstream=False) as server:
        assert "jetstream" not in await _info(server)
        async with RawClient.open(server.port, QUIET) as client:
            await client.send(b"SUB inbox 1\r\nPUB $JS.API.INFO inbox 0\r\n\r\n")
            await client.expect(
                b"HMSG inbox 1 44 44\r\nNATS/1.0 503\r\nNats-Subject: $JS.API.INFO\r\n\r\n\r\n"
            )


async def _info(server: Server) -> dict[str, Any]:
    async with RawClient.open(server.port) as client:
        return client.info


# --- authorization

SECRET = ("--user", "ann", "--pass", "s3cret")


async def test_info_says_that_authorization_is_required(open_server: OpenServer) -> None:
    async with open_server(arguments=SECRET) as server:
        assert (await _info(server))["auth_required"] is True


@pytest.mark.parametrize(
    ("flags", "credentials"),
    [
        (SECRET, {"user": "ann", "pass": "s3cret"}),
        (("--auth", "t0ken"), {"auth_token": "t0ken"}),
    ],
)
async def test_the_right_credentials_pass(
    open_server: OpenServer, flags: tuple[str, ...], credentials: dict[str, str]
) -> None:
    async with (
        open_server(arguments=flags) as server,
        RawClient.open(server.port, {**QUIET, **credentials}) as client,
    ):
        await client.send(b"SUB a 1\r\nPUB a 2\r\nhi\r\n")
        assert await client.flush() == b"MSG a 1 2\r\nhi\r\n"


@pytest.mark.parametrize(
    ("flags", "credentials"),
    [
        (SECRET, {"user": "ann", "pass": "wrong"}),
        (SECRET, {"user": "bob", "pass": "s3cret"}),
        (SECRET, {"auth_token": "s3cret"}),
        (SECRET, {}),
        (("--auth", "t0ken"), {"auth_token": "token"}),
    ],
)
async def test_wrong_credentials_end_the_connection(
    open_server: OpenServer, flags: tuple[str, ...], credentials: dict[str, str]
) -> None:
    async with (
        open_server(arguments=flags) as server,
        RawClient.open(server.port, {**QUIET, **credentials}) as client,
    ):
        assert await client.until_closed() == VIOLATION


@pytest.mark.parametrize("typed", [b"PUB a 2\r\nhi\r\n", b"SUB a 1\r\n", b"PING\r\n"])
async def test_nothing_but_connect_comes_first(open_server: OpenServer, typed: bytes) -> None:
    async with open_server(arguments=SECRET) as server, RawClient.open(server.port) as client:
        await client.send(typed)
        assert await client.until_closed() == VIOLATION


async def test_who_does_not_connect_in_time_is_sent_away(open_server: OpenServer) -> None:
    async with open_server(arguments=SECRET) as server, RawClient.open(server.port) as client:
        assert await client.until_closed() == b"-ERR 'Authentication Timeout'\r\n"


# --- monitoring


async def test_health_is_ok(open_server: OpenServer) -> None:
    async with open_server(arguments=("-m", str(port := _free_port()))):
        status, content_type, body = await _get(port, "/healthz")

    assert (status, content_type) == (200, "application/json")
    assert json.loads(body) == {"status": "ok"}


async def test_varz_tells_who_and_how_busy_the_server_is(open_server: OpenServer) -> None:
    async with (
        open_server(arguments=("-m", str(port := _free_port()))) as server,
        RawClient.open(server.port, QUIET) as client,
    ):
        await client.send(b"SUB a 1\r\nPUB a 2\r\nhi\r\n")
        await client.flush()
        status, _, body = await _get(port, "/varz")
        found = json.loads(body)

    assert status == 200
    assert found["server_id"] == client.info["server_id"]
    assert (found["port"], found["connections"]) == (server.port, 1)
    assert (found["in_msgs"], found["out_msgs"]) == (1, 1)
    assert found["max_payload"] == 1024 * 1024


async def _get(port: int, path: str) -> tuple[int, str, bytes]:
    """Status, content type and body of one HTTP request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
        async with asyncio.timeout(5):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *fields = head.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (field.split(": ", 1) for field in fields)}
    return int(status.split()[1]), headers.get("content-type", ""), body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
