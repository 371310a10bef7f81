"""A NATS Object Store over the bridge's own connection: the layout that all clients share (ADR-20).

A bucket is the stream ``OBJ_<bucket>``. An object's bytes are the messages of
``$O.<bucket>.C.<nuid>``, in order; what it is, a JSON document, is the one message of
``$O.<bucket>.M.<name, base64>``, written last: an object is there as a whole or not at all.
"""

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..errors import ConfigurationError
from .api import STREAM_NOT_FOUND, ApiError, call, store, stored_message, stream_info
from .connection import Connection
from .reader import read_stream

CHUNK_BYTES = 128 << 10
_BLOCK_BYTES = 64
"""What the header block of a chunk may take of the server's limit."""
_HASH = "SHA-256="


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an object is. ``metadata`` is free text by name, ``digest`` of its bytes."""

    name: str
    bucket: str
    nuid: str
    description: str = ""
    metadata: Mapping[str, str] = {}
    size: int = 0
    chunks: int = 0
    digest: str = ""
    mtime: str = ""
    deleted: bool = False
    options: Mapping[str, Any] = msgspec.field(
        default_factory=lambda: {"max_chunk_size": CHUNK_BYTES}
    )


class Objects:
    """One bucket; made by the first `put` if it is not there.

    All of it may raise ConnectionLost, and ConfigurationError where JetStream refuses a request.
    """

    def __init__(
        self, connection: Connection, bucket: str, *, storage: str = "file", replicas: int = 1
    ) -> None:
        self._connection = connection
        self.bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._storage = storage
        self._replicas = replicas
        self._is_there = False

    async def put(
        self, name: str, data: bytes, *, description: str = "", metadata: Mapping[str, str] = {}
    ) -> ObjectInfo:
        """Store an object in place of the one that has this name.

        Of one that is refused midway nothing stays: its pieces would take the room it waits for.
        """
        await self._ensure()
        before = await self.info(name)
        nuid = secrets.token_hex(11)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        size = min(CHUNK_BYTES, self._connection.max_payload - _BLOCK_BYTES)
        starts = range(0, len(data), size)
        info = ObjectInfo(
            name=name,
            bucket=self.bucket,
            nuid=nuid,
            description=description,
            metadata=metadata,
            size=len(data),
            chunks=len(starts),
            digest=f"{_HASH}{digest}",
            mtime=datetime.now(UTC).isoformat(),
            options={"max_chunk_size": size},
        )
        try:
            for start in starts:
                await self._publish(f"C.{nuid}", data[start : start + size])
            await self._write_info(info)
        except ConfigurationError:
            with suppress(ConfigurationError):
                await self._purge(nuid)
            raise
        if before is not None:
            await self._purge(before.nuid)
        return info

    async def info(self, name: str) -> ObjectInfo | None:
        """What an object is, None if there is none of this name."""
        subject = f"$O.{self.bucket}.M.{_token(name)}"
        try:
            found = await stored_message(self._connection, self._stream, last_of=subject)
        except ApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return None
            raise self._refused(error) from error
        return None if found is None else _parse(found.payload)

    async def get(self, name: str) -> bytes | None:
        """An object's bytes, None if there is none of this name; ValueError: damaged."""
        info = await self.info(name)
        if info is None:
            return None
        data = b"".join([payload async for payload in self._read(f"C.{info.nuid}")])
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        if info.digest.removeprefix(_HASH).rstrip("=") != digest:
            raise ValueError(f"object {name} of bucket {self.bucket} is damaged")
        return data

    async def list(self) -> list[ObjectInfo]:
        """All objects, in the order they were last written."""
        found = [_parse(payload) async for payload in self._read("M.*")]
        return [info for info in found if info is not None]

    async def delete(self, name: str) -> bool:
        """Remove an object; False if there was none."""
        info = await self.info(name)
        if info is None:
            return False
        gone = msgspec.structs.replace(info, size=0, chunks=0, digest="", deleted=True)
        await self._write_info(gone)
        await self._purge(info.nuid)
        return True

    async def _read(self, subject: str) -> AsyncIterator[bytes]:
        stream = await stream_info(self._connection, self._stream)
        if stream is None:
            return
        async for messages in read_stream(
            self._connection,
            self._stream,
            f"$O.{self.bucket}.{subject}",
            last_seq=stream.last_seq,
        ):
            for _, message in messages:
                yield message.payload

    async def _ensure(self) -> None:
        if self._is_there:
            return
        config = {
            "name": self._stream,
            "subjects": [f"$O.{self.bucket}.C.>", f"$O.{self.bucket}.M.>"],
            "retention": "limits",
            "storage": self._storage,
            "num_replicas": self._replicas,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        if await stream_info(self._connection, self._stream) is None:
            try:
                await call(self._connection, f"STREAM.CREATE.{self._stream}", config)
            except ApiError as error:
                raise self._refused(error) from error
        self._is_there = True

    async def _write_info(self, info: ObjectInfo) -> None:
        payload = msgspec.json.encode(info)
        await self._publish(f"M.{_token(info.name)}", payload, "Nats-Rollup: sub\r\n")

    async def _purge(self, nuid: str) -> None:
        try:
            await call(
                self._connection,
                f"STREAM.PURGE.{self._stream}",
                {"filter": f"$O.{self.bucket}.C.{nuid}"},
            )
        except ApiError as error:
            raise self._refused(error) from error

    async def _publish(self, subject: str, payload: bytes, lines: str = "") -> None:
        try:
            await store(self._connection, f"$O.{self.bucket}.{subject}", payload, lines)
        except ApiError as error:
            raise self._refused(error) from error

    def _refused(self, error: ApiError) -> ConfigurationError:
        return ConfigurationError(f"bucket {self.bucket}: {error}")


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _parse(payload: bytes) -> ObjectInfo | None:
    try:
        info = msgspec.json.decode(payload, type=ObjectInfo)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"an object's document cannot be read: {error}") from error
    return None if info.deleted else info
