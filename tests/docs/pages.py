"""The pages that are sessions, as tests see them: blocks, links, a shell that types the commands.

A page is one session, from top to bottom, in a folder of its own and on a server of its own:

* a block whose fence names a file (```` ```python worker.py ````) is written to that file;
* a ``python`` block without a name is run; a ``text`` block right below it is what it prints;
* in a ``console`` block the lines that begin with ``$`` are typed, the others are what is printed.
  ``# exit code N`` behind a command is its exit code; ``# ^C`` means that it is interrupted.
  ``millstream broker …`` is not typed: that is the server the page runs on.

``…`` stands for anything. What millstream prints is compared **loosely**: numbers (processes,
times, who has which partition) stand for any numbers. What the page's own programs print is
compared exactly. A command that only looks is typed again until it prints what the page says, or
time is up: a reader takes longer between two commands than a test does.

A block that cannot run says so where the reader sees it, in the line above it:
``*Not run by the tests: why.*``
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from millstream.cli import run as run_millstream
from millstream_coordinator.operation import (  # so that a fork has them
    cli_change,  # noqa: F401
    cli_letters,  # noqa: F401
    cli_look,  # noqa: F401
    cli_run,  # noqa: F401
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "coordinator" / "docs"
README = ROOT / "coordinator" / "README.md"
OTHER_SOURCES = ROOT / "bridge" / "docs" / "how-to" / "other-sources.md"

RUNNABLE = ("python", "console")
PATIENCE_S = 30.0
INTERRUPT_S = 3.0
HOST = "vm"
"""The machine's name in the pages' outputs."""

_FENCE = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXCUSE = re.compile(r"\*Not run by the tests: (.+?)\.\*\s*\Z", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_LOOKS = re.compile(r"coordinator (describe|members|lag|events|ls|dlq ls)\b|^(cat|tail|curl|nats) ")
_NUMBERS = r"\d+(?:[-,]\d+)*"
"""A number, or a list of partitions; they stand for any other."""
_MILLSTREAM = re.compile(r"(millstream|tail) ")
_PLAIN_COMMAND = re.compile(r"millstream coordinator [^|&;<>$*]*\Z")
_NOISE = re.compile(r"^bash: .*(Killed|Terminated)|^\[\d+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block; ``line`` is where it begins, ``excuse`` why it is not run."""

    kind: str
    file: str | None
    text: str
    line: int
    excuse: str | None
    output: str | None = None


@dataclass(slots=True)
class Command:
    """What is typed, and what the page says it prints."""

    text: str
    output: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        found = re.search(r"# exit code (\d+)$", self.text)
        return int(found[1]) if found else 0

    @property
    def is_interrupted(self) -> bool:
        return self.text.endswith("# ^C")


def pages() -> list[Path]:
    """Every page of the coordinator's documentation, its README, and the bridge's that is run."""
    return [README, *sorted(DOCS.rglob("*.md")), OTHER_SOURCES]


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    result = []
    for place, one in enumerate(found):
        excuse = _EXCUSE.search(text[: one.start()].rstrip())
        output = None
        if place + 1 < len(found) and found[place + 1][1] == "text":
            between = text[one.end() : found[place + 1].start()]
            if not between.strip():
                output = found[place + 1][3]
        result.append(
            Block(
                kind=one[1],
                file=one[2],
                text=one[3],
                line=text.count("\n", 0, one.start()) + 1,
                excuse=excuse[1] if excuse else None,
                output=output,
            )
        )
    return result


def links(page: Path) -> list[str]:
    """Where the page's links lead, those to the web left out."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [it for it in _LINK.findall(text) if not it.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """The names of the page's headings, as in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", it.lower()).replace(" ", "-") for it in headings}


def commands(block: Block) -> list[Command]:
    """The commands of a ``console`` block."""
    result: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            result.append(Command(line[2:]))
        elif line.startswith("> ") and result and not result[-1].output:
            result[-1].text += "\n" + line[2:]
        elif result:
            result[-1].output.append(line)
        else:
            raise AssertionError(f"line {block.line}: a console block begins with a command")
    return result


