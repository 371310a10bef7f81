"""The command `millstream`: where each word leads, at what price, and how it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.cli import COMMANDS, INTERRUPTED, run
from tests.millstream.console import MILLSTREAM, millstream

HEAVY = {"typer", "rich", "pydantic", "pydantic_settings", "nats", "confluent_kafka"}


async def test_help_names_every_command() -> None:
    done = await millstream("--help")
    assert done.code == 0
    for word in COMMANDS:
        assert re.search(rf"^  {word} ", done.out, re.MULTILINE)


async def test_without_a_command_it_shows_the_help_and_says_that_this_is_no_use() -> None:
    done = await millstream()
    assert done.code == 2
    assert "usage: millstream COMMAND" in done.out


async def test_version_is_the_distributions() -> None:
    done = await millstream("--version")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"millstream \d+\.\d+\.\d+\n", done.out)


async def test_an_unknown_command_is_one_line_and_exit_code_2() -> None:
    done = await millstream("kafka", "run")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("millstream: no command 'kafka'; it has demo, broker")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_standard_stream_that_is_closed_leads_nowhere(closed: str) -> None:
    words = [*MILLSTREAM, "bridge", "status", "--nats", "nats://127.0.0.1:1"]

    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 3, done.stderr
    assert ("is unreachable" in done.stderr) is ("2>" not in closed)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pub"], "millstream pub: Missing argument 'subject'.\n"),
        (["pub", "a", "b", "--nope"], "millstream pub: No such option: --nope"),
        (["sub", "a", "--count", "x"], "millstream sub: "),
        (["demo", "--records", "many"], "millstream demo: "),
        (["bridge", "run", "--nope"], "millstream bridge run: No such option: --nope"),
        (["coordinator", "run", "--nope"], "millstream coordinator run: No such option: --nope"),
        (
            ["coordinator", "permissions", "g", "--role", "king"],
            "millstream coordinator permissions: Invalid value for '--role': 'king' is not one of ",
        ),
    ],
)
async def test_wrong_usage_is_one_line_that_names_the_command(
    arguments: list[str], line: str
) -> None:
    done = await millstream(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1


def test_the_broker_starts_without_what_the_other_commands_import(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-X", "importtime", "-m", "millstream", "broker"]
    flags = ["-a", "127.0.0.1", "-p", "-1", "--ready-file", str(ready), "--end-with-stdin"]
    # Standard input ends at once, and so does the broker, after a whole start.
    done = subprocess.run(
        [*command, *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = re.findall(r"^import time:[^|]*\|[^|]*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "millstream_broker.server.run" in imported
    assert {name.split(".")[0] for name in imported} & HEAVY == set()


def test_a_keyboard_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("millstream_broker.cli.main", interrupt)
    assert run(["broker"]) == INTERRUPTED


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*MILLSTREAM, "--help"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(writing)
    assert b"Traceback" not in done.stderr
