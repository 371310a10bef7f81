"""What `pub`, `sub`, `req` and `reply` print, and how they end."""

import asyncio
import re
import signal

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from tests.helpers.servers import Server
from tests.millstream.console import MILLSTREAM, Finished, listening, millstream

NOWHERE = "nats://127.0.0.1:1"


async def test_pub_tells_time_size_and_subject(broker: Server) -> None:
    body = "abcdefghijklmnopqrstuvwxyz0"
    done = await millstream("pub", "linux.debian.packages.xz", body, "-s", broker.url)
    assert (done.code, done.out) == (0, "")
    line = r'\d\d:\d\d:\d\d Published 27 bytes to "linux\.debian\.packages\.xz"\n'
    assert re.fullmatch(line, done.err)


async def test_pub_numbers_the_messages_it_counts(broker: Server, client: Client) -> None:
    subscription = await client.subscribe("counted.*")
    await client.flush()
    done = await millstream(
        "pub", "counted.{{Count}}", "number {{Count}}", "--count", "3", "-s", broker.url
    )
    assert done.said == "".join(f'Published 8 bytes to "counted.{n}"\n' for n in (1, 2, 3))
    bodies = [(await subscription.next_msg(timeout=60)).data for _ in range(3)]
    assert bodies == [b"number 1", b"number 2", b"number 3"]


async def test_pub_takes_the_body_from_standard_input(broker: Server) -> None:
    done = await millstream("pub", "piped", "-s", broker.url, given=b"from a pipe\n")
    assert done.said == 'Reading payload from STDIN\nPublished 12 bytes to "piped"\n'


async def test_pub_says_nothing_when_told_to(broker: Server) -> None:
    assert await millstream("pub", "a", "b", "-q", "-s", broker.url) == Finished(0, "", "")


async def test_pub_waits_for_a_stream_when_told_to(broker: Server, client: Client) -> None:
    await client.jetstream().add_stream(StreamConfig(name="STORED", subjects=["stored"]))
    done = await millstream("pub", "stored", "kept", "-J", "-s", broker.url)
    assert (done.code, done.said) == (
        0,
        'Published 4 bytes to "stored"\nStored in Stream: STORED Sequence: 1\n',
    )


async def test_pub_to_no_stream_fails_when_told_to_wait_for_one(broker: Server) -> None:
    done = await millstream("pub", "not.stored", "x", "-J", "-s", broker.url)
    assert done.code == 1
    assert done.err == (
        f"millstream pub: nats: no responders available for request ({broker.url})\n"
    )


async def test_sub_shows_subject_headers_and_body(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "sub", "news.>", "--count", "3", "-s", broker.url)
    async with listening(client, "news.probe", *command) as listener:
        await client.publish("news.paper", b"line one\nline two")
        await client.publish("news.radio", b"", reply="answers", headers={"Station": "WNYC"})
        done = await listener.finished()
    assert (done.code, done.said) == (0, "Subscribing on news.> \n")
    probe, _, rest = done.out.partition("probe\n\n\n")
    assert probe.startswith('[#1] Received on "news.probe" with reply "_INBOX.')
    assert rest == (
        '[#2] Received on "news.paper"\nline one\nline two\n\n\n'
        '[#3] Received on "news.radio" with reply "answers"\nStation: WNYC\n\nnil body\n\n\n'
    )


async def test_sub_shows_a_header_that_comes_twice_twice(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "sub", "twice", "--count", "2", "-s", broker.url)
    async with listening(client, "twice", *command) as listener:
        headers = ("-H", "Tag: first", "-H", "Tag:second")
        assert (await millstream("pub", "twice", "x", *headers, "-s", broker.url)).code == 0
        done = await listener.finished()
    assert done.out.endswith('[#2] Received on "twice"\nTag: first\nTag: second\n\nx\n\n\n')


async def test_sub_raw_prints_bodies_only(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "sub", "bare", "--raw", "--count", "3", "-s", broker.url)
    async with listening(client, "bare", *command) as listener:
        await client.publish("bare", b"one")
        await client.publish("bare", b"two\n")
        done = await listener.finished()
    assert (done.out, done.err) == ("probe\none\ntwo\n", "")


async def test_sub_that_is_interrupted_is_exit_code_130_and_no_traceback(
    broker: Server, client: Client
) -> None:
    command = (*MILLSTREAM, "sub", "endless", "-s", broker.url)
    async with listening(client, "endless", *command) as listener:
        listener.process.send_signal(signal.SIGINT)
        done = await listener.finished()
    assert (done.code, done.said) == (130, "Subscribing on endless \n")


async def test_members_of_a_queue_share_the_messages(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "sub", "jobs", "--queue", "crew", "--raw", "-s", broker.url)
    async with listening(client, "jobs", *command) as listener:
        colleague = await client.subscribe("jobs", queue="crew")
        for _ in range(50):
            await client.publish("jobs", b"job")
        for _ in range(2):  # as in `listening`: then the colleague's share is here
            await client.flush()
        assert listener.process.stdout is not None
        async with asyncio.timeout(60):
            lines = [
                await listener.process.stdout.readline()
                for _ in range(1 + 50 - colleague.pending_msgs)
            ]
        listener.process.send_signal(signal.SIGINT)
        done = await listener.finished()
    assert (lines[0], done.out) == (b"probe\n", "")
    ours = lines.count(b"job\n")
    assert 0 < ours < 50
    assert ours + colleague.pending_msgs == 50


