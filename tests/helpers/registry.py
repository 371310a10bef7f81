"""Schema registries for tests: a stand-in in this process, or a real one by its address.

The stand-in speaks the part of Confluent's API that the bridge reads, and what a test needs to fill
it. ``SCHEMA_REGISTRY_URL`` names a real one (its Confluent-compatible API), which may have been
filled before: tests use names of their own.
"""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.helpers.require import MissingError

CONTENT = "application/vnd.schemaregistry.v1+json"


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

    def ask_for(self, subject: str, compatibility: str) -> None:
        """Set a subject's compatibility."""
        self._send("PUT", f"/config/{quote(subject, '')}", {"compatibility": compatibility})

    def delete(self, subject: str) -> None:
        """Delete a subject softly."""
        self._send("DELETE", f"/subjects/{quote(subject, '')}")

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
        self.deleted: set[str] = set()
        self.descriptors: dict[str, str] = {}
        """Compiled Protobuf, base64, by the text it is of."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        super().__init__(f"http://127.0.0.1:{self._server.server_port}")
        # It looks so often whether it is to end; by default every half a second.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """The answer to a request; KeyError: 404."""
        match method, [unquote(part) for part in path.strip("/").split("/")]:
            case "GET", ["subjects"]:
                return [s for s in self.versions if "deleted" in query or s not in self.deleted]
            case "GET", ["subjects", subject, "versions"]:
                return [each["version"] for each in self.versions[subject]]
            case "GET", ["subjects", subject, "versions", number]:
                found = self.versions[subject][int(number) - 1]
                if "format" in query:
                    return {**found, "schema": self.descriptors[found["schema"]]}
                return found
            case "POST", ["subjects", subject, "versions"]:
                known = self.versions.setdefault(subject, [])
                every = [each for versions in self.versions.values() for each in versions]
                made = {"subject": subject, "version": len(known) + 1, "id": len(every) + 1}
                made |= {"schema": body["schema"], "references": body["references"]}
                if body["schemaType"] != "AVRO":
                    made["schemaType"] = body["schemaType"]
                known.append(made)
                return {"id": made["id"]}
            case "GET", ["config", *subject]:
                return {"compatibilityLevel": self.config["".join(subject)]}
            case "PUT", ["config", subject]:
                self.config[subject] = body["compatibility"]
                return body
            case "DELETE", ["subjects", subject]:
                self.deleted.add(subject)
                return [each["version"] for each in self.versions[subject]]
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


def real_registry() -> SchemaRegistry:
    """The one ``SCHEMA_REGISTRY_URL`` names."""
    return SchemaRegistry(os.environ["SCHEMA_REGISTRY_URL"].rstrip("/"))


def probe() -> None:
    """Raises MissingError where no real registry is named."""
    if not os.environ.get("SCHEMA_REGISTRY_URL"):
        raise MissingError("no schema registry: SCHEMA_REGISTRY_URL names none")
