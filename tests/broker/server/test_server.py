import asyncio
import json
from pathlib import Path

import pytest

from millstream_broker import Broker, ServerOptions, StartError
from millstream_broker.server.monitor import REQUEST_TIMEOUT_S
from millstream_broker.server.server import DRAIN_S

from .raw import connect

QUIET = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
MODERN = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,'
    b'"protocol":1}\r\n'
)


def options(**values: object) -> ServerOptions:
    return ServerOptions(**{"host": "127.0.0.1", "port": 0, **values})  # type: ignore[arg-type]


async def test_typed_by_hand_without_connect_it_is_acknowledged_and_delivered() -> None:
    async with Broker() as broker, connect(broker.port, b"SUB FRONT.DOOR 1\r\n") as listener:
        assert await listener.line() == b"+OK\r\n"
        async with connect(broker.port, b"PUB FRONT.DOOR 11\r\nKnock Knock\r\n") as visitor:
            assert await visitor.line() == b"+OK\r\n"

        expected = b"MSG FRONT.DOOR 1 11\r\nKnock Knock\r\n"
        assert await listener.read(expected) == expected


async def test_info_says_what_clients_gate_features_on() -> None:
    async with Broker() as broker, connect(broker.port) as one, connect(broker.port) as two:
        info = one.info
        assert info["version"].startswith("2.15.")
        assert (info["proto"], info["headers"], info["max_payload"]) == (1, True, 1_048_576)
        assert info["api_lvl"] == 5
        assert (info["host"], info["port"]) == ("127.0.0.1", broker.port)
        assert info["client_ip"] == "127.0.0.1"
        assert one.info["client_id"] != two.info["client_id"]
        assert "auth_required" not in info
        assert "jetstream" not in info


async def test_the_second_info_follows_the_first_pong() -> None:
    async with Broker() as broker, connect(broker.port, MODERN + b"PING\r\n") as client:
        assert await client.line() == b"PONG\r\n"
        second = json.loads((await client.line())[5:])
        assert second["connect_info"] is True
        assert second["remote_account"] == "$G"


async def test_bytes_that_come_one_by_one_make_the_same_message() -> None:
    async with Broker() as broker, connect(broker.port, QUIET + b"SUB a 1\r\n") as listener:
        await listener.sync()
        async with connect(broker.port, QUIET) as client:
            for byte in b"PUB a r 5\r\nhe\r\no\r\nPING\r\n":
                client.send(bytes([byte]))
                await client.writer.drain()
                await asyncio.sleep(0)
            assert await client.line() == b"PONG\r\n"

        expected = b"MSG a 1 r 5\r\nhe\r\no\r\n"
        assert await listener.read(expected) == expected


async def test_malformed_bytes_close_their_client_and_no_other() -> None:
    async with Broker() as broker, connect(broker.port, QUIET + b"SUB a 1\r\n") as good:
        await good.sync()
        async with connect(broker.port, b"BOGUS\r\n") as bad:
            assert await bad.rest() == b"-ERR 'Unknown Protocol Operation'\r\n"
        async with connect(broker.port, b"PUB a b c d\r\n") as bad:
            assert await bad.rest() == b""

        good.send(b"PUB a 2\r\nhi\r\n")
        expected = b"MSG a 1 2\r\nhi\r\n"
        assert await good.read(expected) == expected


async def test_one_client_too_many_is_told_and_closed() -> None:
    async with Broker(options=options(max_connections=1)) as broker, connect(broker.port) as one:
        async with connect(broker.port) as two:
            assert await two.rest() == b"-ERR 'maximum connections exceeded'\r\n"
        await one.sync()


async def test_who_does_not_authenticate_in_time_is_closed() -> None:
    settings = options(user="u", password="p", auth_timeout_s=0.05)
    async with Broker(options=settings) as broker, connect(broker.port) as client:
        assert client.info["auth_required"] is True
        assert await client.rest() == b"-ERR 'Authentication Timeout'\r\n"


async def test_who_authenticated_stays() -> None:
    settings = options(token="t", auth_timeout_s=0.5)
    connect_line = b'CONNECT {"auth_token":"t","verbose":false}\r\n'
    async with Broker(options=settings) as broker, connect(broker.port, connect_line) as client:
        async with connect(broker.port) as late:
            assert await late.rest() == b"-ERR 'Authentication Timeout'\r\n"
        await client.sync()


async def test_a_client_that_answers_no_ping_is_stale() -> None:
    settings = options(ping_interval_s=0.02, ping_max=2)
    async with Broker(options=settings) as broker, connect(broker.port) as client:
        assert await client.rest() == b"PING\r\nPING\r\n-ERR 'Stale Connection'\r\n"
        assert broker.stale_connections == 1


async def test_a_client_that_answers_pings_stays() -> None:
    settings = options(ping_interval_s=0.05, ping_max=3)
    async with Broker(options=settings) as broker, connect(broker.port) as client:
        for _ in range(5):
            assert await client.line() == b"PING\r\n"
            client.send(b"PONG\r\n")
        assert broker.stale_connections == 0


async def test_who_reads_nothing_is_cut_off_over_max_pending() -> None:
    settings = options(max_pending=200_000, max_payload=8_000_000)
    async with (
        Broker(options=settings) as broker,
        connect(broker.port, QUIET + b"SUB a 1\r\n") as slow,
        connect(broker.port, QUIET) as publisher,
    ):
        await slow.sync()
        slow.stop_reading()
        payload = b"x" * 8_000_000
        for _ in range(8):
            publisher.send(b"PUB a %d\r\n%b\r\n" % (len(payload), payload))
            await publisher.writer.drain()
        await publisher.sync()
        assert broker.slow_consumers == 1


