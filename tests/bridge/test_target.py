"""NATS as a user finds it in the field: TLS, credentials, domains, several servers, few rights."""

from pathlib import Path
from typing import Any

import nats as nats_py
import nkeys  # type: ignore[import-untyped]
import pytest

from millstream_bridge.errors import BridgeError, ConfigurationError, Unreachable
from millstream_bridge.jetstream.connection import Connection
from millstream_bridge.jetstream.target import NatsTarget
from millstream_bridge.operation.status import ask
from tests.bridge.moves import a_route, move_all, offsets, some_records, stored_records
from tests.coordinator.nats_jwt import Key, write_operator
from tests.coordinator.test_connections import TLS, configured
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

CERTIFICATE, KEY = TLS / "cert.pem", TLS / "key.pem"
TLS_FILES = f'cert_file: "{CERTIFICATE}", key_file: "{KEY}", ca_file: "{CERTIFICATE}"'

IMPORTING = """accounts {
  HOME {
    jetstream: enabled
    users: [{user: home, password: pw}]
    exports: [{service: "$JS.API.>", response_type: stream}, {service: "flights.>"}]
  }
  AWAY {
    users: [{user: away, password: pw}]
    imports: [
      {service: {account: HOME, subject: "$JS.API.>"}, to: "js.home.>"}
      {service: {account: HOME, subject: "flights.>"}}
    ]
  }
}"""
"""JetStream is one account's; the bridge's user is in another, which imports what it needs."""


async def moves(mock: Kafka, target: NatsTarget, *, shared: bool = False) -> None:
    """A backfill through this target, read back through it; then nats-py gets in by it as well."""
    mock.create_topic("flights", 2)
    mock.produce("flights", some_records(50, 2))
    route = a_route("flights", shared=shared)

    report = await move_all(mock.bootstrap, target, route)

    assert report.records == 50
    assert offsets(await stored_records(target, route)) == {0: [*range(25)], 1: [*range(25)]}
    client = await nats_py.connect(**target.nats_py_options(), allow_reconnect=False)
    await client.close()


@pytest.mark.real_server
@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_tls_where_both_show_a_certificate(tmp_path: Path, mock: Kafka, shared: bool) -> None:
    async with configured(tmp_path, f"tls {{ {TLS_FILES}, verify: true }}") as server:
        target = NatsTarget(url=server.url, tls_ca=CERTIFICATE, tls_cert=CERTIFICATE, tls_key=KEY)
        await moves(mock, target, shared=shared)


@pytest.mark.real_server
async def test_tls_before_the_first_word(tmp_path: Path, mock: Kafka) -> None:
    async with configured(tmp_path, f"tls {{ {TLS_FILES}, handshake_first: true }}") as server:
        await moves(mock, NatsTarget(url=server.url, tls_ca=CERTIFICATE, tls_first=True))


@pytest.mark.real_server
async def test_a_server_that_nobody_we_know_has_signed_is_refused(tmp_path: Path) -> None:
    async with configured(tmp_path, f"tls {{ {TLS_FILES} }}") as server:
        with pytest.raises(Unreachable, match=r"TLS: .*(certificate|CERTIFICATE)"):
            await Connection.open(server.url, name="test")


@pytest.mark.real_server
async def test_a_server_without_tls_gets_no_password_of_a_target_that_demands_it(
    tmp_path: Path,
) -> None:
    async with configured(tmp_path, "") as server:
        with pytest.raises(ConfigurationError, match="has no TLS"):
            await Connection.open(server.url.replace("nats://", "tls://"), name="test")


@pytest.mark.real_server
async def test_an_nkey(tmp_path: Path, mock: Kafka) -> None:
    user = Key(nkeys.PREFIX_BYTE_USER)
    seed = tmp_path / "user.nk"
    seed.write_bytes(user.seed)
    async with configured(
        tmp_path, f"authorization {{ users: [{{nkey: {user.public}}}] }}"
    ) as server:
        await moves(mock, NatsTarget(url=server.url, nkey=seed))


@pytest.mark.real_server
async def test_credentials(tmp_path: Path, mock: Kafka) -> None:
    config, creds = write_operator(tmp_path)
    async with configured(tmp_path, config) as server:
        await moves(mock, NatsTarget(url=server.url, creds=creds))


@pytest.mark.real_server
@pytest.mark.parametrize(
    ("config", "target"),
    [
        ("authorization { user: u, password: secret }", {"user": "u", "password": "secret"}),
        ("authorization { token: secret }", {"token": "secret"}),
    ],
    ids=["password", "token"],
)
async def test_a_password_or_token_is_used_and_never_shown(
    tmp_path: Path, mock: Kafka, config: str, target: dict[str, Any]
) -> None:
    async with configured(tmp_path, config) as server:
        good = NatsTarget(url=server.url, **target)
        await moves(mock, good)
        with pytest.raises(Unreachable, match="Authorization Violation") as refused:
            await Connection.open(server.url.replace("//", "//u:wrong-secret@"), name="test")

    assert "secret" not in f"{good} {good!r} {refused.value}"


