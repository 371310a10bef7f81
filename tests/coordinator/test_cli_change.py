"""The commands that look at and change a group: what they print, ask, refuse, and leave alone."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import nats
import pytest
from nats.aio.client import Client
from typer.testing import CliRunner

from millstream_coordinator import naming
from millstream_coordinator.events import Joined, encode_events, event_object
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    LetterReason,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    PartitionState,
    encode,
)
from millstream_coordinator.operation.cli import app
from millstream_coordinator.operation.cli_look import ranges
from millstream_coordinator.operation.console import shortened
from millstream_coordinator.operation.letters import list_letters
from millstream_coordinator.operation.target import Target
from tests.coordinator.made_group import control, make_group, make_letters, make_stream, partition
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

T = TypeVar("T")

DESCRIPTION = """
[topic.{name}]
subject = "{name}.{{partition}}.{{key}}"
partitions = 2

[group.{name}]
"""


def on(server: Server, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do something on a connection of its own."""

    async def run() -> T:
        client = await nats.connect(server.url)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def coordinator(server: Server, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``millstream coordinator``."""
    result = CliRunner().invoke(app, [*arguments, "--nats", server.url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def group(server: Server, name: str) -> str:
    """Two partitions, one served and one stopped; five messages, two letters, one event."""

    async def make(client: Client) -> None:
        await make_stream(client, name, ["0.a", "1.x", "0.b", "1.y", "0.c"])
        stopped = PartitionRecord(epoch=2, owner="b", stopped_seq=4, stopped_error="ValueError: x")
        target = await make_group(
            client,
            name,
            {
                naming.member_key("a"): MemberRecord(instance="1", software="millstream 1.2"),
                naming.member_key("b"): MemberRecord(instance="2"),
                naming.partition_key(0): PartitionRecord(
                    epoch=5, owner="a", instance="1", floor=1, state=PartitionState.OWNED
                ),
                naming.partition_key(1): stopped,
                naming.parked_key(0): ParkedRecord(keys={"p": 12}),
            },
            partitions=2,
        )
        await make_letters(client, name, "k")
        await make_letters(client, name, "p", reason=LetterReason.PARK)
        event = event_object(Joined(member="a"), group=name, member="a", at_ns=10**18, number=0)
        bucket = await client.jetstream().key_value(target.bucket)
        await bucket.put(naming.event_key(0), encode_events([event]))

    on(server, make)
    return name


@pytest.fixture
def healthy(server: Server, name: str) -> str:
    """Two partitions, or four, and nothing in the way of a change; three messages."""
    levels = f"{name}.{{partition}}.{{partition:4}}.*"
    config = ConfigRecord(partitions=2, stream=name, filter=levels, levels=(2, 4))

    async def make(client: Client) -> None:
        await make_stream(client, name, ["0.2.a", "1.1.x", "0.0.b"])
        await make_group(client, name, config=config)

    on(server, make)
    return name


LOOKING = (
    ("ls",),
    ("describe", "GROUP"),
    ("members", "GROUP"),
    ("lag", "GROUP"),
    ("events", "GROUP"),
    ("dlq", "ls", "GROUP"),
    ("dlq", "show", "GROUP", "1"),
)
CHANGING = (
    ("pause", "GROUP"),
    ("resume", "GROUP", "-p", "1"),
    ("drain", "GROUP", "a"),
    ("move", "GROUP", "1", "--to", "a"),
    ("reset", "GROUP", "--to", "latest", "--yes"),
    ("delete", "GROUP", "--yes"),
    ("dlq", "replay", "GROUP", "--all"),
    ("dlq", "drop", "GROUP", "1", "--yes"),
)


def named(command: tuple[str, ...], group: str) -> list[str]:
    return [group if it == "GROUP" else it for it in command]


def words(command: tuple[str, ...]) -> str:
    return ".".join(command[: 2 if command[0] == "dlq" else 1])


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING], ids=words)
def test_each_command_prints_a_document_with_its_schema(
    server: Server, group: str, command: tuple[str, ...]
) -> None:
    code, out, err = coordinator(server, *named(command, group), "--json")

    assert (code, err) == (0, "")
    assert json.loads(out)["schema"] == f"millstream.coordinator.{words(command)}/1"


@pytest.mark.parametrize("command", CHANGING, ids=words)
def test_a_dry_run_says_what_would_change(
    server: Server, group: str, command: tuple[str, ...]
) -> None:
    dry, out, _ = coordinator(server, *named(command, group), "--dry-run")
    again, told, _ = coordinator(server, *named(command, group))

    assert (dry, again) == (0, 0)
    assert out.replace("would change ", "") == told
    assert out.startswith("would change ")


@pytest.mark.parametrize("command", [it for it in CHANGING if "--yes" in it], ids=words)
def test_what_cannot_be_undone_is_done_with_yes_only(
    server: Server, group: str, command: tuple[str, ...]
) -> None:
    arguments = [it for it in named(command, group) if it != "--yes"]

    code, out, err = coordinator(server, *arguments)

    assert (code, out) == (2, "")
    assert err.endswith("Say --yes to do it, --dry-run to see it.\n")
    assert err.count("\n") == 1


def test_a_resize_is_done_with_yes_only(server: Server, healthy: str) -> None:
    code, out, err = coordinator(server, "resize", healthy, "4")

    assert (code, out) == (2, "")
    assert err.endswith("Say --yes to do it, --dry-run to see it.\n")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("resize", "GROUP", "7"), "its subjects carry tokens for 2, 4 partitions, not for 7"),
        (("reset", "GROUP", "--to", "sequence:99"), "is beyond the end of stream"),
        (("reset", "GROUP", "-p", "9", "--to", "latest"), "has no partition 9"),
        (("dlq", "drop", "GROUP", "99"), "has no dead letter 99"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_before_anybody_is_asked(
    server: Server, healthy: str, command: tuple[str, ...], reason: str
) -> None:
    code, out, err = coordinator(server, *named(command, healthy))

    assert (code, out) == (2, "")
    assert reason in err
    assert "--yes" not in err


def test_nobody_is_asked_about_nothing(server: Server, healthy: str) -> None:
    code, out, err = coordinator(server, "dlq", "drop", healthy, "--all")

    assert (code, out, err) == (0, "nothing to change: there are no such letters\n", "")
    _, told, _ = coordinator(server, "dlq", "drop", healthy, "--all", "--json")
    assert json.loads(told)["dry_run"] is False


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"y\n", 0, "letter 1 (key k, message 11): dead-letter -> dropped\n"),
        (b"n\n", 2, ""),
        (b"\x04", 130, ""),
    ],
    ids=["yes", "no", "end of file"],
)
def test_on_a_terminal_somebody_is_shown_what_it_is_about_and_asked(
    server: Server, group: str, answer: bytes, code: int, said: str
) -> None:
    ours, terminal = pty.openpty()
    os.write(ours, answer)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "millstream", "coordinator", "dlq", "drop", group, "1"],
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "NATS_URL": server.url},
        )
    finally:
        os.close(terminal)
        os.close(ours)

    # What asks puts a blank on standard output, where the answer is echoed.
    assert (ended.returncode, ended.stdout.removeprefix(" ")) == (code, said)
    assert ended.stderr.startswith(
        "would change letter 1 (key k, message 11): dead-letter -> dropped\n"
        f"Delete these dead letters of {group} for good? [y/N]:"
    )
    assert on(server, lambda client: letters_left(client, group)) == (1 if code == 0 else 2)


def test_of_many_changes_the_first_and_the_last_are_shown() -> None:
    few, many = ([f"change {it}" for it in range(count)] for count in (20, 1000))

    assert shortened(few) == few
    assert len(shortened(many)) == 21
    assert shortened(many)[9:12] == ["change 9", "… 980 more (--dry-run shows all)", "change 990"]


async def letters_left(client: Client, group: str) -> int:
    return len((await list_letters(Target(client, group))).letters)


@pytest.mark.parametrize("command", [*LOOKING[1:], *CHANGING], ids=words)
def test_a_group_that_is_not_there_is_one_line_and_exit_2_for_each_command(
    server: Server, name: str, command: tuple[str, ...]
) -> None:
    code, out, err = coordinator(server, *named(command, name))

    assert (code, out) == (2, "")
    spoken = words(command).replace(".", " ")
    assert err == f"millstream coordinator {spoken}: group {name!r} not found\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without JetStream."""
    with Server(EMBEDDED, tmp_path_factory.mktemp("bare"), jetstream=False) as opened:
        yield opened


@pytest.mark.parametrize("command", [*LOOKING, *CHANGING, ("run", "GROUP")], ids=words)
def test_a_server_without_jetstream_is_one_line_and_exit_3_for_each_command(
    bare: Server, command: tuple[str, ...]
) -> None:
    code, out, err = coordinator(bare, *named(command, "g"))

    assert (code, out) == (3, "")
    said = "no JetStream answers at '$JS.API' (is it enabled there?)"
    spoken = words(command).replace(".", " ")
    assert err == f"millstream coordinator {spoken}: NATS server 127.0.0.1:{bare.port}: {said}\n"


@pytest.mark.parametrize(
    "command", [*LOOKING, *CHANGING, ("create", "f"), ("resize", "g", "4"), ("run",)], ids=words
)
def test_each_commands_help_ends_with_examples_of_it(command: tuple[str, ...]) -> None:
    name = words(command).split(".")

    result = CliRunner().invoke(app, [*name, "--help"])

    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Examples:")
    assert f"  millstream coordinator {' '.join(name)}" in examples


# ---- each


def test_ls_shows_what_each_group_is_doing(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "ls")

    lines = [line.split(maxsplit=5) for line in out.splitlines()]
    assert lines[0] == ["GROUP", "STREAM", "PARTITIONS", "MEMBERS", "LEADER", "STATE"]
    assert [group, group, "2", "2", "-", "1 partition stopped"] in lines


def test_describe_says_why_a_partition_is_stopped(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "describe", group)

    assert out.splitlines()[-2:] == [
        f"stream {group}, lag 4, nobody leads, on failure: retry, 2 dead letters",
        "partition 1 stopped at message 4: ValueError: x",
    ]


def test_members_show_their_version(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "members", group)

    assert out.splitlines()[1].split()[6] == "1.2"


@pytest.mark.parametrize(("most", "code"), [("3", 1), ("4", 0)])
def test_lag_above_what_may_be_is_exit_1(server: Server, group: str, most: str, code: int) -> None:
    exit_code, _, err = coordinator(server, "lag", group, "--max", most)

    assert exit_code == code
    said = f"millstream coordinator lag: group {group!r} is 4 messages behind, more than 3\n"
    assert err == (said if code else "")


def test_lag_ends_with_the_sum(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "lag", group)

    assert out.splitlines()[-1].split() == ["all", "4"]


def test_events_are_one_line_each(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "events", group)

    assert out.count("\n") == 1
    assert out.endswith(" a: a joined\n")


def test_new_events_without_following_are_a_mistake(server: Server, group: str) -> None:
    code, _, err = coordinator(server, "events", group, "--new")

    assert code == 2
    assert "--new goes with --follow" in err


def test_pause_takes_numbers_and_ranges(server: Server, group: str) -> None:
    code, out, _ = coordinator(server, "pause", group, "-p", "0-1", "--partition", "1,0")

    assert code == 0
    assert out.splitlines() == [f"partition {it}: running -> paused" for it in (0, 1)]


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "1-", ""])
def test_what_is_no_partition_is_said(server: Server, group: str, text: str) -> None:
    code, _, err = coordinator(server, "pause", group, f"--partition={text}")

    assert code == 2
    assert f"{text!r} is no partition" in err


