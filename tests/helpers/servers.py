"""The two servers as child processes: the embedded broker and the real nats-server.

Both take the same flags, choose a free port and write it to a ``*.ports`` file, which is how a test
learns that the server is ready: no log is scraped and no port is guessed. ::

    async with embedded_server(tmp_path) as server:
        client = await nats.connect(server.url)
        server.kill()              # SIGKILL, as a crash would
        await server.restart()     # same port, same store

Nothing here needs pytest or a running loop: ``Server`` alone is an ordinary context manager, too,
for benchmarks and session fixtures. A server is always reaped; should the process that started it
be killed itself, a small guardian process ends what it left behind.
"""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.helpers import require

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 15.0

EMBEDDED = "embedded"
REAL = "real"


class ServerFailed(RuntimeError):
    """The server did not get ready, or ended when it should not; ``log`` is what it printed."""

    def __init__(self, what: str, log: str) -> None:
        super().__init__(f"{what}\n{log[-4000:]}")
        self.log = log


class Server:
    """One server process on 127.0.0.1.

    ``arguments`` come after the usual ones (a configuration file, more flags); ``jetstream=False``
    leaves JetStream out. ``store_dir`` stays when the server goes: the caller owns it.
    """

    def __init__(
        self,
        kind: str,
        store_dir: Path | str,
        *,
        arguments: Sequence[str] = (),
        jetstream: bool = True,
        port: int = -1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.store_dir = Path(store_dir)
        self._arguments = tuple(arguments)
        self._jetstream = jetstream
        self._port = port
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._run_dir: tempfile.TemporaryDirectory[str] | None = None
        self._paused = False

    @property
    def port(self) -> int:
        """The client port; it stays the same over ``restart``."""
        if self._port <= 0:
            raise ServerFailed(f"the {self.kind} server was not started", "")
        return self._port

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises ServerFailed when there is none."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"the {self.kind} server does not run", self.log)
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server printed since it was first started, standard error included."""
        if self._run_dir is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return Path(self._run_dir.name, "log").read_text(errors="replace")
        return ""

    def command(self) -> list[str]:
        """The command line of the next start."""
        if self.kind == REAL:
            program = [str(require.nats_server())]
        else:
            program = [sys.executable, "-m", "millstream", "broker", "--end-with-stdin"]
        flags = ["-a", "127.0.0.1", "-p", str(self._port), "--ports_file_dir", self._ports_dir()]
        if self._jetstream:
            flags += ["-js", "-sd", str(self.store_dir)]
        return [*program, *flags, *self._arguments]

    def open(self) -> Self:
        """Start, and block until the server takes clients. Raises ServerFailed."""
        if self.is_running:
            raise ServerFailed(f"the {self.kind} server runs already", self.log)
        self.store_dir.mkdir(parents=True, exist_ok=True)
        is_first_start = self._run_dir is None
        if self._run_dir is None:
            self._run_dir = tempfile.TemporaryDirectory(prefix="millstream-server-")
        for stale in Path(self._ports_dir()).glob("*.ports"):
            stale.unlink()
        with Path(self._run_dir.name, "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.PIPE if self.kind == EMBEDDED else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
            )
        _guardian().watch(self._process.pid)
        self._paused = False
        try:
            self._port = self._await_port(self._process)
        except BaseException:
            self.kill()
            if is_first_start:
                self.close()  # nobody entered the block, so nobody will
            raise
        return self

    def kill(self) -> None:
        """SIGKILL and reap: what a crash leaves. Nothing happens when it does not run."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        self._reap(process)

    def pause(self) -> None:
        """SIGSTOP: when this returns the process stands still; its sockets stay open."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13
            # The last of its threads stops a moment after kill(2) returned; WNOWAIT reaps nothing.
            os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def terminate(self) -> int:
        """SIGTERM, wait for the end (SIGKILL when it takes too long), and return the exit code."""
        process = self._process
        if process is None:
            raise ServerFailed(f"the {self.kind} server was not started", "")
        if process.poll() is None:
            if self._paused:
                self.resume()
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerFailed(f"the {self.kind} server ignored SIGTERM", self.log) from None
        self._reap(process)
        return process.returncode

    def close(self) -> None:
        """End the server however it is, and remove what this object made (not ``store_dir``)."""
        self.kill()
        if self._run_dir is not None:
            self._run_dir.cleanup()
            self._run_dir = None

    def reopen(self) -> None:
        """``restart`` without a loop: end it if it runs, start on the same port and store."""
        if self.is_running:
            self.terminate()
        self.open()

    async def restart(self) -> None:
        """Start again on the same port and store; one that still runs gets SIGTERM first."""
        await asyncio.to_thread(self.reopen)

    async def stop(self) -> int:
        """``terminate`` without blocking the loop."""
        return await asyncio.to_thread(self.terminate)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ports_dir(self) -> str:
        return self._run_dir.name if self._run_dir is not None else tempfile.gettempdir()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait(STOP_TIMEOUT_S)
        if process.stdin is not None:
            process.stdin.close()
        _guardian().forget(process.pid)

    def _await_port(self, process: subprocess.Popen[bytes]) -> int:
        """The port from the ports file; waiting for the child's end is the pause between looks."""
        for _ in range(int(START_TIMEOUT_S / 0.01)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.01)
                raise ServerFailed(f"the {self.kind} server ended with exit code {code}", self.log)
            for file in Path(self._ports_dir()).glob("*.ports"):
                # An empty or half-written file is one that is not there yet.
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    urls: list[str] = json.loads(file.read_text())["nats"]
                    port = urlsplit(urls[0]).port
                    if port:
                        return port
        raise ServerFailed(f"the {self.kind} server was not ready in time", self.log)


@asynccontextmanager
async def embedded_server(
    store_dir: Path | str,
    *,
    arguments: Sequence[str] = (),
    jetstream: bool = True,
    port: int = -1,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Millstream's own broker in a process of its own."""
    server = Server(
        EMBEDDED,
        store_dir,
        arguments=arguments,
        jetstream=jetstream,
        port=port,
        environment=environment,
    )
    async with _opened(server):
        yield server


@asynccontextmanager
async def real_server(
    store_dir: Path | str,
    *,
    arguments: Sequence[str] = (),
    jetstream: bool = True,
    port: int = -1,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """The nats-server of the test extra. Raises require.MissingError when it is not installed."""
    server = Server(
        REAL,
        store_dir,
        arguments=arguments,
        jetstream=jetstream,
        port=port,
        environment=environment,
    )
    async with _opened(server):
        yield server


@asynccontextmanager
async def _opened(server: Server) -> AsyncIterator[Server]:
    try:
        await asyncio.to_thread(server.open)
        yield server
    finally:
        server.close()


class _Guardian:
    """A child that outlives us just long enough to kill the servers we could not end ourselves.

    It reads ``+pid`` and ``-pid`` lines and, at end of file (we are gone, however we went), kills
    the pids still listed. A pid is taken off the list when it is reaped, so none is killed twice.
    """

    PROGRAM = (
        "import os,signal,sys\n"
        "signal.signal(signal.SIGINT,signal.SIG_IGN)\n"
        "pids=set()\n"
        "for line in sys.stdin:\n"
        "    (pids.add if line[0]=='+' else pids.discard)(int(line[1:]))\n"
        "for pid in pids:\n"
        "    try: os.kill(pid,signal.SIGKILL)\n"
        "    except OSError: pass\n"
    )

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self.PROGRAM], stdin=subprocess.PIPE
        )

    def watch(self, pid: int) -> None:
        self._say(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._say(f"-{pid}\n")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(STOP_TIMEOUT_S)

    def _say(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


@functools.cache
def _guardian() -> _Guardian:
    guardian = _Guardian()
    atexit.register(guardian.close)
    return guardian
