"""Ways into a real Kafka: by certificate, by password (SCRAM, PLAIN), by token (OAUTHBEARER)."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from millstream_bridge import BridgeError, verify
from millstream_bridge.back.runner import BackBridge
from millstream_bridge.project.assess import assess
from tests.bridge.moves import a_route, move_all
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
SCOPE = "flights"
LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "MISNAMED": "SSL",
    "SCRAM": "SASL_SSL",
    "PLAIN": "SASL_PLAINTEXT",
    "TOKEN": "SASL_SSL",
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
"""


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
        plain.produce(topic, [{"partition": n % 2, "value": b"leg %d" % n} for n in range(6)])


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
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
        settings=settings + _SETTINGS,
        scram=[f"SCRAM-SHA-512=[name=bridge,password={PASSWORD}]"],
    )
    node.start()
    try:
        yield SecureKafka(node, ports)
    finally:
        node.kill()


def a_token(scope: str) -> str:
    """A JWT without a signature, as the broker's own validator for tests takes it."""
    claims = {"sub": "bridge", "iat": time.time(), "exp": time.time() + 300, "scope": [scope]}
    parts = ({"alg": "none"}, claims)
    coded = [base64.urlsafe_b64encode(json.dumps(it).encode()).rstrip(b"=") for it in parts]
    return b".".join([*coded, b""]).decode()


@contextmanager
def token_endpoint() -> Iterator[str]:
    """An OpenID provider's token endpoint; gives the scope to who has the client's secret."""
    expected = b"Basic " + base64.b64encode(f"bridge:{CLIENT_SECRET}".encode())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            is_known = self.headers["Authorization"] == expected.decode()
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            answer = {"error": "invalid_client"}
            if is_known:
                answer = {"access_token": a_token(asked["scope"][0])}
            body = json.dumps(answer).encode()
            self.send_response(200 if is_known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/token"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with token_endpoint() as url:
        yield url


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
BY_OPENID = {
    **BY_TLS,
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "bridge",
    "sasl.oauthbearer.client.secret": CLIENT_SECRET,
    "sasl.oauthbearer.scope": SCOPE,
}


def with_endpoint(options: Mapping[str, str], url: str) -> dict[str, str]:
    """The options with the address of the token endpoint, where they ask for one."""
    if "sasl.oauthbearer.method" not in options:
        return dict(options)
    return {**options, "sasl.oauthbearer.token.endpoint.url": url}


@pytest.mark.parametrize(
    ("listener", "options"),
    [
        pytest.param("TLS", BY_TLS, id="tls"),
        pytest.param("MISNAMED", BY_ANY_NAME, id="any-name"),
        pytest.param("MUTUAL", BY_CERTIFICATE, id="certificate"),
        pytest.param("SCRAM", BY_PASSWORD, id="scram"),
        pytest.param("TOKEN", BY_TOKEN, id="oauthbearer"),
        pytest.param("TOKEN", BY_OPENID, id="openid"),
    ],
)
async def test_records_go_there_and_back_and_are_verified(
    secure: SecureKafka,
    endpoint: str,
    real_nats_server: Server,
    topic: str,
    caplog: pytest.LogCaptureFixture,
    listener: str,
    options: Mapping[str, str],
) -> None:
    caplog.set_level("DEBUG")
    secure.fill(topic)
    kafka, url, route = secure.at(listener), real_nats_server.url, a_route(topic, shared=True)
    options = with_endpoint(options, endpoint)

    async with asyncio.timeout(120):
        moved = await move_all(kafka, url, route, kafka_options=options)
        await publish(real_nats_server, range(3), partitions=2)
        back = BackBridge(kafka=kafka, nats=url, route=route, kafka_options=options)
        returned = await back.run(stop_at_end=True)
        await move_all(kafka, url, route, kafka_options=options)
        proof = await verify(kafka=kafka, nats=url, route=route, kafka_options=options)

    assert (moved.records, returned.records) == (6, 3)
    assert proof.equal, proof.difference
    assert not [it for it in SECRETS if it in caplog.text]


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
        "TOKEN",
        {**BY_OPENID, "sasl.oauthbearer.client.secret": WRONG},
        "invalid_client",
    ),
}


async def test_who_is_not_let_in_reads_why_in_one_line_without_the_secret(
    secure: SecureKafka, endpoint: str, topic: str
) -> None:
    secure.fill(topic)

    async def refusal(listener: str, options: Mapping[str, str]) -> str:
        with pytest.raises(BridgeError) as error:
            await assess(
                kafka=secure.at(listener),
                topics=topic,
                kafka_options=with_endpoint(options, endpoint),
            )
        return str(error.value)

    # At once, as each waits for a Kafka that might come yet.
    tried = [refusal(listener, options) for listener, options, _ in REFUSED.values()]
    found = dict(zip(REFUSED, await asyncio.gather(*tried), strict=True))

    for name, (_, _, said) in REFUSED.items():
        assert said in found[name], name
        assert "\n" not in found[name], name
        assert not [it for it in (WRONG, *SECRETS) if it in found[name]], name


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