@pytest.mark.real_server
@pytest.mark.parametrize("option", [{"domain": "hub"}, {"api_prefix": "$JS.hub.API"}])
async def test_a_domain(tmp_path: Path, mock: Kafka, option: dict[str, Any]) -> None:
    async with configured(tmp_path, "", jetstream="domain: hub") as server:
        await moves(mock, NatsTarget(url=server.url, **option))


@pytest.mark.real_server
@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_a_jetstream_of_another_account(tmp_path: Path, mock: Kafka, shared: bool) -> None:
    async with configured(tmp_path, IMPORTING) as server:
        target = NatsTarget(url=server.url, user="away", password="pw", api_prefix="js.home")
        await moves(mock, target, shared=shared)


async def test_the_first_server_that_answers_is_taken(nats_server: Server, mock: Kafka) -> None:
    await moves(mock, NatsTarget(url=f"nats://127.0.0.1:1, {nats_server.url}"))


async def test_when_no_server_answers_each_says_why() -> None:
    with pytest.raises(Unreachable, match=r"@127\.0\.0\.1:1: .*; 127\.0\.0\.1:2: "):
        await Connection.open("nats://u:secret@127.0.0.1:1,127.0.0.1:2", name="test")


@pytest.mark.real_server
async def test_answers_come_where_the_user_may_listen(tmp_path: Path, mock: Kafka) -> None:
    user = '{user: u, password: p, permissions: {publish: ">", subscribe: "mine.>"}}'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        target = NatsTarget(url=server.url, user="u", password="p", inbox_prefix="mine.inbox")
        await moves(mock, target)


@pytest.mark.real_server
@pytest.mark.parametrize("shared", [False, True], ids=["chain", "shared"])
async def test_what_the_user_may_not_do_ends_the_run_with_the_servers_words(
    tmp_path: Path, mock: Kafka, shared: bool
) -> None:
    mock.create_topic("flights", 1)
    mock.produce("flights", [{"key": b"k", "value": b"v"}])
    user = '{user: u, password: p, permissions: {publish: {deny: "flights.>"}}}'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        target = NatsTarget(url=server.url, user="u", password="p")
        with pytest.raises(ConfigurationError, match=r"Permissions Violation for Publish to .*fli"):
            await move_all(mock.bootstrap, target, a_route("flights", shared=shared))


@pytest.mark.real_server
async def test_a_user_who_may_not_listen_for_answers_is_told_so(tmp_path: Path) -> None:
    user = '{user: u, password: p, permissions: {publish: ">", subscribe: "mine.>"}}'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        target = NatsTarget(url=server.url, user="u", password="p")
        with pytest.raises(
            ConfigurationError,
            match=r"Violation for Subscription to \"_INBOX.*`millstream bridge permissions`",
        ):
            await Connection.open(target, name="test")


@pytest.mark.real_server
async def test_status_says_that_one_may_not_ask(tmp_path: Path) -> None:
    user = '{user: u, password: p, permissions: {publish: "x", subscribe: ">"}}'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        target = NatsTarget(url=server.url, user="u", password="p")
        with pytest.raises(ConfigurationError, match=r"Publish to \"millstream\.bridge\.status"):
            await ask(target, wait_s=0.3)


@pytest.mark.real_server
async def test_status_gives_the_reasons_that_every_command_gives(tmp_path: Path) -> None:
    async with configured(tmp_path, "authorization { user: u, password: p }") as server:
        target = NatsTarget(url=server.url, user="u", password="wrong")
        with pytest.raises(Unreachable, match="Authorization Violation"):
            await ask(target, wait_s=0.1)
    with pytest.raises(Unreachable, match="Errno"):
        await ask(NatsTarget(url="nats://127.0.0.1:1"), wait_s=0.1)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"url": "http://x"}, "no NATS URL"),
        ({"url": "nats://a:secret@h:port"}, "no NATS URL"),
        ({"user": "u", "token": "t"}, "only one of"),
        ({"tls_key": Path("k")}, "needs its certificate"),
        ({"domain": "a", "api_prefix": "b"}, "one of the two"),
        ({"inbox_prefix": "a.>"}, "no subject prefix"),
    ],
)
def test_a_target_that_contradicts_itself_is_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what) as refused:
        NatsTarget(**options)  # type: ignore[arg-type]

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "option", [{"creds": "gone"}, {"nkey": "gone"}, {"tls_ca": "gone"}, {"nkey": "text"}]
)
async def test_a_file_that_cannot_be_used_is_named(
    nats_server: Server, tmp_path: Path, option: dict[str, str]
) -> None:
    (tmp_path / "text").write_text("no seed")
    [(name, file)] = option.items()
    target = NatsTarget(url=nats_server.url, **{name: tmp_path / file})  # type: ignore[arg-type]

    with pytest.raises(BridgeError, match=f"{file}|has no TLS"):
        await Connection.open(target, name="test")
