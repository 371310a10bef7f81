"""A group on the connections users have: TLS, nkeys, creds, accounts, domains, API prefixes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client

from millstream_coordinator import Group, Message, read_view
from millstream_coordinator.errors import ServerUnreachable
from millstream_coordinator.jetstream.api import api_prefix
from tests.helpers import require
from tests.helpers.servers import REAL, Server

from .members import running, until
from .nats_jwt import Key, write_operator
from .test_worker import Seen

pytestmark = pytest.mark.real_server

TLS = Path(__file__).parent / "tls"
IMPORTING = """
accounts {
  HOME {
    jetstream: enabled
    users: [{user: home, password: pw}]
    exports: [
      {service: "$JS.API.>", response_type: stream}
      {service: "$KV.>"}
      {service: "$JS.ACK.>"}
    ]
  }
  AWAY {
    users: [{user: away, password: pw}]
    imports: [
      {service: {account: HOME, subject: "$JS.API.>"}, to: "js.home.>"}
      {service: {account: HOME, subject: "$KV.>"}, to: "js.home.$KV.>"}
      {service: {account: HOME, subject: "$JS.ACK.>"}}
    ]
  }
}
"""


@asynccontextmanager
async def configured(folder: Path, text: str, *, jetstream: str = "") -> AsyncIterator[Server]:
    """A nats-server with this configuration; ``jetstream`` goes into its block of that name."""
    require.need("nats")
    config = folder / "server.conf"
    store = folder / "store"
    config.write_text(f'jetstream {{ store_dir: "{store}", {jetstream} }}\n{text}\n')
    with Server(REAL, folder / "unused", arguments=("-c", str(config)), jetstream=False) as server:
        yield server


async def fill(client: Client, *, count: int = 20) -> None:
    """A stream ORDERS in the client's own JetStream, with messages of four partitions."""
    stream = client.jetstream()
    await stream.add_stream(name="ORDERS", subjects=["orders.*.*"])
    for number in range(count):
        await stream.publish(f"orders.{number % 4}.k{number % 8}", str(number).encode())


async def work_through(clients: list[Client], *, count: int = 20, **more: Any) -> list[Message]:
    """Two members work through ORDERS, on these connections; what they were given."""
    seen = Seen()
    groups = []
    for client in clients:
        group = Group(client, stream="ORDERS", name="g", partitions=4, **more)
        group.handler(key="orders.*.{key}")(seen)
        groups.append(group)
    async with running(*groups):
        await until(lambda: len(seen.messages) >= count)
        await until(lambda: sum(len(group.partitions) for group in groups) == 4)
    return seen.messages


def assert_in_order(messages: list[Message], *, count: int = 20) -> None:
    assert sorted(int(one.data) for one in messages) == list(range(count))
    for key in range(8):
        numbers = [int(one.data) for one in messages if one.key == f"k{key}".encode()]
        assert numbers == sorted(numbers)


@asynccontextmanager
async def connected(*urls: str, **options: Any) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        clients = []
        for url in urls:
            client = await nats.connect(url, **options)
            stack.push_async_callback(client.close)
            clients.append(client)
        yield clients


async def test_a_client_with_tls(tmp_path: Path) -> None:
    config = f'tls {{ cert_file: "{TLS}/cert.pem", key_file: "{TLS}/key.pem" }}'
    context = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    async with (
        configured(tmp_path, config) as server,
        connected(server.url, server.url, tls=context) as clients,
    ):
        await fill(clients[0])
        assert_in_order(await work_through(clients))


async def test_a_refused_password_is_called_that_and_not_shown(tmp_path: Path) -> None:
    config = "authorization { users: [{user: me, password: right}] }"
    async with configured(tmp_path, config) as server:
        url = server.url.replace("nats://", "nats://me:wr0ng@")
        group = Group(url, stream=None, name="g", partitions=1)
        with pytest.raises(ServerUnreachable) as raised:
            await group.run(handle_signals=False)

    assert str(raised.value) == f"NATS server {server.url}: nats: 'Authorization Violation'"


