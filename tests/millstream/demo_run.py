"""Run the demo as a user does, and look at what it leaves behind."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.millstream.console import MILLSTREAM

DEMO_S = 240.0
SMALL = ("--records", "1500", "--work-ms", "60")


class Demo:
    """A demo under way, showing plain lines. Its run directory is under ``temporary``."""

    def __init__(self, temporary: Path, *options: str) -> None:
        self._temporary = temporary
        self.process = subprocess.Popen(
            [*MILLSTREAM, "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        self.lines: list[str] = []

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def until(self, pattern: str) -> str:
        """Read lines up to one that matches; fails when the demo ends before."""
        for line in self.output:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        assert self.process.stderr is not None
        raise AssertionError(f"no {pattern!r} in {self.lines}: {self.process.stderr.read()}")

    def children(self) -> dict[str, int]:
        """Process ids by name, from the ready files."""
        ready = self._temporary.glob("millstream-demo-*/*.ready")
        return {file.stem: json.loads(file.read_bytes())["pid"] for file in ready}

    def ports(self) -> list[int]:
        """The ports of the two servers, from the first line."""
        return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.lines[0])]


@contextmanager
def demo(temporary: Path, *options: str) -> Iterator[Demo]:
    """Start the demo; at the end it is gone, one way or the other."""
    started = Demo(temporary, *options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


def is_alive(pid: int) -> bool:
    """Whether a process runs or is stopped; one that only waits to be reaped is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self/stat").exists():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def is_open(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
