"""A PostgreSQL server of a test's own: Debian's binaries, a new folder, a free port, no root.

``initdb`` and ``postgres`` refuse to run as root, so that they run as ``postgres`` (or ``nobody``)
where the tests do. A small supervisor process starts the server, ends it when its standard input
does (this process closed it, or is gone, however it went), and removes the folder. ::

    with Postgres() as server:
        connection = psycopg.connect(server.dsn)
"""

import contextlib
import functools
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helpers.require import MissingError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
PORTS_TRIED = 5

_SUPERVISOR = """
import shutil, signal, subprocess, sys
folder, user, *command = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_IGN)
options = {"user": user, "group": user, "extra_groups": []} if user else {}
with open(folder + "/log", "ab") as log:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                              cwd=folder, start_new_session=True, **options)
sys.stdin.read()
if server.poll() is None:
    server.send_signal(signal.SIGQUIT)  # at once, without a checkpoint: all it wrote goes with it
server.wait()
shutil.rmtree(folder, ignore_errors=True)
"""


@functools.cache
def binaries() -> Path:
    """Folder of ``initdb`` and ``postgres``, the newest there is. Raises MissingError."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    for pattern in ("usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql@*/bin"):
        folders += sorted(Path("/").glob(pattern), key=_version_of, reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise MissingError("no PostgreSQL server (initdb and postgres; apt-get install postgresql)")


def server_user() -> str:
    """Who runs the server: empty for us ourselves. Raises MissingError."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise MissingError("PostgreSQL will not run as root, and there is no user postgres or nobody")


def probe() -> None:
    """Whether all is there. Raises MissingError."""
    binaries()
    server_user()
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingError("no psycopg (it comes with the extra postgres)") from error


class Postgres:
    """One server on 127.0.0.1 with an empty database; everything goes when it is closed."""

    def __init__(self) -> None:
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._user = server_user()
        self.port = 0

    @property
    def dsn(self) -> str:
        """What psycopg connects with."""
        user = self._user or getpass.getuser()
        return f"host=127.0.0.1 port={self.port} user={user} dbname=postgres connect_timeout=10"

    @property
    def log(self) -> str:
        """What the server printed."""
        with contextlib.suppress(FileNotFoundError):
            return Path(self._folder, "log").read_text(errors="replace")
        return ""

    def open(self) -> Self:
        """Start, and block until it takes connections. Raises RuntimeError with its log."""
        log = ""
        for _ in range(PORTS_TRIED):
            self._start()
            if self._is_ready():
                return self
            log = self.log
            self.close()
            if "could not bind" not in log:
                break
        raise RuntimeError(f"the PostgreSQL server did not get ready\n{log[-4000:]}")

    def close(self) -> None:
        """End it, and remove what it wrote."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None and supervisor.stdin is not None:
            supervisor.stdin.close()
            supervisor.wait(STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="millstream-postgres-")
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        data = f"{self._folder}/data"
        as_user = [sys.executable, "-I", "-S", "-c", _SUPERVISOR]
        try:
            subprocess.run(
                [binaries() / "initdb", "-D", data, "-A", "trust", "-N", "-E", "UTF8"],
                check=True,
                capture_output=True,
                cwd=self._folder,
                user=self._user or None,
                group=self._user or None,
                extra_groups=[] if self._user else None,
                env={**os.environ, "LC_ALL": "C"},
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.port = _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "60",
        }
        command = [str(binaries() / "postgres"), "-D", data, "-p", str(self.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._supervisor = subprocess.Popen(
            [*as_user, self._folder, self._user, *command], stdin=subprocess.PIPE
        )

    def _is_ready(self) -> bool:
        """Whether ``postmaster.pid`` says ready; waiting for the supervisor's end is the pause."""
        assert self._supervisor is not None
        for _ in range(int(START_TIMEOUT_S / 0.02)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(0.02)
                return False
            with contextlib.suppress(FileNotFoundError):
                if "ready" in Path(self._folder, "data", "postmaster.pid").read_text():
                    return True
            if "database system is shut down" in self.log or "FATAL" in self.log:
                return False
        return False


def _version_of(folder: Path) -> float:
    digits = "".join(it for it in folder.parent.name if it.isdigit() or it == ".")
    return float(digits or 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
