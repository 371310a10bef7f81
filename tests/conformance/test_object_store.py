"""The object store through nats-py."""

import io
from typing import Any

import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import ObjectNotFoundError
from nats.js.object_store import ObjectStore

from tests.conformance.client import Client

LARGE = bytes(range(256)) * 2000


async def store(js: JetStreamContext, name: str) -> ObjectStore:
    made: ObjectStore = await js.create_object_store(
        bucket=name, config=api.ObjectStoreConfig(storage=api.StorageType.MEMORY)
    )
    return made


async def test_a_large_object_comes_back_byte_by_byte(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)

    info = await objects.put("big file.bin", LARGE)
    got = await objects.get("big file.bin")

    assert (info.size, info.chunks) == (len(LARGE), 4)
    assert got.data == LARGE


async def test_an_empty_object(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)
    await objects.put("nothing", b"")

    info = await objects.get_info("nothing")

    assert (info.size, info.chunks) == (0, 0)


async def test_an_object_is_written_to_a_file(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)
    await objects.put("x", LARGE)
    target = io.BytesIO()

    await objects.get("x", writeinto=target)

    assert target.getvalue() == LARGE


async def test_putting_again_replaces_it_and_its_chunks(
    js: JetStreamContext, client: Client, name: str
) -> None:
    objects = await store(js, name)
    await objects.put("x", LARGE)

    await objects.put("x", b"small")

    assert (await objects.get("x")).data == b"small"
    state = await client.state(f"OBJ_{name}")
    assert state["messages"] == 2


async def test_delete_purges_the_chunks(js: JetStreamContext, client: Client, name: str) -> None:
    objects = await store(js, name)
    await objects.put("x", LARGE)

    await objects.delete("x")

    with pytest.raises(ObjectNotFoundError):
        await objects.get("x")
    assert (await client.state(f"OBJ_{name}"))["messages"] == 1


async def test_list_shows_what_is_not_deleted(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)
    for key in ("a", "b", "c"):
        await objects.put(key, b"x")
    await objects.delete("b")

    assert [info.name for info in await objects.list(ignore_deletes=True)] == ["a", "c"]


async def test_a_watcher_sees_new_objects(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)
    await objects.put("before", b"x")

    watcher: Any = await objects.watch()
    before, mark = await watcher.updates(), await watcher.updates()
    await objects.put("after", b"x")
    after = await watcher.updates()
    await watcher.stop()

    assert (before.name, mark, after.name) == ("before", None, "after")


async def test_a_sealed_store_takes_nothing(js: JetStreamContext, name: str) -> None:
    objects: Any = await store(js, name)
    await objects.put("x", b"1")

    await objects.seal()

    assert (await objects.status()).sealed is True
    assert (await objects.get("x")).data == b"1"


async def test_metadata_can_be_changed(js: JetStreamContext, name: str) -> None:
    objects = await store(js, name)
    await objects.put("old", b"1", meta=api.ObjectMeta(description="first"))

    await objects.update_meta("old", api.ObjectMeta(name="old", description="second"))

    info = await objects.get_info("old")
    assert info.description == "second"
    assert (await objects.get("old")).data == b"1"
