"""Values in a registry's wire format, read with the schemas in the bucket.

Needs the extra ``millstream[schemas]``. Records keep their bytes when they are moved, so what
proves that they were moved still holds; who wants to see what is in them decodes them. The format:
a zero byte, the schema's id in four bytes, for Protobuf the place of the message's type in its
file, then the value. Avro is read by fastavro, Protobuf by Google's library, JSON as it is.
"""

import base64
import binascii
import importlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from .bucket import SchemaBucket, open_bucket
from .schema import AVRO, JSON, Schema

_HEAD_BYTES = 5
_VARINT_BYTES_MAX = 5


class DecodeError(ValueError):
    """A value is not of the format, or its schema is not there or cannot be used."""


class Decoder:
    """Reads values; made by `open_decoder`. Keeps every schema it met."""

    def __init__(self, bucket: SchemaBucket) -> None:
        self._bucket = bucket
        self._readers: dict[int, Any] = {}

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
        except ConfigurationError:
            raise
        except Exception as error:  # the libraries raise what they like
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise DecodeError(f"the value does not fit schema {schema_id}: {what}") from error

    async def to_json(self, value: bytes | None) -> bytes:
        """The same as JSON text; bytes in it become base64."""
        return msgspec.json.encode(await self.decode(value))

    async def _reader(self, schema: Schema) -> Any:
        schemas = await self._with_references(schema, {})
        if schema.type == AVRO:
            return _avro(schemas)
        if schema.type == JSON:
            return json.loads
        return _protobuf(schemas)

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


def _avro(schemas: list[tuple[str, Schema]]) -> Any:
    fastavro = _library("fastavro")
    named: dict[str, Any] = {}
    parsed: Any = None
    for _, schema in schemas:
        try:
            parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
        except Exception as error:  # the library raises what it likes
            raise DecodeError(f"schema {schema.id} cannot be used: {error}") from error
    return lambda data: fastavro.schemaless_reader(io.BytesIO(data), parsed)


def _protobuf(schemas: list[tuple[str, Schema]]) -> Any:
    descriptor_pb2 = _library("google.protobuf.descriptor_pb2")
    pool = _library("google.protobuf.descriptor_pool").DescriptorPool()
    factory = _library("google.protobuf.message_factory")
    json_format = _library("google.protobuf.json_format")
    file: Any = None
    for name, schema in schemas:
        if not schema.descriptor:
            raise DecodeError(
                f"schema {schema.id} is Protobuf, and its registry gave no compiled form of it"
            )
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(
                base64.b64decode(schema.descriptor, validate=True)
            )
            file.name = name or file.name or f"{schema.id}.proto"
            pool.Add(file)
        except (binascii.Error, ValueError, TypeError) as error:
            raise DecodeError(f"schema {schema.id} cannot be used: {error}") from error
    found = pool.FindFileByName(file.name)

    def read(data: bytes) -> Any:
        places, rest = _places(data)
        kind = list(found.message_types_by_name.values())[places[0]]
        for place in places[1:]:
            kind = kind.nested_types[place]
        message = factory.GetMessageClass(kind).FromString(rest)
        return json_format.MessageToDict(message, preserving_proto_field_name=True)

    return read


def _places(data: bytes) -> tuple[list[int], bytes]:
    """Where in its file the message's type is, outermost first; then the message."""
    count, at = _varint(data, 0)
    if count == 0:
        return [0], data[at:]
    places = []
    for _ in range(count):
        place, at = _varint(data, at)
        places.append(place)
    return places, data[at:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint and where it ends."""
    number = 0
    for n in range(_VARINT_BYTES_MAX):
        byte = data[at + n]
        number |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + n + 1
    raise DecodeError("a number in the value's head does not end")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError("decoding needs millstream[schemas]") from error