def test_what_is_so_already_is_said(server: Server, group: str) -> None:
    coordinator(server, "pause", group)

    code, out, _ = coordinator(server, "pause", group)

    assert (code, out) == (0, "nothing to change: it is so already\n")


def test_resume_with_skip_leaves_a_dead_letter_to_the_owner(server: Server, group: str) -> None:
    coordinator(server, "resume", group, "--skip")

    record = on(server, lambda client: partition(Target(client, group), 1))
    assert (record.stopped_seq, record.skip_seq) == (None, 4)


def test_a_drain_is_undone(server: Server, group: str) -> None:
    coordinator(server, "drain", group, "a")
    coordinator(server, "drain", group, "b")
    coordinator(server, "drain", group, "a", "--undo")

    assert on(server, lambda client: control(Target(client, group))) == ControlRecord(
        draining=("b",)
    )


@pytest.mark.parametrize("options", [(), ("--to", "a", "--unpin")])
def test_a_move_is_to_somebody_or_taken_back(
    server: Server, group: str, options: tuple[str, ...]
) -> None:
    code, _, err = coordinator(server, "move", group, "0", *options)

    assert code == 2
    assert "either --to MEMBER or --unpin" in err


def test_a_move_is_taken_back(server: Server, group: str) -> None:
    coordinator(server, "move", group, "0-1", "--to", "a")
    coordinator(server, "move", group, "0", "--unpin")

    assert on(server, lambda client: control(Target(client, group))).pins == {1: "a"}