async def test_who_takes_nothing_for_the_write_deadline_is_cut_off() -> None:
    settings = options(write_deadline_s=0.05)
    async with (
        Broker(options=settings) as broker,
        connect(broker.port, QUIET + b"SUB a 1\r\n") as slow,
        connect(broker.port, QUIET) as publisher,
    ):
        await slow.sync()
        slow.stop_reading()
        payload = b"x" * 1_000_000
        for _ in range(20):
            publisher.send(b"PUB a %d\r\n%b\r\n" % (len(payload), payload))
        await publisher.sync()
        async with asyncio.timeout(10):
            while not broker.slow_consumers:  # noqa: ASYNC110 - bounded polling
                await asyncio.sleep(0.01)
        await publisher.sync()


async def test_a_fast_publisher_waits_for_a_reader_that_keeps_reading() -> None:
    payload = b"x" * 1000
    expected = b"MSG a 1 1000\r\n%b\r\n" % payload * 20_000
    async with (
        Broker(options=options(max_pending=4_000_000)) as broker,
        connect(broker.port, QUIET + b"SUB a 1\r\n") as reader,
        connect(broker.port, QUIET) as publisher,
    ):
        await reader.sync()
        publisher.send(b"PUB a 1000\r\n%b\r\n" % payload * 20_000)
        got = bytearray()
        async with asyncio.timeout(30):
            while len(got) < len(expected) and (chunk := await reader.reader.read(65_536)):
                got += chunk
                for _ in range(4):  # slower than the publisher by rounds of the loop, not by time
                    await asyncio.sleep(0)

        assert got == expected
        assert broker.slow_consumers == 0


async def test_closing_tells_every_client_and_frees_the_port() -> None:
    broker = Broker()
    await broker.start()
    async with connect(broker.port, QUIET) as client:
        await client.sync()
        await broker.close()
        assert await client.rest() == b""
    async with Broker(port=broker.port) as again:
        assert again.url == f"nats://127.0.0.1:{broker.port}"


async def test_a_busy_port_is_named() -> None:
    async with Broker() as broker:
        with pytest.raises(StartError) as caught:
            await Broker(port=broker.port).start()

    assert str(caught.value) == f"client port 127.0.0.1:{broker.port}: Address already in use"


async def test_a_folder_that_is_not_there_is_named_and_the_port_is_free_again(
    tmp_path: Path,
) -> None:
    missing = tmp_path / "missing"
    broker = Broker(options=options(ports_file_dir=missing))

    with pytest.raises(StartError, match="No such file or directory") as caught:
        await broker.start()

    assert str(missing) in caught.value.what
    async with Broker(port=broker.port):
        pass


async def test_a_busy_monitoring_port_is_named_and_the_client_port_is_free_again() -> None:
    async with Broker() as other:
        broker = Broker(options=options(monitor_port=other.port))

        with pytest.raises(StartError, match=f"monitoring port 127.0.0.1:{other.port}: Address"):
            await broker.start()

        async with Broker(port=broker.port):
            pass


async def test_localhost_is_one_address_with_one_port() -> None:
    async with Broker(host="localhost") as broker, connect(broker.port) as client:
        assert client.info["host"] == "localhost"


async def test_monitoring_names_the_core_and_counts() -> None:
    async with Broker(options=options(monitor_port=0)) as broker:
        async with connect(broker.port, QUIET + b"SUB a 1\r\nPUB a 3\r\nabc\r\n") as client:
            await client.line()
            varz = json.loads(await _get(broker, "/varz"))
            assert varz["core"] == "python"
            assert (varz["connections"], varz["subscriptions"]) == (1, 1)
            assert (varz["in_msgs"], varz["out_bytes"]) == (1, 3)
        assert json.loads(await _get(broker, "/healthz")) == {"status": "ok"}
        assert b"404" in await _get(broker, "/nothing", whole=True)


async def _get(broker: Broker, path: str, *, whole: bool = False) -> bytes:
    assert broker.monitor_url is not None
    port = int(broker.monitor_url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer if whole else answer.split(b"\r\n\r\n", 1)[1]


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end() -> None:
    broker = Broker(options=options())
    await broker.start()
    async with connect(broker.port, QUIET + b"SUB big 1\r\n") as sleeper:
        await sleeper.sync()
        sleeper.stop_reading()
        async with connect(broker.port, QUIET) as publisher:
            for _ in range(16):
                publisher.send(b"PUB big 1000000\r\n" + bytes(1_000_000) + b"\r\n")
            await publisher.sync()

            async with asyncio.timeout(20 * DRAIN_S):
                await broker.close()


async def test_a_monitoring_connection_that_asks_nothing_ends_with_the_broker() -> None:
    broker = Broker(options=options(monitor_port=0))
    await broker.start()
    assert broker.monitor_url is not None
    port = int(broker.monitor_url.rsplit(":", 1)[1])
    before = asyncio.all_tasks()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(REQUEST_TIMEOUT_S / 2):
        while asyncio.all_tasks() == before:  # noqa: ASYNC110 - the server's task is not ours
            await asyncio.sleep(0.01)

        await broker.close()
        assert await reader.read() == b""

    assert asyncio.all_tasks() == before
    writer.close()
