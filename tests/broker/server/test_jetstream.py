"""JetStream behind real sockets: what the server adds to the engine."""

import asyncio
import json
import logging
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.js.api import StorageType, StreamConfig

from millstream_broker import Broker, StartError

from .test_cli import WAIT_S, run, running


async def fill(url: str, count: int) -> None:
    """Make stream S and publish to it, each message acknowledged."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="S", subjects=["s.>"])
    for number in range(count):
        await jetstream.publish(f"s.{number}", b"%d" % number)
    await client.close()


async def count(url: str) -> int:
    client = await nats.connect(url)
    info = await client.jetstream().stream_info("S")
    await client.close()
    return info.state.messages


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Broker(jetstream=True, store_dir=tmp_path) as broker:
        await fill(broker.url, 20)
    async with Broker(jetstream=True, store_dir=tmp_path) as broker:
        assert await count(broker.url) == 20


async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    store = ("-js", "-sd", str(tmp_path / "store"))
    with running(tmp_path, *store) as process:
        await fill(ready_url(tmp_path), 20)
        process.kill()
        process.wait(WAIT_S)
    (tmp_path / "ready").unlink()
    with running(tmp_path, *store):
        assert await count(ready_url(tmp_path)) == 20


def ready_url(folder: Path) -> str:
    return str(json.loads((folder / "ready").read_text())["url"])


async def test_without_a_folder_everything_is_in_memory() -> None:
    async with Broker(jetstream=True) as broker:
        client = await nats.connect(broker.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name="F", subjects=["f"], storage=StorageType.FILE))
        assert (await jetstream.publish("f", b"x")).seq == 1
        await client.close()


async def test_info_says_that_jetstream_is_on() -> None:
    async with Broker(jetstream=True) as broker:
        client = await nats.connect(broker.url)
        assert client._server_info["jetstream"] is True
        await client.close()


async def test_a_waiting_pull_is_told_of_the_shutdown() -> None:
    broker = Broker(jetstream=True)
    await broker.start()
    client = await nats.connect(broker.url, allow_reconnect=False)
    await client.jetstream().add_stream(name="S", subjects=["s"])
    await client.jetstream().pull_subscribe("s", durable="d")
    inbox = await client.subscribe("here")
    await client.publish("$JS.API.CONSUMER.MSG.NEXT.S.d", b'{"expires":60000000000}', reply="here")
    await client.flush()

    await broker.close()

    message = await inbox.next_msg(timeout=5)
    assert message.headers is not None
    assert message.headers["Status"] == "409"
    assert message.headers["Description"] == "Server Shutdown"
    await client.close()


async def test_a_deadline_of_the_engine_comes_without_any_traffic() -> None:
    async with Broker(jetstream=True) as broker:
        client = await nats.connect(broker.url)
        await client.jetstream().add_stream(name="S", subjects=["s"])
        await client.jetstream().pull_subscribe("s", durable="d")
        inbox = await client.subscribe("here")
        await client.publish("$JS.API.CONSUMER.MSG.NEXT.S.d", b'{"expires":50000000}', reply="here")

        message = await inbox.next_msg(timeout=5)

        assert message.headers is not None
        assert message.headers["Status"] == "408"
        await client.close()


async def test_a_fault_of_the_engine_does_not_end_its_timers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream_broker.server.jetstream.RETRY_S", 0.01)
    async with Broker(jetstream=True) as broker:
        assert broker.jetstream is not None
        engine = broker.jetstream.engine
        calls = asyncio.Queue[float]()

        def advance(now: object) -> None:
            calls.put_nowait(0.0)
            raise RuntimeError("fault")

        with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
            patch.setattr(type(engine), "advance", lambda self, now: advance(now))
            patch.setattr(type(engine), "next_deadline", lambda self: 0.0)
            broker.jetstream.schedule()
            async with asyncio.timeout(5):
                for _ in range(3):
                    await calls.get()
        async with asyncio.timeout(5):
            client = await nats.connect(broker.url)
            await client.jetstream().account_info()
            await client.close()


async def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    async with Broker(jetstream=True, store_dir=tmp_path) as broker:
        with pytest.raises(StartError, match="another server is using this folder"):
            await Broker(jetstream=True, store_dir=tmp_path).start()
        await fill(broker.url, 1)


def test_a_store_that_cannot_be_used_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    result = run("-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(tmp_path / "file"))

    assert result.returncode == 3
    assert str(tmp_path / "file") in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
