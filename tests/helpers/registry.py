"""Schema registries for tests: a stand-in in this process, or a real one.

The stand-in speaks the part of Confluent's API that the bridge reads, and what a test needs to fill
it. A real one is, in this order: what ``SCHEMA_REGISTRY_URL`` names (the address of its
Confluent-compatible API); Apicurio's, started here from what is in ``REGISTRY_HOME`` or
``.cache/registry`` of the checkout (with java on PATH). It may have been filled before: tests use
names of their own. Nothing is downloaded by a test. It comes with Maven by

    python -m tests.helpers.registry --fetch DIR
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.helpers.kafka import _ending_with_us, await_true, free_ports
from tests.helpers.require import MissingError

APICURIO_VERSION = "3.0.9"
"""The newest that Java 17 runs, as Kafka does."""
CONTENT = "application/vnd.schemaregistry.v1+json"
_CHECKOUT = Path(__file__).parents[2]
_DEFAULTS: Mapping[str, Any] = {"schema": "", "schemaType": "AVRO", "references": []}


@dataclass
class SchemaRegistry:
    """A registry to fill."""

    url: str

    def register(
        self,
        subject: str,
        text: str,
        kind: str = "AVRO",
        references: Sequence[Mapping[str, Any]] = (),
    ) -> int:
        """Add a version; its id."""
        body = {"schema": text, "schemaType": kind, "references": list(references)}
        answer = self._send("POST", f"/subjects/{quote(subject, '')}/versions", body)
        return int(answer["id"])

    def subjects(self) -> list[str]:
        """Those that are not deleted."""
        return [str(subject) for subject in self._send("GET", "/subjects")]

    def ask_for(self, subject: str, compatibility: str) -> None:
        """Set a subject's compatibility."""
        self._send("PUT", f"/config/{quote(subject, '')}", {"compatibility": compatibility})

    def delete(self, subject: str, version: int | None = None) -> None:
        """Delete a subject softly, or one version of it."""
        path = f"/subjects/{quote(subject, '')}"
        self._send("DELETE", path if version is None else f"{path}/versions/{version}")

    def _send(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": CONTENT},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")


class StandIn(SchemaRegistry):
    """The one in this process. ``status`` is what it answers everything with, if not None."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.login: str | None = None
        self.asked: list[str] = []
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.config: dict[str, str] = {"": "BACKWARD"}
        self.deleted: set[tuple[str, int]] = set()
        self.shows_deleted = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        super().__init__(f"http://127.0.0.1:{self._server.server_port}")
        # It looks so often whether it is to end; by default every half a second.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The answer to a request; KeyError: 404."""

        def shown(subject: str) -> list[dict[str, Any]]:
            versions = self.versions[subject]
            if "deleted" in query:
                return versions
            return [it for it in versions if (subject, it["version"]) not in self.deleted]

        match method, [unquote(part) for part in path.strip("/").split("/")]:
            case "GET", ["subjects"]:
                return [subject for subject in self.versions if shown(subject)]
            case "GET", ["subjects", subject, "versions"]:
                return [each["version"] for each in shown(subject)]
            case "GET", ["subjects", subject, "versions", number]:
                if (subject, int(number)) in self.deleted and not self.shows_deleted:
                    raise KeyError(path)
                return {each["version"]: each for each in shown(subject)}[int(number)]
            case "POST", ["subjects", subject, *rest]:
                asked = {key: body.get(key) or default for key, default in _DEFAULTS.items()}
                every = [each for versions in self.versions.values() for each in versions]
                alike = [each for each in every if asked.items() <= each.items()]
                found = [each for each in alike if each["subject"] == subject]
                if found or not rest:  # without "versions" it is a question
                    return found[0]
                last = max((each["id"] for each in every), default=0)
                known = self.versions.setdefault(subject, [])
                made = {"subject": subject, "version": len(known) + 1, **asked}
                known.append(made | {"id": alike[0]["id"] if alike else last + 1})
                return known[-1]
            case "GET", ["config", *subject]:
                return {"compatibilityLevel": self.config["".join(subject)]}
            case "PUT", ["config", subject]:
                self.config[subject] = body["compatibility"]
                return body
            case "DELETE", ["subjects", subject, *number]:
                gone = [each["version"] for each in self.versions[subject]]
                gone = [int(number[1])] if number else gone
                self.deleted |= {(subject, each) for each in gone}
                return gone
            case _:
                raise KeyError(path)


def _handler(registry: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            registry.asked.append(f"{self.command} {self.path}")
            status, answer = registry.status or 200, None
            if registry.login not in (None, self.headers.get("Authorization")):
                status = 401
            if status == 200:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"null")
                try:
                    answer = registry.answer(self.command, parts.path, parse_qs(parts.query), body)
                except (KeyError, IndexError):
                    status, answer = 404, {"error_code": 40401}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", CONTENT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class wants these names

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def stand_in_registry() -> Iterator[StandIn]:
    """A fresh stand-in."""
    registry = StandIn()
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def real_registry() -> Iterator[SchemaRegistry]:
    """A real one; MissingError says why there is none."""
    if url := os.environ.get("SCHEMA_REGISTRY_URL"):
        yield SchemaRegistry(url.rstrip("/"))
        return
    probe()
    (program,) = _home().glob("*-runner.jar")
    (port,) = free_ports(1)
    options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    where = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"]
    registry = SchemaRegistry(f"http://127.0.0.1:{port}/apis/ccompat/v7")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _ending_with_us("java", *options, *where, "-jar", str(program)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

        def answers() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"the registry ended: {log.read()[-2000:].decode()}")
            try:
                return registry.subjects() == []
            except OSError:  # not yet
                return False

        try:
            await_true(answers)
            yield registry
        finally:
            process.kill()
            process.wait()


def probe() -> None:
    """Return if `real_registry` can work; MissingError says why not."""
    if os.environ.get("SCHEMA_REGISTRY_URL"):
        return
    if shutil.which("java") is None:
        raise MissingError("no schema registry: no java on PATH")
    if not any(_home().glob("*-runner.jar")):
        raise MissingError(f"no schema registry in {_home()} (make registry)")


def fetch(folder: Path) -> None:
    """Let Maven unpack Apicurio's registry into ``folder`` (109 MB to fetch)."""
    artifact = f"io.apicurio:apicurio-registry-app:{APICURIO_VERSION}:tar.gz:all"
    where = (f"-Dartifact={artifact}", f"-DoutputDirectory={folder.resolve()}")
    with tempfile.TemporaryDirectory() as scratch:  # where no project is, marks are left behind
        command = ["mvn", "-q", "-B", "--strict-checksums", "dependency:unpack", *where]
        subprocess.run(command, cwd=scratch, check=True)


def _home() -> Path:
    return Path(os.environ.get("REGISTRY_HOME") or _CHECKOUT / ".cache" / "registry")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch Apicurio's schema registry with Maven.")
    parser.add_argument("--fetch", type=Path, metavar="DIR", required=True)
    fetch(parser.parse_args().fetch)