def test_positions_come_from_a_file(server: Server, group: str, tmp_path: Path) -> None:
    file = tmp_path / "cutover.json"
    file.write_text('{"0": 3, "1": "latest"}')

    code, _, err = coordinator(server, "reset", group, "--positions", str(file), "--yes")

    assert (code, err) == (0, "")

    async def floors(client: Client) -> list[int]:
        return [(await partition(Target(client, group), it)).floor for it in (0, 1)]

    assert on(server, floors) == [2, 5]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "is no object of partitions"),
        ("{", "is no JSON"),
        ('{"x": 1}', "'x' is no partition"),
        ('{"0": 1, "00": 5}', "'00' is no partition"),
        ('{"0": "soon"}', "partition 0: 'soon' is none of"),
        ('{"0": 0}', "partition 0: 'sequence:0' is none of"),
    ],
)
def test_a_file_that_holds_no_positions_is_said(
    server: Server, group: str, tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "cutover.json"
    file.write_text(text)

    code, _, err = coordinator(server, "reset", group, "--positions", str(file), "--yes")

    assert code == 2
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "either --to POSITION or --positions FILE"),
        (("--to", "soon"), "'soon' is none of"),
        (("--positions", "nowhere"), "cannot read nowhere"),
        (("--positions", "f", "-p", "1"), "--partition goes with --to"),
    ],
)
def test_a_reset_that_says_no_position_is_exit_2(
    server: Server, group: str, options: tuple[str, ...], reason: str
) -> None:
    code, _, err = coordinator(server, "reset", group, *options, "--yes")

    assert code == 2
    assert reason in err


