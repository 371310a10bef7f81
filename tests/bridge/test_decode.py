"""Values read with the schemas in the bucket: Avro, Protobuf, JSON, and what cannot be read."""

import datetime as dt
import decimal
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import (
    any_pb2,  # noqa: F401 - what a schema here imports must be known before it
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,  # noqa: F401
)

from millstream_bridge import ConfigurationError
from millstream_bridge.schemas.bucket import open_bucket
from millstream_bridge.schemas.copying import copy_schemas
from millstream_bridge.schemas.decode import DecodeError, Decoder, open_decoder
from millstream_bridge.schemas.registry import Registry
from tests.bridge.test_schemas import ADDRESS, JSON, name
from tests.helpers.registry import SchemaRegistry, StandIn, stand_in_registry
from tests.helpers.servers import Server

__all__ = ["name"]  # a fixture

PERSON = json.dumps(
    {
        "type": "record",
        "name": "Person",
        "fields": [
            {"name": "name", "type": "string"},
            {"name": "home", "type": ["null", "Address"]},
            {"name": "born", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "photo", "type": "bytes"},
            {
                "name": "owes",
                "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
            },
        ],
    }
)
CAR_JSON = '{"$id":"car.json","type":"object","properties":{"seats":{"type":"integer"}}}'
RENTAL_JSON = (
    '{"$schema":"http://json-schema.org/draft-07/schema#","title":"Rental","type":"object",'
    '"properties":{"car":{"$ref":"car.json"}}}'
)
PLACE = f"airports{os.getpid()}/place.proto"
"""Confluent's serializer registers a file under the name by which it is imported."""
PLACE_PROTO = 'syntax = "proto3";\npackage airports;\nmessage Place {\n  string city = 1;\n}\n'
FLIGHT = f"flights{os.getpid()}.proto"
FLIGHT_PROTO = f"""syntax = "proto3";
package flights;
import "{PLACE}";
import "google/protobuf/any.proto";
import "google/protobuf/timestamp.proto";
message Outer {{
  string a = 1;
  message Inner {{
    int64 b = 1;
  }}
}}
enum State {{
  PLANNED = 0;
  GONE = 1;
}}
message Flight {{
  string tail = 1;
  airports.Place to = 2;
  google.protobuf.Timestamp leaves_at = 3;
  State state = 4;
  repeated Outer.Inner legs = 5;
  google.protobuf.Any more = 6;
}}
"""


