"""Ways into a real Kafka: by certificate, by password (SCRAM, PLAIN), by token (OAUTHBEARER)."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from millstream_bridge import Bridge, BridgeError, ConfigurationError, verify
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.project.assess import assess
from tests.bridge.moves import a_route, move_all, until
from tests.bridge.test_back import publish
from tests.bridge.test_cli import SUBJECT, run
from tests.helpers.kafka import REAL, Kafka, KafkaNode, free_ports
from tests.helpers.require import need
from tests.helpers.servers import Server

pytestmark = pytest.mark.kafka

TLS = Path(__file__).parent / "tls"
"""``ca`` signed ``broker``, ``elsewhere`` (of another host) and ``client``, for a hundred years."""
ANOTHER_CA = Path(__file__).parents[1] / "coordinator" / "tls" / "cert.pem"
KEY_PASSWORD = "key-secret"
PASSWORD = "scram-secret"
CLIENT_SECRET = "oidc-secret"
WRONG = "not-the-secret"
SECRETS = (KEY_PASSWORD, PASSWORD, CLIENT_SECRET)
HEAD_OF_TOKENS = "eyJ"
SCOPE = "flights"
ISSUER, AUDIENCE = "https://login.example", "kafka"
SHORT_S = 5
"""A token's life that ends while a test runs."""
LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "MISNAMED": "SSL",
    "SCRAM": "SASL_SSL",
    "PLAIN": "SASL_PLAINTEXT",
    "TOKEN": "SASL_SSL",
    "SIGNED": "SASL_SSL",
}

_SETTINGS = f"""ssl.keystore.type=PEM
ssl.keystore.location={TLS}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={TLS}/ca.pem
listener.name.mutual.ssl.client.auth=required
listener.name.misnamed.ssl.keystore.type=PEM
listener.name.misnamed.ssl.keystore.location={TLS}/elsewhere.pem
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.plain.sasl.enabled.mechanisms=PLAIN
listener.name.plain.plain.sasl.jaas.config=\
  org.apache.kafka.common.security.plain.PlainLoginModule required user_bridge="{PASSWORD}";
listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.token.oauthbearer.sasl.jaas.config=\
  org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
  unsecuredLoginStringClaim_sub="broker" unsecuredValidatorRequiredScope="{SCOPE}";
listener.name.signed.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.signed.oauthbearer.sasl.jaas.config=\
  org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.signed.oauthbearer.sasl.server.callback.handler.class=\
  org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.signed.oauthbearer.connections.max.reauth.ms=3600000
sasl.oauthbearer.expected.issuer={ISSUER}
sasl.oauthbearer.expected.audience={AUDIENCE}
sasl.oauthbearer.clock.skew.seconds=1
"""


