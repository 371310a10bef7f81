"""What waits for an answer when its connection breaks: a request ends, a sink asks again."""

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from millstream_coordinator.jetstream.api import Api, RequestFailed
from millstream_coordinator.ports import Failure
from millstream_coordinator.sinks.batch import BatchSink, Step
from millstream_coordinator.sinks.contract import SinkUnavailable
from millstream_coordinator.sinks.kv import KvSink
from millstream_coordinator.sinks.mark import Verdict
from millstream_coordinator.sinks.testing import Delivery
from tests.helpers.proxy import Proxy
from tests.helpers.servers import Server


class KvBench:
    """A key's value in a bucket; each effect makes it one character longer."""

    def __init__(self, sink: KvSink) -> None:
        self.sink = sink
        self.stream = f"KV_{sink.bucket}"

    @classmethod
    async def open(cls, connection: Client, name: str) -> "KvBench":
        return cls(await KvSink.open(connection, name))

    async def apply(self, seq: int) -> Verdict:
        return await self.sink.apply(Delivery(key=b"k", seq=seq), lambda old: (old or b"") + b"x")

    async def value(self) -> bytes | None:
        return await self.sink.value(b"k")


class BatchBench:
    """The same in a state that is stored with its batch."""

    def __init__(self, sink: BatchSink, stream: str) -> None:
        self.sink, self.stream = sink, stream

    @classmethod
    async def open(cls, connection: Client, name: str) -> "BatchBench":
        subjects = [f"{name}.>", f"millstream.sink.{name}.>"]
        await connection.jetstream().add_stream(
            name=name, subjects=subjects, allow_atomic=True, allow_rollup_hdrs=True
        )
        return cls(await BatchSink.open(connection, stream=name, group=name), name)

    async def apply(self, seq: int) -> Verdict:
        return await self.sink.apply(
            Delivery(key=b"k", seq=seq), lambda old: Step(state=(old or b"") + b"x")
        )

    async def value(self) -> bytes | None:
        return await self.sink.state(b"k")


Bench = KvBench | BatchBench


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with Proxy([server.url]) as opened:
        yield opened


@pytest.fixture
async def connection(proxy: Proxy) -> AsyncIterator[Client]:
    async def ignore(_: Exception) -> None:
        """The connection is cut on purpose."""

    opened = await nats.connect(
        proxy.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=ignore
    )
    yield opened
    await opened.close()


@pytest.fixture(params=[KvBench, BatchBench])
async def bench(request: pytest.FixtureRequest, connection: Client, name: str) -> Bench:
    """One with an effect applied, so that everything it needs to know is read."""
    kind: type[KvBench] | type[BatchBench] = request.param
    opened = await kind.open(connection, name)
    await opened.apply(1)
    return opened


async def _last_seq(client: Client, stream: str) -> int:
    return (await client.jetstream().stream_info(stream)).state.last_seq


async def _until_stored(client: Client, stream: str, seq: int) -> None:
    async with asyncio.timeout(60):
        while await _last_seq(client, stream) < seq:  # noqa: ASYNC110 - nor does the server
            await asyncio.sleep(0.01)


async def _until_gone(connection: Client) -> None:
    async with asyncio.timeout(60):
        while connection.is_connected:  # noqa: ASYNC110 - nats-py tells nobody
            await asyncio.sleep(0.01)


async def _until_sent(connection: Client, count: int) -> None:
    async with asyncio.timeout(60):
        while connection.stats["out_msgs"] < count:  # noqa: ASYNC110 - nats-py tells nobody
            await asyncio.sleep(0.01)


async def test_a_request_ends_with_the_connection_it_went_out_on(
    proxy: Proxy, connection: Client
) -> None:
    api = Api(connection, 60.0)
    await api.call("INFO")
    sent = connection.stats["out_msgs"]
    proxy.stall()
    asked = asyncio.create_task(api.call("INFO"))
    await _until_sent(connection, sent + 1)

    proxy.cut()
    proxy.release()

    with pytest.raises(RequestFailed) as ended:
        await asked
    assert ended.value.reason is Failure.DISCONNECTED


async def test_what_is_asked_over_the_next_connection_gets_its_answer(
    proxy: Proxy, connection: Client
) -> None:
    api = Api(connection, 60.0)
    await api.call("INFO")
    proxy.cut()
    await _until_gone(connection)
    proxy.release()
    assert await api.link.until_up(60.0)

    proxy.stall(up=False)
    asked = asyncio.create_task(api.call("INFO"))
    await asyncio.sleep(0.2)  # looked at some times
    proxy.release()

    assert "streams" in await asked


@pytest.mark.parametrize("arrives", [True, False])
async def test_an_effect_under_way_when_the_connection_breaks_is_there_once(
    bench: Bench, proxy: Proxy, connection: Client, client: Client, *, arrives: bool
) -> None:
    stored = await _last_seq(client, bench.stream)
    sent = connection.stats["out_msgs"]
    proxy.stall(up=not arrives)
    effect = asyncio.create_task(bench.apply(2))
    await _until_sent(connection, sent + 1)
    if arrives:
        await _until_stored(client, bench.stream, stored + 1)

    proxy.cut()
    proxy.release()

    assert await effect is Verdict.APPLY
    assert await bench.value() == b"xx"
    assert (bench.sink.counters.attempts, bench.sink.counters.applied) == (2, 2)


async def test_an_effect_begun_without_a_connection_waits_for_it(
    bench: Bench, proxy: Proxy, connection: Client
) -> None:
    proxy.cut()
    await _until_gone(connection)
    effect = asyncio.create_task(bench.apply(2))
    await asyncio.sleep(0)

    proxy.release()

    assert await effect is Verdict.APPLY
    assert await bench.value() == b"xx"


async def test_a_connection_that_was_closed_is_not_waited_for(
    bench: Bench, connection: Client
) -> None:
    await connection.close()

    with pytest.raises(SinkUnavailable):
        await bench.apply(2)
