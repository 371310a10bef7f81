"""Our commands and the nats command on one server: the same words to the user."""

import re

import pytest
from nats.aio.client import Client

from tests.helpers import require
from tests.helpers.servers import Server
from tests.millstream.console import MILLSTREAM, Finished, listening, run

INBOX = re.compile(r"_INBOX\.[\w.]+")
RTT = re.compile(r"rtt [\d.]+(ns|µs|ms|s)")


@pytest.fixture
def tools() -> list[tuple[str, ...]]:
    """Ours and theirs."""
    require.need("natscli")
    return [MILLSTREAM, (str(require.nats_cli()),)]


def plain(done: Finished) -> tuple[str, str]:
    """Output without what differs from run to run."""
    return INBOX.sub("INBOX", done.out), RTT.sub("rtt", done.said)


@pytest.mark.natscli
@pytest.mark.parametrize(
    "arguments",
    [
        ("pub", "linux.debian.packages.xz", "abcdefghijklmnopqrstuvwxyz0"),
        ("pub", "counted", "{{Count}}", "--count", "2"),
        ("pub", "empty", ""),
        ("pub", "quoted.ü", 'a "b"', "-H", "Name: value"),
        ("pub", "bad.template", "{{Nope}}", "--quiet"),
        ("req", "nobody.there", "x"),
        ("req", "nobody.there", "x", "--raw"),
        ("sub", "silence", "--wait", "100ms"),
    ],
)
async def test_both_say_the_same(
    broker: Server, tools: list[tuple[str, ...]], arguments: tuple[str, ...]
) -> None:
    ours, theirs = [
        plain(await run(*tool, *arguments, "--server", broker.url, given=b"")) for tool in tools
    ]
    ours = (ours[0], ours[1].replace("function", "template: body:1: function", 1))
    assert ours == theirs


@pytest.mark.natscli
@pytest.mark.parametrize("options", [(), ("--raw",), ("--headers-only",), ("--subjects-only",)])
async def test_both_show_what_arrives_alike(
    broker: Server, client: Client, tools: list[tuple[str, ...]], options: tuple[str, ...]
) -> None:
    shown = []
    for tool in tools:
        command = (*tool, "sub", "shown.>", *options, "--count", "5", "--server", broker.url)
        async with listening(client, "shown.probe", *command) as listener:
            await client.publish("shown.plain", b"body")
            await client.publish("shown.lines", b"one\ntwo\n")
            await client.publish("shown.reply", b"", reply="answer.here")
            await client.publish("shown.header", b"x", headers={"Kind": "a b"})
            shown.append(plain(await listener.finished()))
    assert shown[0] == shown[1]


@pytest.mark.natscli
async def test_both_answer_and_ask_alike(
    broker: Server, client: Client, tools: list[tuple[str, ...]]
) -> None:
    shown, said = [], []
    for responder_tool, asking_tool in (tools, tools[::-1]):
        options = ("{{Request}} is number {{Count}}", "-H", "From: desk", "--count", "2")
        command = (*responder_tool, "reply", "desk", *options, "--server", broker.url)
        async with listening(client, "desk", *command) as responder:
            ask = ("req", "desk", "this", "--server", broker.url)
            asked = await run(*asking_tool, *ask)
            answered = await responder.finished()
        # At its end theirs tells that it drains and leaves; ours just ends.
        said.append(answered.said.split("\nDraining...")[0].rstrip().splitlines())
        shown.append((plain(asked), answered.out))
    assert shown[0] == shown[1]
    # Theirs may show the first request before it says that it listens; ours never does.
    assert said[0][0].startswith("Listening on ")
    listens = [line for line in said[1] if line.startswith("Listening on ")]
    assert said[0] == [*listens, *(line for line in said[1] if line not in listens)]