class Provider:
    """An OpenID provider on this machine: its keys, and tokens for who has the client's secret.

    What kind of token is asked for is the endpoint's path: `GOOD`, or one that is wrong in a way.
    """

    GOOD = "/token"
    SHORT = "/short"
    CLAIMS: Mapping[str, Mapping[str, Any]] = {
        GOOD: {},
        SHORT: {},
        "/another-audience": {"aud": "fares"},
        "/another-issuer": {"iss": "https://elsewhere.example"},
        "/expired": {"exp": 1_000_000_000},
        "/another-key": {},
    }

    def __init__(self) -> None:
        self.short_until = 0
        self._key = RSAKey.generate_key(2048, {"kid": "one"})
        self._another_key = RSAKey.generate_key(2048, {"kid": "one"})
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, path: str, scope: str) -> str:
        """A signed token; KeyError: there are none of this kind."""
        now = int(time.time())
        ends = now + (SHORT_S if path == self.SHORT else 300)
        claims = {"sub": "bridge", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "scope": scope}
        claims |= {"exp": ends, **self.CLAIMS[path]}
        if path == self.SHORT:
            self.short_until = ends
        key = self._another_key if path == "/another-key" else self._key
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self
        login = "Basic " + base64.b64encode(f"bridge:{CLIENT_SECRET}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, {"keys": [provider._key.as_dict(private=False)]})

            def do_POST(self) -> None:
                asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                if self.headers["Authorization"] != login:
                    self._answer(401, {"error": "invalid_client"})
                    return
                self._answer(200, {"access_token": provider.token(self.path, asked["scope"][0])})

            def _answer(self, status: int, answer: Mapping[str, Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    try:
        yield provider
    finally:
        provider.close()


@dataclass(frozen=True, slots=True)
class SecureKafka:
    """A broker with a listener for each way in, and one without any for the test itself."""

    node: KafkaNode
    ports: Mapping[str, int]

    def at(self, listener: str) -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    def fill(self, topic: str) -> None:
        plain = Kafka(kind=REAL, bootstrap=self.node.bootstrap)
        plain.create_topic(topic, 2)
        self.produce(topic)

    def produce(self, topic: str) -> None:
        """Six records."""
        plain = Kafka(kind=REAL, bootstrap=self.node.bootstrap)
        plain.produce(topic, [{"partition": n % 2, "value": b"leg %d" % n} for n in range(6)])


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[SecureKafka]:
    need("kafka")
    ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
    places = "".join(f",{name}://127.0.0.1:{port}" for name, port in ports.items())
    protocols = "".join(f",{name}:{protocol}" for name, protocol in LISTENERS.items())
    settings = (
        f"listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller}}{places}\n"
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{{port}}{places}\n"
        f"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT{protocols}\n"
    )
    node = KafkaNode(
        tmp_path_factory.mktemp("kafka"),
        settings=f"{settings}{_SETTINGS}sasl.oauthbearer.jwks.endpoint.url={provider.url}/keys\n",
        scram=[f"SCRAM-SHA-512=[name=bridge,password={PASSWORD}]"],
        properties={"org.apache.kafka.sasl.oauthbearer.allowed.urls": f"{provider.url}/keys"},
    )
    node.start()
    try:
        yield SecureKafka(node, ports)
    finally:
        node.kill()


BY_TLS = {"security.protocol": "SSL", "ssl.ca.location": str(TLS / "ca.pem")}
BY_ANY_NAME = {**BY_TLS, "ssl.endpoint.identification.algorithm": "none"}
BY_CERTIFICATE = {
    **BY_TLS,
    "ssl.certificate.location": str(TLS / "client.pem"),
    "ssl.key.location": str(TLS / "client.pem"),
    "ssl.key.password": KEY_PASSWORD,
}
BY_PASSWORD = {
    **BY_TLS,
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "bridge",
    "sasl.password": PASSWORD,
}
BY_PLAIN_PASSWORD = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "bridge",
    "sasl.password": PASSWORD,
}
BY_TOKEN = {
    **BY_TLS,
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "enable.sasl.oauthbearer.unsecure.jwt": "true",
    "sasl.oauthbearer.config": f"principal=bridge scope={SCOPE}",
}
ENDPOINT = "sasl.oauthbearer.token.endpoint.url"
BY_OPENID = {
    **BY_TLS,
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "bridge",
    "sasl.oauthbearer.client.secret": CLIENT_SECRET,
    "sasl.oauthbearer.scope": SCOPE,
    ENDPOINT: Provider.GOOD,
}


def at(provider: Provider, options: Mapping[str, str]) -> dict[str, str]:
    """The options with the whole address of the token endpoint, where they have its path."""
    path = options.get(ENDPOINT)
    return {**options, **({} if path is None else {ENDPOINT: provider.url + path})}


@pytest.mark.parametrize(
    ("listener", "options"),
    [
        pytest.param("TLS", BY_TLS, id="tls"),
        pytest.param("MISNAMED", BY_ANY_NAME, id="any-name"),
        pytest.param("MUTUAL", BY_CERTIFICATE, id="certificate"),
        pytest.param("SCRAM", BY_PASSWORD, id="scram"),
        pytest.param("TOKEN", BY_TOKEN, id="oauthbearer"),
        pytest.param("SIGNED", BY_OPENID, id="openid"),
    ],
)
async def test_records_go_there_and_back_and_are_verified(
    secure: SecureKafka,
    provider: Provider,
    real_nats_server: Server,
    topic: str,
    caplog: pytest.LogCaptureFixture,
    listener: str,
    options: Mapping[str, str],
) -> None:
    caplog.set_level("DEBUG")
    secure.fill(topic)
    kafka, url, route = secure.at(listener), real_nats_server.url, a_route(topic, shared=True)
    options = at(provider, options)

    async with asyncio.timeout(120):
        moved = await move_all(kafka, url, route, kafka_options=options)
        await publish(real_nats_server, range(3), partitions=2)
        back = BackBridge(kafka=kafka, nats=url, route=route, kafka_options=options)
        returned = await back.run(stop_at_end=True)
        await move_all(kafka, url, route, kafka_options=options)
        proof = await verify(kafka=kafka, nats=url, route=route, kafka_options=options)

    assert (moved.records, returned.records) == (6, 3)
    assert proof.equal, proof.difference
    assert not [it for it in (HEAD_OF_TOKENS, *SECRETS) if it in caplog.text]


async def test_a_bridge_goes_on_when_its_token_has_run_out(
    secure: SecureKafka, provider: Provider, real_nats_server: Server, topic: str
) -> None:
    secure.fill(topic)
    options = at(provider, {**BY_OPENID, ENDPOINT: Provider.SHORT})
    bridge = Bridge(
        kafka=secure.at("SIGNED"),
        nats=real_nats_server.url,
        route=a_route(topic),
        kafka_options=options,
    )
    running = asyncio.create_task(bridge.run())
    await until(lambda: bridge.progress.records == 6 or running.done())

    last = provider.short_until
    await until(lambda: time.time() > last or running.done())
    secure.produce(topic)
    await until(lambda: bridge.progress.records == 12 or running.done())

    bridge.stop()
    assert (await running).records == 12


REFUSED = {
    "another authority": ("TLS", {**BY_TLS, "ssl.ca.location": str(ANOTHER_CA)}, "certificate"),
    "another host": ("MISNAMED", BY_TLS, "certificate"),
    "no certificate": ("MUTUAL", BY_TLS, "certificate"),
    "a key's password": ("MUTUAL", {**BY_CERTIFICATE, "ssl.key.password": WRONG}, "ssl.key"),
    "a password": ("SCRAM", {**BY_PASSWORD, "sasl.password": WRONG}, "invalid credentials"),
    "a plain password": (
        "PLAIN",
        {**BY_PLAIN_PASSWORD, "sasl.password": WRONG},
        "Invalid username or password",
    ),
    "a scope": (
        "TOKEN",
        {**BY_TOKEN, "sasl.oauthbearer.config": "principal=bridge scope=fares"},
        "insufficient_scope",
    ),
    "a client's secret": (
        "SIGNED",
        {**BY_OPENID, "sasl.oauthbearer.client.secret": WRONG},
        "invalid_client",
    ),
    **{
        f"a token of {path}": ("SIGNED", {**BY_OPENID, ENDPOINT: path}, said)
        for path, said in {
            "/another-audience": "invalid_token",
            "/another-issuer": "invalid_token",
            "/another-key": "invalid_token",
            "/expired": "unexpired token",
        }.items()
    },
}


async def test_who_is_not_let_in_reads_why_in_one_line_without_the_secret(
    secure: SecureKafka, provider: Provider, topic: str
) -> None:
    secure.fill(topic)

    async def refusal(listener: str, options: Mapping[str, str]) -> str:
        with pytest.raises(BridgeError) as error:
            await assess(
                kafka=secure.at(listener),
                topics=topic,
                kafka_options=at(provider, options),
            )
        return str(error.value)

    # At once, as each waits for a Kafka that might come yet.
    tried = [refusal(listener, options) for listener, options, _ in REFUSED.values()]
    found = dict(zip(REFUSED, await asyncio.gather(*tried), strict=True))

    for name, (_, _, said) in REFUSED.items():
        assert said in found[name], name
        assert "\n" not in found[name], name
        assert not [it for it in (WRONG, HEAD_OF_TOKENS, *SECRETS) if it in found[name]], name


async def test_a_command_has_its_secret_from_the_environment_and_shows_it_nowhere(
    secure: SecureKafka,
    provider: Provider,
    real_nats_server: Server,
    topic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secure.fill(topic)
    options = at(provider, BY_OPENID).items()
    project = tmp_path / "millstream.toml"
    project.write_text(
        f'[kafka]\nbootstrap = "{secure.at("SIGNED")}"\n[kafka.options]\n'
        + "".join(f'"{name}" = "{value}"\n' for name, value in options if value != CLIENT_SECRET)
        + '"sasl.oauthbearer.client.secret" = { env = "KAFKA_CLIENT_SECRET" }\n'
        f'[nats]\nurl = "{real_nats_server.url}"\n'
        f'[[route]]\ntopic = "{topic}"\nstream = "FLIGHTS"\nsubject = "{SUBJECT}"\n'
    )
    command = ("run", "--project", str(project), "--stop-at-end", "--log-json", "--json")

    monkeypatch.setenv("KAFKA_CLIENT_SECRET", CLIENT_SECRET)
    done = await asyncio.to_thread(run, *command)
    monkeypatch.setenv("KAFKA_CLIENT_SECRET", WRONG)
    refused = await asyncio.to_thread(run, *command)

    assert (done.returncode, refused.returncode) == (0, 3)
    assert f'"records": {6}' in done.stdout
    assert "invalid_client" in refused.stderr
    for said in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert not [it for it in (WRONG, CLIENT_SECRET, HEAD_OF_TOKENS) if it in said]


async def test_a_command_that_is_not_let_in_ends_with_one_line(
    secure: SecureKafka, topic: str, tmp_path: Path
) -> None:
    project = tmp_path / "millstream.toml"
    project.write_text(
        f'[kafka]\nbootstrap = "{secure.at("SCRAM")}"\n[kafka.options]\n'
        '"security.protocol" = "SASL_SSL"\n"sasl.mechanism" = "SCRAM-SHA-512"\n'
        '"sasl.username" = "bridge"\n"sasl.password" = { file = "password" }\n'
        f'"ssl.ca.location" = "{ANOTHER_CA}"\n[nats]\nurl = "nats://127.0.0.1:1"\n'
        f'[[route]]\ntopic = "{topic}"\nstream = "FLIGHTS"\nsubject = "{SUBJECT}"\n'
    )
    (tmp_path / "password").write_text(PASSWORD)

    done = await asyncio.to_thread(run, "verify", "--project", str(project))

    assert done.returncode == 3
    for said in (done.stdout, done.stderr):  # of the route, and why it ended
        assert "certificate verify failed" in said
        assert said.count("\n") == 1
        assert PASSWORD not in said


@pytest.mark.parametrize("named", [{"sasl.mechanism": "GSSAPI"}, {}])  # it is also the default
async def test_kerberos_is_refused_in_one_line_by_a_client_that_was_built_without(
    named: Mapping[str, str],
) -> None:
    options = {"security.protocol": "SASL_SSL", **named}

    with pytest.raises(ConfigurationError, match=r"GSSAPI.*libsasl2") as error:
        await assess(kafka="127.0.0.1:1", topics="flights", kafka_options=options)

    assert "\n" not in str(error.value)