async def test_sub_ends_once_nothing_came_for_so_long(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "sub", "rare", "--raw", "--wait", "3s", "-s", broker.url)
    async with listening(client, "rare", *command) as listener:
        done = await listener.finished()
    assert (done.code, done.out) == (0, "probe\n")


async def test_sub_ends_when_nothing_comes(broker: Server) -> None:
    done = await millstream("sub", "silence", "--wait", "50ms", "-s", broker.url)
    assert (done.code, done.out) == (0, "")


async def test_a_request_shows_the_reply_and_how_long_it_took(
    broker: Server, client: Client
) -> None:
    command = (*MILLSTREAM, "reply", "help.please", "yes, {{Request}} {{Count}}")
    options = ("--count", "2", "-H", "From: desk", "-s", broker.url)
    async with listening(client, "help.please", *command, *options) as responder:
        done = await millstream("req", "help.please", "door", "-s", broker.url)
        answered = await responder.finished()
    assert (done.code, done.out) == (0, "yes, door 1\n\n\n")
    assert re.fullmatch(
        r'Sending request on "help\.please"\nReceived with rtt [\d.]+(µs|ms|s)\nFrom: desk\n\n',
        done.said,
    )
    assert answered.code == 0
    assert answered.said == (
        'Listening on "help.please" in group "NATS-RPLY-22"\n'
        '[#0] Received on subject "help.please":\n'
        '[#1] Received on subject "help.please":\n'
    )
    assert answered.out == "\nprobe\n\ndoor\n"


async def test_reply_without_a_body_sends_back_what_came(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "reply", "echo", "--count", "2", "-s", broker.url)
    async with listening(client, "echo", *command) as responder:
        done = await millstream("req", "echo", "hello", "-H", "K: v", "-s", broker.url)
        answered = await responder.finished()
    assert answered.said.startswith("No body or command supplied, enabling echo mode\n")
    assert done.out == "hello\n\n\n"
    assert done.said.endswith("K: v\nNATS-Reply-Counter: 1\n\n")


async def test_reply_can_run_a_command(broker: Server, client: Client) -> None:
    command = (*MILLSTREAM, "reply", "weather.>", "--command", "echo sunny in {{1}}")
    async with listening(client, "weather.probe", *command, "--count", "2", "-s", broker.url):
        done = await millstream("req", "weather.london", "", "--raw", "-s", broker.url)
    assert (done.code, done.out) == (0, "sunny in london\n\n")


async def test_a_request_collects_as_many_replies_as_it_is_told(
    broker: Server, client: Client
) -> None:
    async def answer(message: object) -> None:
        for number in range(3):
            await message.respond(f"part {number}".encode())  # type: ignore[attr-defined]

    await client.subscribe("parts", cb=answer)
    await client.flush()
    done = await millstream("req", "parts", "", "--replies", "2", "--raw", "-s", broker.url)
    assert (done.code, done.out) == (0, "part 0\n\n\npart 1\n\n\n")


async def test_a_request_that_nobody_can_answer_fails_at_once(broker: Server) -> None:
    done = await millstream("req", "nobody.there", "x", "--timeout", "60s", "-s", broker.url)
    assert (done.code, done.out) == (1, "")
    assert done.said == 'Sending request on "nobody.there"\nNo responders are available\n'


async def test_a_request_that_nobody_answers_ends_after_its_timeout(
    broker: Server, client: Client
) -> None:
    await client.subscribe("mute")
    await client.flush()
    done = await millstream("req", "mute", "x", "--timeout", "100ms", "-s", broker.url)
    assert (done.code, done.said) == (1, 'Sending request on "mute"\nNo reply within 100ms\n')


@pytest.mark.parametrize("command", [("pub", "a", "b"), ("sub", "a"), ("req", "a", "b")])
async def test_a_server_that_is_not_there_is_one_line_and_exit_code_3(
    command: tuple[str, ...],
) -> None:
    done = await millstream(*command, "-s", NOWHERE)
    assert (done.code, done.out) == (3, "")
    assert done.err == (
        f"millstream {command[0]}: no NATS server at {NOWHERE}: connection refused\n"
    )


async def test_a_host_that_does_not_exist_is_named() -> None:
    done = await millstream("pub", "a", "b", "-s", "nats://no.such.host.invalid:4222")
    assert done.code == 3
    assert done.err == (
        "millstream pub: no NATS server at nats://no.such.host.invalid:4222: no such host\n"
    )


async def test_a_password_in_the_url_is_not_shown() -> None:
    done = await millstream("pub", "a", "b", "-s", "nats://me:secret@127.0.0.1:1")
    assert done.err == f"millstream pub: no NATS server at {NOWHERE}: connection refused\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("pub", "a", "b", "-H", "no colon"), 'invalid header "no colon"'),
        (("pub", "a", "b", "--timeout", "soon"), "--timeout: 'soon' is no duration"),
    ],
)
async def test_a_value_that_makes_no_sense_is_wrong_usage(
    arguments: tuple[str, ...], complaint: str
) -> None:
    done = await millstream(*arguments, "-s", NOWHERE)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert complaint in done.err


async def test_a_subject_that_is_none_is_refused(broker: Server) -> None:
    done = await millstream("pub", "two words", "x", "-s", broker.url)
    assert (done.code, done.err) == (
        1,
        f"millstream pub: nats: invalid subject ({broker.url})\n",
    )
