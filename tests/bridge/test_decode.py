"""Values read with the schemas in the bucket: Avro, Protobuf, JSON, and what cannot be read."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from millstream_bridge.schemas.copying import copy_schemas
from millstream_bridge.schemas.decode import DecodeError, Decoder, open_decoder
from millstream_bridge.schemas.registry import Registry
from tests.bridge.test_schemas import ADDRESS, JSON, PERSON, PROTO
from tests.helpers.registry import StandIn, stand_in_registry
from tests.helpers.servers import Server


async def decoded(
    server: Server, fill: Callable[[StandIn], int], payload: bytes, head: bytes | None = None
) -> Any:
    with stand_in_registry() as registry:
        schema_id = fill(registry)
        await copy_schemas(registry=Registry(url=registry.url), nats=server.url)
    head = b"\0" + schema_id.to_bytes(4, "big") if head is None else head
    async with open_decoder(server.url) as decoder:
        found = await decoder.decode(head + payload)
        assert json.loads(await decoder.to_json(head + payload)) == found
        return found


def avro(schema: str, value: Any, **named: str) -> bytes:
    known: dict[str, Any] = {}
    for text in named.values():
        fastavro.parse_schema(json.loads(text), named_schemas=known)
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out, fastavro.parse_schema(json.loads(schema), named_schemas=known), value
    )
    return out.getvalue()


async def test_avro_with_a_referenced_schema(server: Server) -> None:
    def fill(registry: StandIn) -> int:
        registry.register("address", ADDRESS)
        reference = {"name": "Address", "subject": "address", "version": 1}
        return registry.register("person", PERSON, references=[reference])

    person = {"name": "Ada", "home": {"city": "London"}}

    assert await decoded(server, fill, avro(PERSON, person, address=ADDRESS)) == person


async def test_json_is_read_as_it_is(server: Server) -> None:
    payload = b'{"a": 7}'

    assert await decoded(server, lambda r: r.register("c", JSON, "JSON"), payload) == {"a": 7}


def compiled() -> descriptor_pb2.FileDescriptorProto:
    """``Outer { string a; Inner { int32 b } }  Flight { string tail }``."""
    file = descriptor_pb2.FileDescriptorProto(name="f.proto", package="f", syntax="proto3")
    outer = file.message_type.add(name="Outer")
    outer.field.add(name="a", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    inner = outer.nested_type.add(name="Inner")
    inner.field.add(name="b", number=1, type="TYPE_INT32", label="LABEL_OPTIONAL")
    flight = file.message_type.add(name="Flight")
    flight.field.add(name="tail", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
    return file


def message(name: str, **fields: Any) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(compiled())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"f.{name}"))
    return bytes(kind(**fields).SerializeToString())


@pytest.mark.parametrize(
    ("places", "payload", "found"),
    [
        (b"\x00", message("Outer", a="x"), {"a": "x"}),
        (b"\x02\x02", message("Flight", tail="N1"), {"tail": "N1"}),
        (b"\x04\x00\x00", message("Outer.Inner", b=7), {"b": 7}),
    ],
)
async def test_protobuf_finds_the_messages_type_by_its_place(
    server: Server, places: bytes, payload: bytes, found: dict[str, Any]
) -> None:
    def fill(registry: StandIn) -> int:
        text = base64.b64encode(compiled().SerializeToString()).decode()
        registry.descriptors[PROTO] = text
        return registry.register("flight", PROTO, "PROTOBUF")

    assert await decoded(server, fill, places + payload) == found


@pytest.mark.parametrize(
    ("head", "payload", "complaint"),
    [
        (b"", b"", "no schema id"),
        (b"\x01\0\0\0\x01", b"x", "no schema id"),
        (b"\0\0\0\0\x09", b"x", "no schema of id 9"),
        (None, b"", "does not fit schema 1"),
        (None, b"\xff", "does not fit schema 1"),
    ],
)
async def test_what_cannot_be_read_says_why(
    server: Server, head: bytes | None, payload: bytes, complaint: str
) -> None:
    with pytest.raises(DecodeError, match=complaint):
        await decoded(server, lambda r: r.register("a", ADDRESS), payload, head)


async def test_protobuf_without_a_compiled_form_is_said(server: Server) -> None:
    with pytest.raises(DecodeError, match="no compiled form"):
        await decoded(server, lambda r: r.register("f", PROTO, "PROTOBUF"), b"\0")


async def test_null_is_null(server: Server) -> None:
    assert await decoded(server, lambda r: r.register("c", JSON, "JSON"), b"1") == 1
    async with open_decoder(server.url) as decoder:
        assert isinstance(decoder, Decoder)
        assert await decoder.decode(None) is None
