"""Schemas copied from a registry to NATS: whole, once, kept current, nothing removed."""

import asyncio
import base64
import itertools
import json
import os
from collections.abc import Iterator

import nats
import pytest

from millstream_bridge import ConfigurationError, Unreachable
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.reader import read_stream
from millstream_bridge.schemas.bucket import open_bucket
from millstream_bridge.schemas.copying import Copied, copy_schemas, follow_schemas
from millstream_bridge.schemas.registry import Registry
from millstream_bridge.schemas.schema import Reference, Schema, config_key, version_key
from tests.bridge.moves import until
from tests.helpers.registry import SchemaRegistry, StandIn, stand_in_registry
from tests.helpers.servers import Server

ADDRESS = '{"type":"record","name":"Address","fields":[{"name":"city","type":"string"}]}'
PERSON = (
    '{"type":"record","name":"Person","fields":[{"name":"name","type":"string"},'
    '{"name":"home","type":"Address"}]}'
)
PROTO = 'syntax = "proto3";\nmessage Flight {\n  string tail = 1;\n}\n'
TRIP_PROTO = (
    'syntax = "proto3";\nimport "flights/leg.proto";\nmessage Trip {\n'
    "  repeated Flight legs = 1;\n}\n"
)
JSON = '{"type":"object","properties":{"a":{"type":"integer"}}}'
RENTAL_JSON = '{"type":"object","properties":{"car":{"$ref":"car.json"}}}'
_numbers = itertools.count()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with stand_in_registry() as registry:
        yield registry


@pytest.fixture
def name() -> str:
    """A name nobody else uses, also in a registry that other runs share; with what is escaped."""
    return f"t{os.getpid()}.{next(_numbers)} ü"


async def copied(registry: SchemaRegistry, server: Server) -> Copied:
    return await copy_schemas(registry=Registry(url=registry.url), nats=server.url)


async def test_schemas_of_all_kinds_with_references_are_copied_once(
    registry: SchemaRegistry, nats_server: Server, name: str
) -> None:
    made: dict[tuple[str, str], tuple[int, tuple[Reference, ...]]] = {}
    for kind, imported, text, importing in (
        ("AVRO", "Address", ADDRESS, PERSON),
        ("PROTOBUF", "flights/leg.proto", PROTO, TRIP_PROTO),
        ("JSON", "car.json", JSON, RENTAL_JSON),
    ):
        part = f"{name}-{kind}-part"
        made[kind, text] = (registry.register(part, text, kind), ())
        reference = {"name": imported, "subject": part, "version": 1}
        whole = registry.register(f"{name}-{kind}", importing, kind, [reference])
        made[kind, importing] = (whole, (Reference(imported, part, 1),))

    first = await copied(registry, nats_server)
    again = await copied(registry, nats_server)

    assert first.versions >= first.written >= len(made)
    assert (again.versions, again.written, again.configs) == (first.versions, 0, 0)
    async with open_bucket(nats_server.url, may_create=False) as bucket:
        for (kind, text), (schema_id, references) in made.items():
            by_id = await bucket.by_id(schema_id)
            assert by_id is not None
            assert (by_id.type, by_id.text, by_id.references) == (kind, text, references)
            by_name = await bucket.by_version(by_id.subject, by_id.version)
            assert by_name == by_id
        keys = await bucket.keys()
    assert "config" in keys
    assert version_key(f"{name}-JSON", 1) in keys


async def test_a_new_version_and_a_new_rule_are_taken_up_and_nothing_is_removed(
    registry: SchemaRegistry, server: Server, name: str
) -> None:
    old = registry.register(name, ADDRESS)
    registry.ask_for(name, "NONE")
    await copied(registry, server)
    new = registry.register(name, ADDRESS.replace("city", "town"))
    registry.ask_for(name, "FULL")

    found = await copied(registry, server)
    registry.delete(name)
    await copied(registry, server)

    assert (found.written, found.configs) == (1, 1)
    async with open_bucket(server.url, may_create=False) as bucket:
        for version, schema_id in enumerate((old, new), start=1):
            assert await bucket.by_id(schema_id) is not None
            assert await bucket.by_version(name, version) is not None
    assert await compatibility_of(name, server) == "FULL"


async def compatibility_of(subject: str, server: Server) -> str:
    client = await nats.connect(server.url)
    bucket = await client.jetstream().key_value("MILLSTREAM_SCHEMAS")
    entry = await bucket.get(config_key(subject))
    await client.close()
    return str(json.loads(entry.value or b"")["compatibility"])


async def test_a_version_that_was_deleted_is_copied_as_values_may_still_need_it(
    registry: SchemaRegistry, server: Server, name: str
) -> None:
    registry.register(name, ADDRESS)
    registry.ask_for(name, "NONE")
    deleted = registry.register(name, ADDRESS.replace("city", "town"))
    registry.delete(name, 2)

    found = await copied(registry, server)

    assert found.written >= 2
    async with open_bucket(server.url, may_create=False) as bucket:
        assert await bucket.by_id(deleted) is not None
        assert await bucket.by_version(name, 2) is not None


async def test_a_deleted_version_that_is_listed_and_not_shown_is_counted_until_it_is(
    stand_in: StandIn, server: Server
) -> None:
    stand_in.register("a", ADDRESS)
    stand_in.delete("a")
    stand_in.shows_deleted = False

    first = await copied(stand_in, server)
    stand_in.shows_deleted = True
    second = await copied(stand_in, server)

    assert (first.versions, first.written, first.withheld) == (1, 0, 1)
    assert (second.versions, second.written, second.withheld) == (1, 1, 0)


