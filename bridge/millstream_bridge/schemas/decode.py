"""Values in a registry's wire format, read with the schemas in the bucket.

Needs the extra ``millstream[schemas]``. Records keep their bytes when they are moved, so what
proves that they were moved still holds; who wants to see what is in them decodes them. The format:
a zero byte, the schema's id in four bytes, for Protobuf the place of the message's type in its
file, then the value. Avro is read by fastavro, Protobuf by Google's libraries, JSON as it is.
"""

import asyncio
import importlib
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from .bucket import SchemaBucket, open_bucket
from .protobuf import protobuf_reader
from .schema import AVRO, JSON, PROTOBUF, Schema

_HEAD_BYTES = 5


class DecodeError(ValueError):
    """A value is not of the format, or its schema is not there or cannot be used."""


class Decoder:
    """Reads values; made by `open_decoder`. Keeps every schema it met."""

    def __init__(self, bucket: SchemaBucket) -> None:
        self._bucket = bucket
        self._readers: dict[int, Callable[[bytes], Any]] = {}

    async def decode(self, value: bytes | None) -> Any:
        """What a value holds, as dicts, lists and plain values; null is None.

        DecodeError; ConfigurationError: the extra is not installed. Errors of `open_decoder`.
        """
        if value is None:
            return None
        if len(value) < _HEAD_BYTES or value[0] != 0:
            raise DecodeError("the value has no schema id: it does not begin with a zero byte")
        schema_id = int.from_bytes(value[1:_HEAD_BYTES], "big")
        reader = self._readers.get(schema_id)
        if reader is None:
            schema = await self._bucket.by_id(schema_id)
            if schema is None:
                raise DecodeError(f"there is no schema of id {schema_id}")
            reader = self._readers[schema_id] = await self._reader(schema)
        try:
            return reader(value[_HEAD_BYTES:])
        except DecodeError:
            raise
        except Exception as error:  # the libraries raise what they like
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise DecodeError(f"the value does not fit schema {schema_id}: {what}") from error

    async def to_json(self, value: bytes | None) -> bytes:
        """The same as JSON text; bytes in it become base64."""
        return msgspec.json.encode(await self.decode(value))

    async def _reader(self, schema: Schema) -> Callable[[bytes], Any]:
        schemas = await self._with_references(schema, {})
        make = _MAKERS.get(schema.type)
        if make is None:
            raise DecodeError(f"schema {schema.id} is {schema.type}, which is not known")
        try:
            return await asyncio.to_thread(make, schemas)
        except ImportError as error:
            raise ConfigurationError("decoding needs millstream[schemas]") from error
        except OSError as error:
            raise DecodeError(f"schema {schema.id} cannot be compiled now: {error}") from error
        except Exception as error:  # noqa: BLE001 - the libraries raise what they like
            return _refusal(f"schema {schema.id} cannot be used: {error}")

    async def _with_references(
        self, schema: Schema, found: dict[tuple[str, int], Schema], name: str = ""
    ) -> list[tuple[str, Schema]]:
        """A schema after all it is made with, each under the name it is referred to by."""
        result: list[tuple[str, Schema]] = []
        for reference in schema.references:
            place = (reference.subject, reference.version)
            if place in found:
                continue
            other = await self._bucket.by_version(*place)
            if other is None:
                raise DecodeError(
                    f"schema {schema.id} is made with {reference.subject} version"
                    f" {reference.version}, which is not there"
                )
            found[place] = other
            result += await self._with_references(other, found, reference.name)
        return [*result, (name, schema)]


@asynccontextmanager
async def open_decoder(nats: str | NatsTarget) -> AsyncIterator[Decoder]:
    """A decoder over a connection of its own; Unreachable; ConfigurationError: no bucket."""
    async with open_bucket(nats, may_create=False) as bucket:
        yield Decoder(bucket)


def _avro(schemas: list[tuple[str, Schema]]) -> Callable[[bytes], Any]:
    fastavro = importlib.import_module("fastavro")
    named: dict[str, Any] = {}
    parsed: Any = None
    for _, schema in schemas:
        parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
    return lambda data: fastavro.schemaless_reader(io.BytesIO(data), parsed)


def _json(_: list[tuple[str, Schema]]) -> Callable[[bytes], Any]:
    return json.loads


def _refusal(text: str) -> Callable[[bytes], Any]:
    """A reader for a schema that will never do: a version does not change."""

    def read(_: bytes) -> Any:
        raise DecodeError(text)

    return read


_MAKERS = {AVRO: _avro, JSON: _json, PROTOBUF: protobuf_reader}
