"""The command as a process."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from millstream_broker import cli

COMMAND = [sys.executable, "-m", "millstream_broker"]
WAIT_S = 60.0


@contextlib.contextmanager
def running(tmp_path: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A broker that is ready; killed at the end if it still runs."""
    ready = tmp_path / "ready"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "-a", "127.0.0.1", "-p", "-1", "--ready-file", str(ready), *flags],
            stdin=subprocess.PIPE,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + WAIT_S
            while not ready.exists():
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.01)
            yield process
        finally:
            process.kill()
            process.wait()
            stdin: IO[bytes] | None = process.stdin
            if stdin is not None:
                stdin.close()


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags], capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    flags = ("-P", str(tmp_path / "pid"), "--ports_file_dir", str(tmp_path))
    with running(tmp_path, *flags) as process:
        ready = json.loads((tmp_path / "ready").read_text())
        assert ready["pid"] == process.pid
        assert (tmp_path / "pid").read_text() == str(process.pid)
        ports = json.loads((tmp_path / f"millstream_{process.pid}.ports").read_text())
        assert ports == {"nats": [ready["url"]]}

        process.send_signal(number)

        assert process.wait(WAIT_S) == 0
    log = (tmp_path / "log").read_text()
    assert f"Listening for client connections on {ready['url'].removeprefix('nats://')}" in log
    assert "Server is ready" in log
    assert "core: python" in log
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def await_text(process: subprocess.Popen[bytes], path: Path, text: str) -> None:
    """The file says it within a bounded time, and the process lives on."""
    deadline = time.monotonic() + WAIT_S
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"ended with {process.wait(0.01)}")


def test_a_hangup_is_logged_and_does_not_end_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        process.send_signal(signal.SIGHUP)

        await_text(process, tmp_path / "log", "[WRN] No configuration file to reload")
        process.terminate()
        assert process.wait(WAIT_S) == 0


def test_user_signal_1_goes_on_in_a_new_log_file(tmp_path: Path) -> None:
    log, old = tmp_path / "server.log", tmp_path / "server.log.1"
    with running(tmp_path, "-l", str(log)) as process:
        log.rename(old)
        process.send_signal(signal.SIGUSR1)

        await_text(process, log, "File log re-opened")
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert "Server is ready" in old.read_text()
    assert "Server Exiting" not in old.read_text()
    assert "Server Exiting" in log.read_text()


def test_user_signal_1_keeps_the_log_file_when_there_can_be_no_new_one(tmp_path: Path) -> None:
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    with running(tmp_path, "-l", str(folder / "server.log")) as process:
        folder.rename(moved)
        process.send_signal(signal.SIGUSR1)

        await_text(process, moved / "server.log", "No such file or directory; going on")
        process.terminate()
        assert process.wait(WAIT_S) == 0
    assert "Server Exiting" in (moved / "server.log").read_text()


def test_it_ends_with_standard_input(tmp_path: Path) -> None:
    with running(tmp_path, "--end-with-stdin") as process:
        assert process.stdin is not None
        process.stdin.close()

        assert process.wait(WAIT_S) == 0


def test_a_log_file_holds_the_ready_lines(tmp_path: Path) -> None:
    with running(tmp_path, "-l", str(tmp_path / "server.log"), "-T=false"):
        text = (tmp_path / "server.log").read_text()

    assert "] [INF] Server is ready" in text
    assert (tmp_path / "log").read_text() == ""


def test_a_busy_port_is_one_line_and_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]

        result = run("-a", "127.0.0.1", "-p", str(port))

    assert result.returncode == 3
    said = f"millstream broker: client port 127.0.0.1:{port}: Address already in use\n"
    assert result.stderr == said


@pytest.mark.parametrize("flag", ["-P", "-l", "--ready-file"])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, flag: str) -> None:
    path = tmp_path / "missing" / "file"

    result = run("-a", "127.0.0.1", "-p", "-1", flag, str(path))

    assert result.returncode == 3
    assert str(path) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--bogus"], "unknown flag '--bogus'"),
        (["-c", "x.conf"], "configuration files are not supported yet"),
        (["-p", "http"], "'http' is no port"),
        (["-p"], "flag '-p' needs a value"),
        (["word"], "unexpected argument 'word'"),
        (["-js=maybe"], "'-js=maybe': the value is neither true nor false"),
        (["--pass", "p"], "--pass needs --user"),
        (["--auth", "$2a$11$x"], "bcrypt passwords and tokens are not supported yet"),
        (["--user", "u", "--auth", "t"], "--user and --auth exclude each other"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(flags) == 2

    assert capsys.readouterr().err == f"millstream broker: {text}\n"


def test_flags_take_one_or_two_dashes_and_an_equals_sign() -> None:
    expected = {"host": "h", "port": 1, "jetstream": True, "store_dir": Path("d")}

    assert cli.parse(["-a", "h", "-p", "1", "-js", "-sd", "d"]) == expected
    assert cli.parse(["--addr=h", "--port=1", "--jetstream", "--store_dir=d"]) == expected
    assert cli.parse(["--net", "h", "-port", "1", "--js=true", "-store_dir", "d"]) == expected


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-v"]) == 0
    assert capsys.readouterr().out == "millstream broker: v2.15.1\n"
    assert cli.main(["--help"]) == 0
    assert "--ports_file_dir" in capsys.readouterr().out


def loaded_by(code: str, *suspects: str) -> str:
    """Which of the suspected modules are imported after ``code`` ran in a fresh interpreter."""
    code += f"\nimport sys; print(sorted({set(suspects)!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return result.stdout.splitlines()[-1]


def test_parsing_the_command_line_imports_nothing_heavy() -> None:
    code = "from millstream_broker.cli import main; main(['-h'])"

    assert loaded_by(code, "asyncio", "typer", "rich", "pydantic", "logging", "uvloop") == "[]"


def test_a_server_imports_nothing_of_what_the_other_packages_need() -> None:
    code = "import millstream_broker.server.run"

    assert loaded_by(code, "typer", "rich", "pydantic", "nats", "confluent_kafka") == "[]"