async def test_following_takes_up_what_comes(
    registry: SchemaRegistry, server: Server, name: str
) -> None:
    passes: list[Copied] = []
    following = asyncio.create_task(
        follow_schemas(
            registry=Registry(url=registry.url),
            nats=server.url,
            every_s=0.05,
            on_pass=passes.append,
        )
    )
    await until(lambda: bool(passes))
    before = sum(each.written for each in passes)

    registry.register(name, ADDRESS)
    await until(lambda: sum(each.written for each in passes) == before + 1)
    registry.ask_for(name, "NONE")
    registry.register(name, ADDRESS.replace("city", "town"))
    await until(lambda: sum(each.written for each in passes) == before + 2)

    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_following_goes_on_when_the_registry_was_away(
    stand_in: StandIn, server: Server
) -> None:
    passes: list[Copied] = []
    stand_in.register("a", ADDRESS)
    registry = Registry(url=stand_in.url)
    following = asyncio.create_task(
        follow_schemas(registry=registry, nats=server.url, every_s=0.01, on_pass=passes.append)
    )
    await until(lambda: bool(passes))

    stand_in.status = 503
    asked = len(stand_in.asked)
    await until(lambda: len(stand_in.asked) > asked + 2)
    stand_in.status = None
    stand_in.register("b", ADDRESS)
    await until(lambda: sum(each.written for each in passes) == 2)

    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_the_key_that_says_a_copy_is_whole_is_written_last(server: Server) -> None:
    async with open_bucket(server.url, may_create=True) as bucket:
        await bucket.put(Schema(id=7, subject="a", version=2, text=ADDRESS))
        await bucket.put(Schema(id=7, subject=":.other:a", version=1, text=ADDRESS))

    connection = await Connection.open(server.url, name="test")
    written = []
    async for messages in read_stream(
        connection, "KV_MILLSTREAM_SCHEMAS", "$KV.>", last_seq=1 << 62
    ):
        written += [message.subject for _, message in messages]
    await connection.close()
    head = "$KV.MILLSTREAM_SCHEMAS"
    assert written == [f"{head}.id.7", f"{head}.subject.a.2", f"{head}.subject.=3A=2Eother=3Aa.1"]


async def test_any_client_reads_the_bucket(stand_in: StandIn, nats_server: Server) -> None:
    schema_id = stand_in.register("a b", ADDRESS)
    await copied(stand_in, nats_server)

    client = await nats.connect(nats_server.url)
    bucket = await client.jetstream().key_value("MILLSTREAM_SCHEMAS")
    found = json.loads((await bucket.get(f"id.{schema_id}")).value or b"")
    keys = await bucket.keys()
    await client.close()

    assert (found["subject"], found["text"]) == ("a b", ADDRESS)
    assert sorted(keys) == ["config", f"id.{schema_id}", "subject.a=20b.1"]


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [(503, Unreachable, "503"), (401, ConfigurationError, "401"), (404, ConfigurationError, "404")],
)
async def test_a_registry_that_will_not_is_named(
    stand_in: StandIn, server: Server, status: int, error: type[Exception], says: str
) -> None:
    stand_in.status = status

    with pytest.raises(error, match=f"{stand_in.url}.*{says}"):
        await copied(stand_in, server)


async def test_what_is_no_registry_or_not_there_is_named(server: Server) -> None:
    with pytest.raises(Unreachable, match=r"schema registry at http://127\.0\.0\.1:1"):
        await copy_schemas(registry=Registry(url="http://127.0.0.1:1"), nats=server.url)
    for url in ("ftp://host", "host:8081", "http://u:p@host"):
        with pytest.raises(ConfigurationError, match="schema registry"):
            Registry(url=url)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b'INFO {"server_id":"N"}\r\n', ConfigurationError),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", ConfigurationError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", Unreachable),  # it went meanwhile
        (b"", Unreachable),
    ],
)
async def test_what_speaks_otherwise_is_told(
    server: Server, said: bytes, error: type[Exception]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        url = "http://{}:{}".format(*other.sockets[0].getsockname())

        with pytest.raises(error, match=f"schema registry.*{url}"):
            await copy_schemas(registry=Registry(url=url), nats=server.url)


async def test_nats_away_and_a_bucket_that_is_not_there(stand_in: StandIn, server: Server) -> None:
    with pytest.raises(Unreachable, match="NATS at"):
        await copy_schemas(registry=Registry(url=stand_in.url), nats="nats://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="copy schemas first"):
        async with open_bucket(server.url, may_create=False):
            pass


async def test_a_login_is_given_and_never_shown(stand_in: StandIn, server: Server) -> None:
    stand_in.login = "Basic " + base64.b64encode(b"me:secret").decode()
    registry = Registry(url=stand_in.url, user="me", password="secret")

    await copy_schemas(registry=registry, nats=server.url)

    assert "secret" not in repr(registry)
    stand_in.login = "Bearer other"
    with pytest.raises(ConfigurationError, match="401"):
        await copy_schemas(registry=registry, nats=server.url)
    token = Registry(url=stand_in.url, token="other")
    assert "other" not in repr(token)
    await copy_schemas(registry=token, nats=server.url)


async def test_a_login_does_not_go_where_the_registry_sends_us_on(stand_in: StandIn) -> None:
    stand_in.login = "Bearer secret"

    async def send_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {stand_in.url}{path}\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(send_on, "127.0.0.1", 0) as other:
        url = "http://{}:{}".format(*other.sockets[0].getsockname())
        with pytest.raises(ConfigurationError, match="401"):
            await Registry(url=url, token="secret").subjects()

    assert await Registry(url=stand_in.url, token="secret").subjects() == []
