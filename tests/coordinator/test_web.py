"""/metrics and /healthz over HTTP."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest

from millstream_coordinator.errors import GroupError
from millstream_coordinator.operation import web
from millstream_coordinator.operation.web import HEAD_MAX_BYTES, Pages


class Site:
    """Something to serve."""

    def __init__(self) -> None:
        self.is_well = True

    async def metrics(self) -> bytes:
        return b"millstream_up 1.0\n"

    def health(self) -> tuple[bool, dict[str, object]]:
        return self.is_well, {"status": "ok" if self.is_well else "trouble"}

    def pages(self) -> Pages:
        return Pages(self.metrics, self.health)


async def raw(url: str, request: bytes) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


async def get(url: str, path: str, method: str = "GET") -> tuple[str, str, bytes]:
    """Status line, headers, body."""
    answer = await raw(url, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    status, _, headers = head.decode().partition("\r\n")
    return status, headers, body


async def test_metrics_are_served_as_text() -> None:
    async with Site().pages().serve("127.0.0.1", 0) as url:
        status, headers, body = await get(url, "/metrics?name=x")

    assert status == "HTTP/1.1 200 OK"
    assert "Content-Type: text/plain; version=0.0.4" in headers
    assert f"Content-Length: {len(body)}" in headers
    assert body == b"millstream_up 1.0\n"


@pytest.mark.parametrize(("is_well", "status"), [(True, "200 OK"), (False, "503 Service")])
async def test_health_is_a_document_and_a_status(is_well: bool, status: str) -> None:
    site = Site()
    site.is_well = is_well

    async with site.pages().serve("127.0.0.1", 0) as url:
        told, _, body = await get(url, "/healthz")

    assert told.startswith(f"HTTP/1.1 {status}")
    assert json.loads(body)["status"] == ("ok" if is_well else "trouble")


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", "404"), ("/metrics", "POST", "405")]
)
async def test_anything_else_is_refused(path: str, method: str, status: str) -> None:
    async with Site().pages().serve("127.0.0.1", 0) as url:
        told, _, _ = await get(url, path, method)

    assert told.split()[1] == status


async def test_head_has_no_body() -> None:
    async with Site().pages().serve("127.0.0.1", 0) as url:
        status, headers, body = await get(url, "/metrics", "HEAD")

    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert "Content-Length: 18" in headers


async def test_a_request_without_end_is_cut_off() -> None:
    async with Site().pages().serve("127.0.0.1", 0) as url:
        answer = await raw(url, b"GET /" + b"a" * (HEAD_MAX_BYTES * 4))

    assert answer == b""


async def test_an_address_that_is_taken_is_said() -> None:
    async with Site().pages().serve("127.0.0.1", 0) as url:
        port = urlsplit(url).port
        assert port is not None
        with pytest.raises(GroupError, match=rf"cannot serve HTTP on 127\.0\.0\.1:{port}: "):
            async with Site().pages().serve("127.0.0.1", port):
                pass


async def test_a_connection_that_is_open_at_the_end_is_closed_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "REQUEST_S", 3_600.0)  # it does not end by itself meanwhile
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with Site().pages().serve("127.0.0.1", 0) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        assert (await get(url, "/healthz"))[0] == "HTTP/1.1 200 OK"

    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()
    assert len(asyncio.all_tasks()) == 1
    assert said == []