@pytest.mark.parametrize("options", [(), ("--all", "1"), ("--all", "--key", "k")])
def test_which_letters_has_to_be_said(server: Server, group: str, options: tuple[str, ...]) -> None:
    code, _, err = coordinator(server, "dlq", "replay", group, *options)

    assert code == 2
    assert "say which" in err


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (("--key", "nobody"), "has no dead letter of key 'nobody'"),
        (("-p", "99"), "has no partition 99: they are 0 to 1"),
        (("99",), "has no dead letter 99"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "drop"])
def test_letters_that_are_not_there_are_said(
    server: Server, group: str, command: str, choice: tuple[str, ...], text: str
) -> None:
    more = ("--yes",) if command == "drop" else ()

    code, out, err = coordinator(server, "dlq", command, group, *choice, *more)

    assert (code, out) == (2, "")
    assert err == f"millstream coordinator dlq {command}: group {group!r} {text}\n"


def test_letters_of_a_partition_that_is_not_there_are_not_listed(
    server: Server, group: str
) -> None:
    code, out, err = coordinator(server, "dlq", "ls", group, "-p", "2")

    assert (code, out) == (2, "")
    assert err.endswith(" has no partition 2: they are 0 to 1\n")


def test_a_letter_of_before_a_merge_is_found_by_its_partition(server: Server, group: str) -> None:
    on(server, lambda client: make_letters(client, group, "late", partition=7))

    _, out, _ = coordinator(server, "dlq", "ls", group, "-p", "7")
    assert out.splitlines()[1].split()[1:3] == ["7", "late"]
    assert coordinator(server, "dlq", "drop", group, "-p", "7", "--yes")[0] == 0