def matches(printed: str, said: list[str], *, loosely: bool = True) -> bool:
    """Whether what was printed is what the page says; loosely: whatever the numbers are."""
    return re.fullmatch(_pattern(said, loosely=loosely), _plain(printed)) is not None


def _plain(text: str) -> str:
    for name in (socket.gethostname(), socket.gethostname().partition(".")[0]):
        text = re.sub(rf"\b{re.escape(name)}\b", HOST, text)
    lines = (" ".join(line.split()) for line in text.splitlines() if not _NOISE.match(line))
    return "".join(f"{line}\n" for line in lines).strip("\n") + "\n"


def _pattern(said: list[str], *, loosely: bool) -> str:
    parts = []
    for line in _plain("\n".join(said)).splitlines():
        if line == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        pieces = re.split(rf"({_NUMBERS})", line) if loosely else [line]
        texts = (re.escape(it).replace("…", ".*") for it in pieces[::2])
        parts.append(_NUMBERS.join(texts) + r"\n")
    return "".join(parts)


class Shell:
    """A bash that runs what is typed, one command after the other, with what was begun before."""

    def __init__(self, folder: Path, url: str) -> None:
        self._interrupt_s = INTERRUPT_S
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "NATS_URL": url,
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        self._folder = folder
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=self.environment,
            start_new_session=True,
        )

    def type(self, command: Command) -> tuple[str, int]:
        """What it printed, and its exit code."""
        if command.is_interrupted:
            return self._interrupt(command)
        if _PLAIN_COMMAND.match(command.text):
            return self._fork(shlex.split(command.text, comments=True))
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f'{command.text}\necho "<end $?>"\n')
        self._bash.stdin.flush()
        printed = []
        for line in self._bash.stdout:
            if found := re.search(r"<end (\d+)>\n$", line):
                printed.append(line[: found.start()])
                return "".join(printed), int(found[1])
            printed.append(line)
        raise AssertionError(f"bash ended under {command.text!r}: {''.join(printed)}")

    def _fork(self, words: list[str]) -> tuple[str, int]:
        """Run the program in a fork of this process: it need not import everything anew."""
        with tempfile.TemporaryFile() as file:
            child = os.fork()
            if child == 0:
                code = 70
                try:
                    code = self._run_forked(words, file.fileno())
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            file.seek(0)
            return file.read().decode(), os.waitstatus_to_exitcode(status)

    def _run_forked(self, words: list[str], output: int) -> int:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8")
        os.chdir(self._folder)
        os.environ.update(self.environment)
        try:
            return run_millstream(words[1:])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stdout.flush()

    def _interrupt(self, command: Command) -> tuple[str, int]:
        """Let it run for a moment, then ^C; that it ends so is its good end.

        Where that was too short for a word, a busy machine, the next one has twice as long.
        """
        text = command.text.removesuffix("# ^C")
        with subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            env=self.environment,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=self._interrupt_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                printed, _ = process.communicate(timeout=PATIENCE_S)
        if not printed:
            self._interrupt_s *= 2
        return printed, 0 if process.returncode in (0, 130) else process.returncode

    def close(self) -> None:
        """End what is still running: everything in the shell's session, and nothing else."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait()


def check(shell: Shell, command: Command, where: str) -> None:
    """Type a command and compare; a command that only looks is typed until it fits."""
    if command.text.startswith("millstream broker"):
        return
    loosely = _MILLSTREAM.match(command.text) is not None
    deadline = time.monotonic() + PATIENCE_S
    while True:
        printed, code = shell.type(command)
        fits = not command.output or matches(printed, command.output, loosely=loosely)
        if fits and code == command.code:
            return
        if not _LOOKS.search(command.text) or time.monotonic() > deadline:
            said = "\n".join(command.output)
            raise AssertionError(
                f"{where}: {command.text}\nexit code {code}, printed:\n{printed}"
                f"\nthe page says, with exit code {command.code}:\n{said}"
            )


@contextlib.contextmanager
def shell(folder: Path, url: str) -> Iterator[Shell]:
    """A shell for one page."""
    one = Shell(folder, url)
    try:
        yield one
    finally:
        one.close()
