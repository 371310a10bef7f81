"""Which subscriptions a subject reaches."""

import pytest

from tests.conformance.client import encode
from tests.helpers.raw import QUIET, RawClient
from tests.helpers.servers import Server


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        ("x.a.b", "x.a.b"),
        ("x.*", "x.a"),
        ("x.*.c", "x.b.c"),
        ("x.*.*", "x.b.c"),
        ("x.>", "x.a"),
        ("x.>", "x.a.b.c.d"),
        ("x.*.>", "x.a.b"),
        ("x.foo*", "x.foo*"),
        ("x.f>", "x.f>"),
        ("x.zürich.*", "x.zürich.süd"),
        ("x.$a.{b}", "x.$a.{b}"),
        (">", "x.any"),
        ("*.y", "x.y"),
    ],
)
async def test_the_pattern_gets_the_subject(server: Server, pattern: str, subject: str) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(f"SUB {pattern} 1\r\n".encode() + encode(subject, b"hi"))
        assert await client.flush() == f"MSG {subject} 1 2\r\nhi\r\n".encode()


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        ("x.a", "x.A"),
        ("x.*", "x"),
        ("x.*", "x.a.b"),
        ("x.>", "x"),
        ("x.*.>", "x.a"),
        ("x.foo*", "x.food"),
        ("x.f>", "x.fa"),
        ("x.a.b", "x.a"),
        ("x.a", "x.a.b"),
    ],
)
async def test_the_pattern_does_not_get_the_subject(
    server: Server, pattern: str, subject: str
) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(f"SUB {pattern} 1\r\n".encode() + encode(subject, b"hi"))
        assert await client.flush() == b""


async def test_a_subject_of_many_tokens_is_matched_token_by_token(server: Server) -> None:
    subject = ".".join(f"t{n}" for n in range(60))
    pattern = ".".join("*" if n % 2 else f"t{n}" for n in range(59)) + ".>"
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(f"SUB {pattern} 1\r\n".encode() + encode(subject, b"hi"))
        assert (await client.flush()).endswith(b" 1 2\r\nhi\r\n")


async def test_interest_added_later_gets_what_is_published_later(server: Server) -> None:
    async with RawClient.open(server.port, QUIET) as client:
        await client.send(encode("late.x", b"1") + b"SUB late.* 1\r\n" + encode("late.x", b"2"))
        assert await client.flush() == b"MSG late.x 1 1\r\n2\r\n"


async def test_overlapping_wildcards_of_one_connection_each_get_a_copy(server: Server) -> None:
    patterns = ["w.*.c", "w.b.*", "w.>", "w.b.c", "w.*.*", "w.*.d"]
    async with RawClient.open(server.port, QUIET) as client:
        for sid, pattern in enumerate(patterns):
            await client.send(f"SUB {pattern} {sid}\r\n".encode())
        await client.send(encode("w.b.c", b"x"))
        got = await client.flush()

    sids = {line.split()[2] for line in got.split(b"\r\n") if line.startswith(b"MSG")}
    assert sids == {b"0", b"1", b"2", b"3", b"4"}
