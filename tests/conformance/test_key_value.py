"""Key-value buckets through nats-py."""

import asyncio
from typing import Any

import pytest
from nats.js import JetStreamContext, api
from nats.js.errors import (
    BadRequestError,
    BucketNotFoundError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoKeysError,
)
from nats.js.kv import KeyValue

from tests.conformance.client import Client, eventually


async def bucket(js: JetStreamContext, name: str, **config: Any) -> KeyValue:
    return await js.create_key_value(bucket=name, storage=api.StorageType.MEMORY, **config)


class Watcher:
    """A nats-py watcher with types; the mark "that was all there is" is None."""

    def __init__(self, watcher: Any) -> None:
        self._watcher = watcher

    async def next(self) -> KeyValue.Entry | None:
        entry: KeyValue.Entry | None = await self._watcher.updates(timeout=5)
        return entry

    async def entry(self) -> KeyValue.Entry:
        found = await self.next()
        assert found is not None
        return found

    async def stop(self) -> None:
        await self._watcher.stop()


async def test_what_is_put_is_got(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)

    revision = await kv.put("hello", b"world")
    entry = await kv.get("hello")

    assert (revision, entry.revision, entry.value) == (1, 1, b"world")


@pytest.mark.parametrize("direct", [True, False])
async def test_reads_work_with_and_without_direct_get(
    js: JetStreamContext, name: str, direct: bool
) -> None:
    kv = await bucket(js, name, direct=direct, history=5)
    await kv.put("k", b"1")
    await kv.put("k", b"2")

    assert (await kv.get("k")).value == b"2"
    assert (await kv.get("k", revision=1)).value == b"1"


async def test_a_bucket_is_a_stream_with_the_agreed_config(
    js: JetStreamContext, client: Client, name: str
) -> None:
    await bucket(js, name, history=3)

    config = (await client.ok(f"STREAM.INFO.KV_{name}"))["config"]

    assert config["subjects"] == [f"$KV.{name}.>"]
    assert config["max_msgs_per_subject"] == 3
    assert config["discard"] == "new"
    assert config["allow_rollup_hdrs"] is True
    assert config["deny_delete"] is True
    assert config["allow_msg_ttl"] is True
    assert config["allow_direct"] is False


async def test_an_unknown_key(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)

    with pytest.raises(KeyNotFoundError):
        await kv.get("nothing")


