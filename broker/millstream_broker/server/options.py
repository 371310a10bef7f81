"""The settings of one server, read once and passed down."""

import sys
from dataclasses import dataclass
from pathlib import Path

VERSION = "2.15.1"
"""The nats-server whose behaviour this is; clients gate features on it."""
API_LEVEL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Defaults are nats-server's. Ports: -1 or 0 take a free one; sizes in bytes."""

    host: str = "0.0.0.0"  # noqa: S104 - nats-server's default
    port: int = 4222
    server_name: str = ""
    jetstream: bool = False
    store_dir: Path | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    monitor_port: int | None = None
    max_payload: int = 1024 * 1024
    max_pending: int = 64 * 1024 * 1024
    max_control_line: int = 4096
    max_connections: int = 65_536
    max_subscriptions: int = 0
    ping_interval_s: float = 120.0
    ping_max: int = 2
    write_deadline_s: float = 10.0
    auth_timeout_s: float = 2.0
    pid_file: Path | None = None
    ports_file_dir: Path | None = None
    ready_file: Path | None = None


def python_version() -> str:
    """What INFO gives for ``go``."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
