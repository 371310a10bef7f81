"""The command `millstream`: where each word leads, at what price, and how it fails."""

import io
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from millstream.cli import COMMANDS, run
from millstream_bridge.operation import cli as bridge
from millstream_coordinator.operation import cli as coordinator
from millstream_coordinator.operation.commands import Commands
from millstream_coordinator.operation.entry import INTERRUPTED
from millstream_coordinator.operation.streams import buffered
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


class Narrow(io.RawIOBase):
    """Takes three bytes at a time, as a pipe may."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:3])
        return min(3, len(data))


def test_a_line_is_written_whole_where_a_stream_has_no_buffer() -> None:
    narrow = Narrow()
    unbuffered: Any = narrow
    stream = buffered(io.TextIOWrapper(unbuffered, "utf-8", write_through=True))

    stream.write("one line\n")

    assert narrow.taken == b"one line\n"


@pytest.mark.parametrize("main", ["millstream.__main__", "millstream_bridge.__main__"])
def test_a_command_started_without_buffers_makes_them(main: str) -> None:
    program = (
        f"import io, sys; sys.argv[1:] = ['--help']; from {main} import main\n"
        "try: main()\n"
        "finally: sys.exit(isinstance(sys.stdout.buffer, io.RawIOBase))\n"
    )
    command = [sys.executable, "-u", "-c", program]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0
    assert "age: millstream" in done.stdout


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


def imported_by(*words: str) -> set[str]:
    """What a command imports from its start to its end; its standard input is at its end."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "millstream", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {*re.findall(r"^import time:[^|]*\|[^|]*\| +(\S+)$", done.stderr, re.MULTILINE)}


def test_the_broker_starts_without_what_the_other_commands_import(tmp_path: Path) -> None:
    flags = ["-a", "127.0.0.1", "-p", "-1", "--ready-file", str(tmp_path / "ready")]

    imported = imported_by("broker", *flags, "--end-with-stdin")

    assert "millstream_broker.server.run" in imported
    assert {name.split(".")[0] for name in imported} & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "own", "others"),
    [
        ("bridge verify", "millstream_bridge.proof.verify", {"nats", "prometheus_client", "rich"}),
        ("coordinator pause", "nats", {"prometheus_client", "rich"}),
    ],
)
def test_a_command_starts_without_what_only_others_need(
    words: str, own: str, others: set[str]
) -> None:
    imported = imported_by(*words.split(), "--help")

    assert own in imported
    assert imported & others == set()


@pytest.mark.parametrize("commands", [bridge.COMMANDS, coordinator.COMMANDS])
def test_a_program_has_every_command_of_its_modules(commands: Commands) -> None:
    made: dict[str, str] = {}
    for home in commands.homes.values():
        app = typer.Typer()
        import_module(home).register(app)
        made |= dict.fromkeys(typer.main.get_group(app).commands, home)
    package = import_module(home.rpartition(".")[0])
    files = {it.stem for it in Path(package.__path__[0]).glob("cli_*.py")}

    assert made == commands.homes
    assert {it.rpartition(".")[2] for it in commands.homes.values()} == files


@pytest.mark.parametrize(("part", "commands"), [("bridge", bridge.COMMANDS)])
async def test_the_help_of_a_program_cuts_no_summary(part: str, commands: Commands) -> None:
    done = await millstream(part, "--help")
    told = " ".join(done.out.split())
    for name in commands:
        assert f"{name} {commands[name].get_short_help_str(1_000)}" in told


@pytest.mark.parametrize(
    ("part", "word", "nearest"), [("bridge", "verif", "verify"), ("coordinator", "lagg", "lag")]
)
async def test_a_command_that_is_not_there_is_one_line_with_the_nearest(
    part: str, word: str, nearest: str
) -> None:
    done = await millstream(part, word)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"millstream {part}: No such command '{word}'. Did you mean '{nearest}'?\n"


def test_a_keyboard_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("millstream_broker.cli.main", interrupt)
    assert run(["broker"]) == INTERRUPTED


TOLD_TO_END_AT_IMPORT = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    input()
except KeyboardInterrupt as told:
    raise ImportError("what an import makes of it") from told
"""


@pytest.mark.parametrize(
    "words", ["millstream bridge run", "millstream coordinator ls", "millstream_bridge run"]
)
def test_an_interrupt_while_modules_are_imported_ends_it_at_once(
    tmp_path: Path, words: str
) -> None:
    (tmp_path / "typer.py").write_text(TOLD_TO_END_AT_IMPORT)

    done = subprocess.run(
        [sys.executable, "-m", *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_an_interrupt_that_is_ignored_stays_so(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    words = [sys.executable, "-m", "millstream", "bridge"]

    done = subprocess.run(
        ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=30,
        check=False,
    )

    assert done.returncode != INTERRUPTED


@pytest.mark.parametrize("words", ["--help", "--version", "broker --help", "pub --help"])
def test_an_output_that_is_full_is_one_line(words: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")

    with full.open("w") as output:
        done = subprocess.run(
            [*MILLSTREAM, *words.split()],
            env={name: it for name, it in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr.endswith(": the output cannot be written: No space left on device\n")
    assert done.stderr.count("\n") == 1


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