async def test_create_takes_a_key_once(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    await kv.create("k", b"1")

    with pytest.raises(KeyWrongLastSequenceError):
        await kv.create("k", b"2")

    assert (await kv.get("k")).value == b"1"


async def test_create_takes_a_deleted_key_again(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    await kv.create("k", b"1")
    await kv.delete("k")

    await kv.create("k", b"2")

    assert (await kv.get("k")).value == b"2"


async def test_update_compares_and_sets(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    first = await kv.put("k", b"1")
    await kv.put("other", b"x")

    second = await kv.update("k", b"2", last=first)
    with pytest.raises(KeyWrongLastSequenceError):
        await kv.update("k", b"3", last=first)

    assert second == 3
    assert (await kv.get("k")).value == b"2"


async def test_only_one_of_many_concurrent_updates_wins(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    revision = await kv.put("k", b"0")

    outcomes = await asyncio.gather(
        *(kv.update("k", b"%d" % n, last=revision) for n in range(20)), return_exceptions=True
    )

    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, KeyWrongLastSequenceError)]
    assert (len(winners), len(losers)) == (1, 19)


async def test_delete_leaves_a_marker(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    await kv.put("k", b"1")

    await kv.delete("k")

    with pytest.raises(KeyNotFoundError) as caught:
        await kv.get("k")
    assert caught.value.op == "DEL"


async def test_delete_compares_the_revision(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    revision = await kv.put("k", b"1")
    await kv.put("k", b"2")

    with pytest.raises(BadRequestError) as caught:
        await kv.delete("k", last=revision)
    assert caught.value.err_code == 10071


async def test_purge_removes_the_history(js: JetStreamContext, client: Client, name: str) -> None:
    kv = await bucket(js, name, history=10)
    for value in (b"1", b"2", b"3"):
        await kv.put("k", value)
    await kv.put("other", b"x")

    await kv.purge("k")

    state = await client.state(f"KV_{name}", subjects_filter=">")
    assert state["subjects"] == {f"$KV.{name}.k": 1, f"$KV.{name}.other": 1}
    with pytest.raises(KeyNotFoundError) as caught:
        await kv.get("k")
    assert caught.value.op == "PURGE"


async def test_history_lists_the_revisions_of_a_key(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name, history=3)
    for value in (b"1", b"2", b"3", b"4"):
        await kv.put("k", value)
    await kv.put("other", b"x")

    history = await kv.history("k")

    assert [(entry.value, entry.revision) for entry in history] == [
        (b"2", 2),
        (b"3", 3),
        (b"4", 4),
    ]


async def test_keys_lists_what_is_not_deleted(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    for key in ("a", "b", "c.d"):
        await kv.put(key, b"x")
    await kv.delete("b")

    assert sorted(await kv.keys()) == ["a", "c.d"]


async def test_keys_of_an_empty_bucket(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)

    with pytest.raises(NoKeysError):
        await kv.keys()


async def test_a_watcher_gets_what_is_there_a_mark_and_what_comes(
    js: JetStreamContext, name: str
) -> None:
    kv = await bucket(js, name)
    await kv.put("a", b"1")
    await kv.put("a", b"2")
    await kv.put("b", b"3")

    watcher = Watcher(await kv.watchall())
    present = [await watcher.entry(), await watcher.entry()]
    mark = await watcher.next()
    await kv.put("c", b"4")
    await kv.delete("a")
    later = [await watcher.entry(), await watcher.entry()]
    await watcher.stop()

    assert [(e.key, e.value) for e in present] == [("a", b"2"), ("b", b"3")]
    assert mark is None
    assert [(e.key, e.operation) for e in later] == [("c", None), ("a", "DEL")]


async def test_a_watcher_of_an_empty_bucket_gets_the_mark_at_once(
    js: JetStreamContext, name: str
) -> None:
    kv = await bucket(js, name)

    watcher = Watcher(await kv.watchall())

    assert await watcher.next() is None
    await watcher.stop()


async def test_a_watcher_may_ask_for_some_keys_only(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    watcher = Watcher(await kv.watch("wanted.*"))
    assert await watcher.next() is None

    await kv.put("other.x", b"1")
    await kv.put("wanted.x", b"2")
    entry = await watcher.entry()
    await watcher.stop()

    assert (entry.key, entry.value) == ("wanted.x", b"2")


async def test_a_watcher_may_ask_for_the_history(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name, history=5)
    for value in (b"1", b"2", b"3"):
        await kv.put("k", value)

    watcher = Watcher(await kv.watch("k", include_history=True))
    entries = [await watcher.next() for _ in range(4)]
    await watcher.stop()

    assert [entry.value if entry else None for entry in entries] == [b"1", b"2", b"3", None]


async def test_a_watcher_may_ask_for_keys_without_values(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    await kv.put("k", b"value")

    watcher = Watcher(await kv.watch("k", meta_only=True))
    entry = await watcher.entry()
    await watcher.stop()

    assert (entry.key, entry.value) == ("k", b"")


async def test_a_key_with_a_ttl_goes(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name)
    await kv.create("k", b"1", msg_ttl=1)
    assert (await kv.get("k")).value == b"1"

    async def is_gone() -> bool:
        try:
            await kv.get("k")
        except KeyNotFoundError:
            return True
        return False

    await eventually(is_gone)


async def test_a_bucket_with_a_marker_ttl_tells_watchers_of_expiry(
    js: JetStreamContext, name: str
) -> None:
    kv = await bucket(js, name, limit_marker_ttl=1)
    watcher = Watcher(await kv.watchall())
    assert await watcher.next() is None
    await kv.create("k", b"1", msg_ttl=1)

    put, expired = await watcher.entry(), await watcher.entry()
    await watcher.stop()

    assert (put.value, expired.key) == (b"1", "k")
    assert expired.operation in ("PURGE", "DEL")


async def test_status_counts_values(js: JetStreamContext, name: str) -> None:
    kv = await bucket(js, name, history=7, ttl=300)
    for key in ("a", "b"):
        await kv.put(key, b"x")

    status = await kv.status()

    assert (status.bucket, status.values, status.history, status.ttl) == (name, 2, 7, 300)


async def test_purge_deletes_removes_old_markers(
    js: JetStreamContext, client: Client, name: str
) -> None:
    kv = await bucket(js, name, history=5)
    await kv.put("stays", b"1")
    await kv.put("goes", b"2")
    await kv.delete("goes")

    await kv.purge_deletes(olderthan=-1)

    state = await client.state(f"KV_{name}", subjects_filter=">")
    assert state["subjects"] == {f"$KV.{name}.stays": 1}


async def test_a_deleted_bucket_is_gone(js: JetStreamContext, name: str) -> None:
    await bucket(js, name)
    await js.delete_key_value(name)

    with pytest.raises(BucketNotFoundError):
        await js.key_value(name)
