"""The bucket of schemas in NATS, a key-value store: written by the copy, read by who decodes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ..errors import ConfigurationError, ConnectionLost, Unreachable
from ..jetstream.api import ApiError, call, store, stored_message, stream_info
from ..jetstream.connection import Connection
from ..jetstream.target import NatsTarget
from .schema import BUCKET, Schema, config_key, id_key, is_of_default_context, version_key

_STREAM = f"KV_{BUCKET}"


class SchemaBucket:
    """Made by `open_bucket`, whose errors everything here may raise."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def keys(self) -> set[str]:
        """All keys there are."""
        found: set[str] = set()
        while True:
            body = {"subjects_filter": f"$KV.{BUCKET}.>", "offset": len(found)}
            info = await call(self._connection, f"STREAM.INFO.{_STREAM}", body)
            page = info["state"].get("subjects") or {}
            found |= {subject.removeprefix(f"$KV.{BUCKET}.") for subject in page}
            if len(found) >= int(info.get("total", 0)) or not page:
                return found

    async def put(self, schema: Schema) -> None:
        """Write one version; its own key last: where that is, the copy of it is whole."""
        data = msgspec.json.encode(schema)
        if is_of_default_context(schema.subject):
            await self._put(id_key(schema.id), data)
        await self._put(version_key(schema.subject, schema.version), data)

    async def put_config(self, subject: str | None, compatibility: str | None) -> bool:
        """Write what compatibility is asked for; whether that was new. None: nothing is said."""
        key = config_key(subject)
        data = msgspec.json.encode({"compatibility": compatibility})
        before = await self._get(key)
        if before == data or (before is None and compatibility is None):
            return False
        await self._put(key, data)
        return True

    async def by_id(self, schema_id: int) -> Schema | None:
        """The schema of an id."""
        return _schema(await self._get(id_key(schema_id)))

    async def by_version(self, subject: str, version: int) -> Schema | None:
        """One version of a subject."""
        return _schema(await self._get(version_key(subject, version)))

    async def _get(self, key: str) -> bytes | None:
        found = await stored_message(self._connection, _STREAM, last_of=f"$KV.{BUCKET}.{key}")
        return None if found is None else found.payload

    async def _put(self, key: str, data: bytes) -> None:
        await store(self._connection, f"$KV.{BUCKET}.{key}", data)


@asynccontextmanager
async def open_bucket(
    target: str | NatsTarget, *, may_create: bool, replicas: int = 1
) -> AsyncIterator[SchemaBucket]:
    """The bucket over a connection of its own; Unreachable, ConfigurationError."""
    connection = await Connection.open(target, name="millstream bridge schemas")
    try:
        await _ensure(connection, may_create, replicas)
        yield SchemaBucket(connection)
    except ApiError as error:
        raise ConfigurationError(f"bucket {BUCKET}: {error}") from error
    except ConnectionLost as lost:
        raise Unreachable("JetStream", connection.url, str(lost)) from lost
    finally:
        await connection.close()


async def _ensure(connection: Connection, may_create: bool, replicas: int) -> None:
    if await stream_info(connection, _STREAM) is None:
        if not may_create:
            raise ConfigurationError(f"there is no bucket {BUCKET}: copy schemas first")
        # What every client makes of a key-value bucket with one value per key (ADR-8).
        config: dict[str, Any] = {
            "name": _STREAM,
            "subjects": [f"$KV.{BUCKET}.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "duplicate_window": 120_000_000_000,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
        }
        await call(connection, f"STREAM.CREATE.{_STREAM}", config)


def _schema(data: bytes | None) -> Schema | None:
    return None if data is None else msgspec.json.decode(data, type=Schema)