def test_a_partition_without_letters_has_nothing_to_replay(server: Server, group: str) -> None:
    code, out, _ = coordinator(server, "dlq", "replay", group, "-p", "1")

    assert (code, out) == (0, "nothing to change: there are no such letters\n")


WAITING = (
    (("drain", "GROUP", "a"), "member 'a' still owns partition 0"),
    (("move", "GROUP", "0-1", "--to", "b"), "member 'b' does not own partitions 0, 1 yet"),
)


@pytest.mark.parametrize(("command", "late"), WAITING, ids=["drain", "move"])
def test_what_has_not_come_about_in_time_is_exit_1_and_one_line(
    server: Server, group: str, command: tuple[str, ...], late: str
) -> None:
    code, out, err = coordinator(server, *named(command, group), "--wait", "--timeout", "0")

    assert code == 1
    assert out.endswith("b\n" if command[0] == "move" else "draining\n")
    said = f"not done after 0 s: {late}, and nobody leads the group"
    assert err == f"millstream coordinator {command[0]}: {said}\n"


@pytest.mark.parametrize(("command", "late"), WAITING, ids=["drain", "move"])
def test_json_says_how_the_waiting_ended(
    server: Server, group: str, command: tuple[str, ...], late: str
) -> None:
    arguments = [*named(command, group), "--json"]
    code, out, _ = coordinator(server, *arguments, "--wait", "--timeout", "0")

    assert code == 1
    document = json.loads(out)
    assert not document["is_done"]
    assert late in document["late"]
    assert "is_done" not in json.loads(coordinator(server, *arguments)[1])


def test_what_is_so_already_needs_no_waiting(server: Server, group: str) -> None:
    on(server, lambda client: _give_to(client, group, "b"))

    _, told, _ = coordinator(server, "drain", group, "a", "--wait")
    code, out, err = coordinator(server, "drain", group, "a", "--wait", "--json")

    assert (code, err) == (0, "")
    assert told.splitlines()[1:] == ["done"]
    assert (json.loads(out)["is_done"], json.loads(out)["late"]) == (True, None)


async def _give_to(client: Client, group: str, member: str) -> None:
    bucket = await client.jetstream().key_value(naming.bucket(group))
    record = PartitionRecord(epoch=6, owner=member, state=PartitionState.OWNED)
    await bucket.put(naming.partition_key(0), encode(record))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("drain", "GROUP", "a", "--timeout", "1"), "--timeout goes with --wait"),
        (("drain", "GROUP", "a", "--wait", "--dry-run"), "--wait does not go with --dry-run"),
        (("drain", "GROUP", "a", "--wait", "--undo"), "--wait does not go with --undo"),
        (("move", "GROUP", "0", "--unpin", "--wait"), "--wait does not go with --unpin"),
        (("resize", "GROUP", "4", "--wait", "--dry-run"), "--wait does not go with --dry-run"),
        (
            ("resize", "GROUP", "--description", "f", "--wait"),
            "--wait does not go with --description",
        ),
    ],
)
def test_there_must_be_something_to_wait_for(
    server: Server, group: str, arguments: tuple[str, ...], reason: str
) -> None:
    code, out, err = coordinator(server, *named(arguments, group))

    assert (code, out) == (2, "")
    assert err == f"millstream coordinator {arguments[0]}: {reason}\n"