@pytest.fixture
def client(registry: SchemaRegistry) -> Iterator[SchemaRegistryClient]:
    """Confluent's own."""
    with SchemaRegistryClient({"url": registry.url}) as client:
        yield client


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with stand_in_registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The message classes of `FLIGHT_PROTO`, by their full names."""
    folder = tmp_path_factory.mktemp("proto")
    (folder / PLACE).parent.mkdir()
    (folder / PLACE).write_text(PLACE_PROTO)
    (folder / FLIGHT).write_text(FLIGHT_PROTO)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            "--descriptor_set_out=made",
            "--include_imports",
            FLIGHT,
        ],
        cwd=folder,
        check=True,
    )
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(folder, "made").read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return {
        kind: message_factory.GetMessageClass(pool.FindMessageTypeByName(kind))
        for kind in ("flights.Outer", "flights.Outer.Inner", "flights.Flight")
    }


async def decoded(registry: SchemaRegistry, server: Server, value: bytes) -> Any:
    """The value as it is read; what its JSON form is made of."""
    await copy_schemas(registry=Registry(url=registry.url), nats=server.url)
    async with open_decoder(server.url) as decoder:
        found = await decoder.decode(value)
        return found, json.loads(await decoder.to_json(value))


def of(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE)


async def test_confluents_avro_is_read_with_a_referenced_schema(
    registry: SchemaRegistry, client: SchemaRegistryClient, server: Server, name: str
) -> None:
    client.register_schema(f"{name}-address", Schema(ADDRESS, "AVRO"))
    schema = Schema(PERSON, "AVRO", [SchemaReference("Address", f"{name}-address", 1)])
    person = {
        "name": "Ada",
        "home": {"city": "London"},
        "born": dt.datetime(1815, 12, 10, tzinfo=dt.UTC),
        "id": uuid.UUID(int=7),
        "photo": b"\0\xff",
        "owes": decimal.Decimal("12.50"),
    }

    value = AvroSerializer(client, schema)(person, of(name))
    found, as_json = await decoded(registry, server, value)

    assert found == person
    assert as_json == {
        "name": "Ada",
        "home": {"city": "London"},
        "born": "1815-12-10T00:00:00Z",
        "id": str(uuid.UUID(int=7)),
        "photo": "AP8=",
        "owes": "12.50",
    }


async def test_confluents_json_is_read(
    registry: SchemaRegistry, client: SchemaRegistryClient, server: Server, name: str
) -> None:
    client.register_schema(f"{name}-car", Schema(CAR_JSON, "JSON"))
    schema = Schema(RENTAL_JSON, "JSON", [SchemaReference("car.json", f"{name}-car", 1)])
    rental = {"car": {"seats": 4}}

    value = JSONSerializer(schema, client)(rental, of(name))

    assert await decoded(registry, server, value) == (rental, rental)


def a_flight(messages: Mapping[str, Any]) -> Any:
    flight = messages["flights.Flight"](tail="N1", state=1, legs=[{"b": 7}])
    flight.to.city = "Oslo"
    flight.leaves_at.seconds = 86400
    flight.more.Pack(messages["flights.Outer"](a="x"))
    return flight


FLIGHT_READ = {
    "tail": "N1",
    "to": {"city": "Oslo"},
    "leaves_at": "1970-01-02T00:00:00Z",
    "state": "GONE",
    "legs": [{"b": "7"}],
    "more": {"@type": "type.googleapis.com/flights.Outer", "a": "x"},
}


async def test_confluents_protobuf_is_read_whose_schema_is_a_compiled_one(
    registry: SchemaRegistry,
    client: SchemaRegistryClient,
    server: Server,
    name: str,
    messages: Mapping[str, Any],
) -> None:
    serialize = ProtobufSerializer(messages["flights.Flight"], client)

    value = serialize(a_flight(messages), of(name))

    assert await decoded(registry, server, value) == (FLIGHT_READ, FLIGHT_READ)


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("flights.Outer", b"\0"),
        ("flights.Outer.Inner", b"\x04\0\0"),
        ("flights.Flight", b"\x02\x02"),
    ],
)
async def test_protobuf_is_read_by_the_text_of_its_schema_and_the_messages_place_in_it(
    registry: SchemaRegistry,
    server: Server,
    name: str,
    messages: Mapping[str, Any],
    kind: str,
    places: bytes,
) -> None:
    registry.register(f"{name}-place", PLACE_PROTO, "PROTOBUF")
    reference = {"name": PLACE, "subject": f"{name}-place", "version": 1}
    schema_id = registry.register(name, FLIGHT_PROTO, "PROTOBUF", [reference])
    message, read = {
        "flights.Outer": (messages["flights.Outer"](a="x"), {"a": "x"}),
        "flights.Outer.Inner": (messages["flights.Outer.Inner"](b=7), {"b": "7"}),
        "flights.Flight": (a_flight(messages), FLIGHT_READ),
    }[kind]

    head = b"\0" + schema_id.to_bytes(4, "big") + places
    found, _ = await decoded(registry, server, head + message.SerializeToString())

    assert found == read


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"", "no schema id"),
        (b"\x01\0\0\0\x01x", "no schema id"),
        (b"\0\0\0\0\x99x", "no schema of id 153"),
        (b"\0\0\0\0\x01", "does not fit schema 1"),
        (b"\0\0\0\0\x01\xff", "does not fit schema 1"),
        (b"\0\0\0\0\x02{", "does not fit schema 2"),
        (b"\0\0\0\0\x03\x02\x02", "does not fit schema 3"),  # there is no second message
        (b"\0\0\0\0\x03\x02\x01", "does not fit schema 3.*none that counts"),  # -1
        (b"\0\0\0\0\x03\xff\xff\xff\xff\xff", "does not fit schema 3.*none that counts"),
        (
            b"\0\0\0\0\x04\0",
            r"schema 4 cannot be used: schema-4\.proto:1:8: Expected message name\.$",
        ),
        (b"\0\0\0\0\x09\0", "schema 9 cannot be used: schema-9.proto:1:1: Import.*not found"),
        (b"\0\0\0\0\x05\0", "schema 5 cannot be used: .*from elsewhere"),
        (b"\0\0\0\0\x06", "schema 6 cannot be used"),
        (b"\0\0\0\0\x07", "schema 7 is made with away version 1, which is not there"),
        (b"\0\0\0\0\x08", "schema 8 is XML, which is not known"),
    ],
)
async def test_what_cannot_be_read_says_why_in_one_line(
    stand_in: StandIn, server: Server, value: bytes, complaint: str
) -> None:
    stand_in.register("a", ADDRESS)
    stand_in.register("b", JSON, "JSON")
    stand_in.register("c", PLACE_PROTO, "PROTOBUF")
    stand_in.register("d", "message", "PROTOBUF")
    outside = {"name": "../outside.proto", "subject": "c", "version": 1}
    stand_in.register("e", 'import "../outside.proto";', "PROTOBUF", [outside])
    stand_in.register("f", '{"type":"Nothing"}')
    stand_in.register("g", ADDRESS, "AVRO", [{"name": "x", "subject": "away", "version": 1}])
    stand_in.register("h", "<a/>", "XML")
    stand_in.register("i", 'import "away.proto";', "PROTOBUF")

    with pytest.raises(DecodeError, match=complaint) as error:
        await decoded(stand_in, server, value)

    assert "\n" not in str(error.value)


async def test_a_schema_that_cannot_be_used_is_tried_once(
    stand_in: StandIn, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.register("d", "message", "PROTOBUF")
    await copy_schemas(registry=Registry(url=stand_in.url), nats=server.url)

    async with open_decoder(server.url) as decoder:
        for _ in range(2):
            with pytest.raises(DecodeError, match="Expected message name"):
                await decoder.decode(b"\0\0\0\0\x01\0")
            monkeypatch.delattr("subprocess.run", raising=False)


async def test_a_schema_made_to_break_its_compiler_is_refused(
    stand_in: StandIn, server: Server
) -> None:
    groups = 'syntax = "proto2"; message A {' + "optional group A = 1 {" * 30_000
    stand_in.register("a", groups + "}" * 30_001, "PROTOBUF")  # takes gigabytes, where it may
    stand_in.register("b", "message A {" + "x y;" * 10_000, "PROTOBUF")
    await copy_schemas(registry=Registry(url=stand_in.url), nats=server.url)

    async with open_decoder(server.url) as decoder:
        with pytest.raises(DecodeError, match=r"cannot be used: (signal \d+ ended|it takes more)"):
            await decoder.decode(b"\0\0\0\0\x01\0")
        with pytest.raises(DecodeError, match=r"cannot be used: schema-2\.proto:1:") as error:
            await decoder.decode(b"\0\0\0\0\x02\0")

    assert len(str(error.value)) < 2_000


async def test_no_file_that_a_schema_refers_to_is_run(
    stand_in: StandIn, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    stand_in.register("module", f"open({str(ran)!r}, 'w')", "PROTOBUF")
    module = {"name": "sitecustomize.py", "subject": "module", "version": 1}
    stand_in.register("a", PLACE_PROTO, "PROTOBUF", [module])
    monkeypatch.setenv("PYTHONPATH", ".")

    found, _ = await decoded(stand_in, server, b"\0\0\0\0\x02\0")

    assert found == {}
    assert not ran.exists()


async def test_without_the_extra_it_is_said_what_to_install(
    stand_in: StandIn, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.register("a", ADDRESS)
    stand_in.register("c", PLACE_PROTO, "PROTOBUF")
    await copy_schemas(registry=Registry(url=stand_in.url), nats=server.url)
    monkeypatch.setitem(sys.modules, "fastavro", None)
    monkeypatch.setitem(sys.modules, "grpc_tools", None)

    async with open_decoder(server.url) as decoder:
        for schema_id in (b"\x01", b"\x02"):
            with pytest.raises(ConfigurationError, match=r"millstream\[schemas\]"):
                await decoder.decode(b"\0\0\0\0" + schema_id + b"\0")


async def test_null_is_null(server: Server) -> None:
    async with open_bucket(server.url, may_create=True):
        pass
    async with open_decoder(server.url) as decoder:
        assert isinstance(decoder, Decoder)
        assert await decoder.decode(None) is None