async def test_a_client_with_an_inbox_prefix_of_its_own(tmp_path: Path) -> None:
    config = """authorization { users: [{user: u, password: pw, permissions: {
        publish: ">", subscribe: ["_INBOX_u.>", "millstream.>"] }}] }"""
    options = {"user": "u", "password": "pw", "inbox_prefix": b"_INBOX_u"}
    async with (
        configured(tmp_path, config) as server,
        connected(server.url, server.url, **options) as clients,
    ):
        await fill(clients[0])
        assert_in_order(await work_through(clients))


async def test_a_client_with_an_nkey(tmp_path: Path) -> None:
    user = Key(nkeys.PREFIX_BYTE_USER)
    config = f"authorization {{ users: [{{nkey: {user.public}}}] }}"
    async with (
        configured(tmp_path, config) as server,
        connected(server.url, nkeys_seed_str=user.seed.decode()) as clients,
    ):
        await fill(clients[0])
        assert_in_order(await work_through(clients))


async def test_a_client_with_creds(tmp_path: Path) -> None:
    config, creds = write_operator(tmp_path)
    async with (
        configured(tmp_path, config) as server,
        connected(server.url, user_credentials=str(creds)) as clients,
    ):
        await fill(clients[0])
        assert_in_order(await work_through(clients))


async def test_two_accounts_have_a_group_of_one_name_each(tmp_path: Path) -> None:
    config = """accounts {
        A { jetstream: enabled, users: [{user: a, password: pw}] }
        B { jetstream: enabled, users: [{user: b, password: pw}] }
    }"""
    async with (
        configured(tmp_path, config) as server,
        connected(server.url, user="a", password="pw") as first,
        connected(server.url, user="b", password="pw") as second,
    ):
        await fill(first[0])
        await fill(second[0], count=12)
        of_a, of_b = await asyncio.gather(work_through(first), work_through(second, count=12))

    assert_in_order(of_a)
    assert_in_order(of_b, count=12)


async def test_the_domain_of_the_server_one_is_connected_to(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, "", jetstream="domain: hub") as server,
        connected(server.url, server.url) as clients,
    ):
        await fill(clients[0])
        assert_in_order(await work_through(clients, domain="hub"))
        view = await read_view(clients[0], "g", prefix=api_prefix("hub"))
        assert view.config.partitions == 4


async def test_the_domain_of_a_hub_from_a_leaf_with_a_domain_of_its_own(tmp_path: Path) -> None:
    hub_folder, leaf_folder = tmp_path / "hub", tmp_path / "leaf"
    hub_folder.mkdir()
    leaf_folder.mkdir()
    leafs = "leafnodes { listen: 127.0.0.1:-1 }"
    async with configured(hub_folder, f"server_name: hub\n{leafs}", jetstream="domain: hub") as hub:
        port = _leaf_port(hub)
        remote = f'server_name: leaf\nleafnodes {{ remotes: [{{url: "nats://127.0.0.1:{port}"}}] }}'
        async with (
            configured(leaf_folder, remote, jetstream="domain: leaf") as leaf,
            connected(hub.url) as at_hub,
            connected(leaf.url, leaf.url) as at_leaf,
        ):
            await fill(at_hub[0])
            await _reaches(at_leaf[0], api_prefix("hub"))
            assert_in_order(await work_through(at_leaf, domain="hub"))
            view = await read_view(at_hub[0], "g")

    assert view.config.partitions == 4


async def test_jetstream_imported_from_another_account(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, IMPORTING) as server,
        connected(server.url, user="home", password="pw") as home,
        connected(server.url, server.url, user="away", password="pw") as away,
    ):
        await fill(home[0])
        assert_in_order(await work_through(away, api_prefix="js.home"))
        view = await read_view(home[0], "g")

    assert view.config.partitions == 4


def _leaf_port(server: Server) -> int:
    """The port the server listens on for leaf nodes, from its ports file's sibling: the log."""
    for line in server.log.splitlines():
        if "Listening for leafnode connections on" in line:
            return int(line.rpartition(":")[2])
    raise AssertionError(server.log)


async def _reaches(client: Client, prefix: str) -> None:
    """Wait until the leaf's connection to the hub carries requests."""
    async with asyncio.timeout(60):
        while True:
            try:
                await client.request(f"{prefix}.INFO", timeout=0.5)
            except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                await asyncio.sleep(0.02)
            else:
                return