@pytest.mark.parametrize("stream", ["a b", "a.b", "*", ""])
def test_permissions_for_what_is_no_streams_name_are_not_printed(stream: str) -> None:
    result = CliRunner().invoke(app, ["permissions", "g", "--role", "admin", "--stream", stream])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"{stream!r} is no stream's name\n")


def test_letters_are_listed_with_the_keys_that_are_parked(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "dlq", "ls", group)

    lines = out.splitlines()
    assert lines[1].split()[:6] == ["1", "0", "k", "11", "dead-letter", "5"]
    assert lines[2].split()[:6] == ["2", "0", "p", "11", "parked", "5"]
    assert lines[-1] == "partition 0 has parked keys: p"


def test_a_letter_is_shown_with_its_headers_and_body(server: Server, group: str) -> None:
    _, out, _ = coordinator(server, "dlq", "show", group, "1")

    assert "error:     ValueError: odd\n" in out
    assert "header:    Colour: red\n" in out
    assert out.endswith("body:      7 bytes\nbody 11\n")


def test_create_makes_what_is_described_once(server: Server, name: str, tmp_path: Path) -> None:
    file = tmp_path / "topic.toml"
    file.write_text(DESCRIPTION.format(name=name))

    dry, would, _ = coordinator(server, "create", str(file), "--dry-run")
    first, done, _ = coordinator(server, "create", str(file))
    second, out, _ = coordinator(server, "create", str(file), "--json")

    assert (dry, first, second) == (0, 0, 0)
    assert would.startswith(f"would create stream {name}\n")
    assert done == would.replace("would ", "")
    assert json.loads(out)["is_done"]
    assert json.loads(out)["schema"] == "millstream.coordinator.create/1"


def test_a_refused_create_says_what_it_would_have_done(
    server: Server, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "topic.toml"
    file.write_text(DESCRIPTION.format(name=name))
    coordinator(server, "create", str(file))
    other = f"{name}2"
    same_subjects = DESCRIPTION.format(name=other).replace(f'"{other}.', f'"{name}.')
    file.write_text(same_subjects)

    code, out, err = coordinator(server, "create", str(file), "--yes")

    assert code == 2
    assert out.startswith(f"refuse stream {other}: ")
    assert out.endswith(f"\nwould create bucket {other}\nwould create config {other}\n")
    assert err.endswith("cannot be as described: nothing done\n")


def test_a_description_that_is_none_is_one_line_and_exit_2(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "topic.toml"
    file.write_text("[topic.X]\ncolour = 1\n")

    code, out, err = coordinator(server, "create", str(file))

    assert (code, out) == (2, "")
    assert err.startswith(f"millstream coordinator create: {file}: ")
    assert err.count("\n") == 1


def test_a_position_can_be_set_before_a_group_ever_ran(
    server: Server, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "topic.toml"
    file.write_text(DESCRIPTION.format(name=name))
    coordinator(server, "create", str(file))

    code, out, _ = coordinator(server, "reset", name, "--to", "latest", "--yes")

    assert code == 0
    assert out.splitlines()[0] == "partition 0 handled up to: 0 -> 0"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), ""),
        ((4,), "4"),
        ((0, 1, 2, 7, 8), "0-2,7-8"),
        (tuple(range(0, 40, 2)), "0,2,4,6,8,10,12,14,… (20)"),
    ],
)
def test_many_partitions_are_told_in_few_words(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


def test_a_resize_is_to_a_number_or_to_a_description(server: Server, group: str) -> None:
    code, _, err = coordinator(server, "resize", group, "--yes")

    assert code == 2
    assert "either N or --description FILE" in err


def test_a_resize_to_a_description_without_the_group_is_one_line(
    server: Server, group: str, tmp_path: Path
) -> None:
    file = tmp_path / "topic.toml"
    file.write_text(DESCRIPTION.format(name="elsewhere"))

    code, _, err = coordinator(server, "resize", group, "--description", str(file), "--yes")

    assert code == 2
    assert f"{file} describes no group {group!r}" in err


def test_a_group_with_its_own_stream_goes_on_with_any_number_of_partitions(
    server: Server, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "topic.toml"
    text = f"""
[topic.{name}]
layout = "sourced"
subject = "{name}.{{key}}"

[group.{name}]
key = "{name}.{{key}}"
partitions = PARTITIONS
"""
    file.write_text(text.replace("PARTITIONS", "2"))
    coordinator(server, "create", str(file))
    file.write_text(text.replace("PARTITIONS", "3"))

    code, out, err = coordinator(server, "resize", name, "--description", str(file), "--yes")

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "partitions: 2 -> 3"


def test_permissions_are_printed_as_a_servers_configuration_wants_them() -> None:
    result = CliRunner().invoke(app, ["permissions", "g", "--stream", "S", "--role", "observer"])

    assert result.exit_code == 0
    assert result.stdout.startswith("permissions {\n  publish: [\n")
    assert '"$JS.API.STREAM.INFO.S"' in result.stdout


@pytest.mark.real_server  # the embedded broker has no users with permissions
@pytest.mark.parametrize(
    ("command", "subject"),
    [
        (("ls",), "$JS.API.STREAM.NAMES"),
        (("describe", "g"), "$JS.API.STREAM.INFO.KV_MILLSTREAM_g"),
        (("pause", "g"), "$JS.API.STREAM.INFO.KV_MILLSTREAM_g"),
    ],
)
def test_a_permission_that_is_missing_is_named_in_one_line_and_exit_2(
    tmp_path: Path, command: tuple[str, ...], subject: str
) -> None:
    require.need("nats")
    conf = tmp_path / "server.conf"
    conf.write_text(
        "authorization { users = [ {user: me, password: x,"
        ' permissions: {publish: ["$JS.API.INFO"], subscribe: ["_INBOX.>", "millstream.>"]}} ] }\n'
    )
    with Server(REAL, tmp_path / "store", arguments=("-c", str(conf))) as guarded:
        url = guarded.url.replace("nats://", "nats://me:x@")
        result = CliRunner().invoke(app, [*command, "--nats", url])

    assert result.exit_code == 2
    assert f"no permission to publish to {subject!r}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "any" not in result.stderr


@pytest.mark.real_server  # the embedded broker has no users with permissions
def test_a_permission_that_create_lacks_is_no_server_that_cannot_be_reached(
    tmp_path: Path,
) -> None:
    require.need("nats")
    conf = tmp_path / "server.conf"
    conf.write_text(
        "authorization { users = [ {user: me, password: x,"
        ' permissions: {publish: ["nothing"], subscribe: ["_INBOX.>"]}} ] }\n'
    )
    file = tmp_path / "orders.toml"
    file.write_text('[topic.O]\nsubject = "o.{partition}.{k}"\npartitions = 2\n')
    with Server(REAL, tmp_path / "store", arguments=("-c", str(conf))) as guarded:
        url = guarded.url.replace("nats://", "nats://me:x@")
        result = CliRunner().invoke(app, ["create", str(file), "--nats", url])

    assert result.exit_code == 2
    said = "no permission to publish to '$JS.API.INFO'"
    assert result.stderr == f"millstream coordinator create: {said}\n"
