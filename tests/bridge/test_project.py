"""The project file: read, refused with a reason, and made into routes."""

from pathlib import Path

import pytest

from millstream_bridge import ConfigurationError
from millstream_bridge.project.file import FILE_BYTES_MAX, Project, load_project
from millstream_bridge.project.routes import current_routes
from millstream_bridge.project.rule import routes_of
from tests.helpers.kafka import Kafka

WHOLE = """
[kafka]
bootstrap = "k:1"
[kafka.options]
"security.protocol" = "SASL_SSL"
"sasl.password" = { env = "BRIDGE_TEST_PASSWORD" }
"fetch.wait.max.ms" = 7
"enable.ssl.certificate.verification" = true
[nats]
url = "nats://n:4222"
password = { file = "secret" }
user = "bridge"
[[route]]
topic = "flights"
stream = "FLIGHTS"
subject = "flights.{partition}.{key}"
max_msgs_per_subject = 1
[[route]]
topics = 'orders\\..*'
stream = "ORDERS-{topic}"
subject = "{topic}.{partition}.{key}"
[[group]]
kafka = "billing.v1"
group = "billing"
routes = ["flights"]
"""
PLAIN = """
[kafka]
bootstrap = "k:1"
[[route]]
topic = "flights"
stream = "FLIGHTS"
subject = "flights.{partition}.{key}"
"""


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("BRIDGE_TEST_PASSWORD", "kafkas secret")
    (tmp_path / "secret").write_text("nats secret\n")
    (tmp_path / "project.toml").write_text(WHOLE)
    return load_project(tmp_path / "project.toml")


def test_all_that_a_file_says_is_there(whole: Project) -> None:
    assert whole.kafka == "k:1"
    assert whole.kafka_options == {
        "security.protocol": "SASL_SSL",
        "sasl.password": "kafkas secret",
        "fetch.wait.max.ms": "7",
        "enable.ssl.certificate.verification": "true",
    }
    assert (whole.nats.user, whole.nats.password) == ("bridge", "nats secret")
    assert [(it.kafka, it.group, it.routes) for it in whole.groups] == [
        ("billing.v1", "billing", ("flights",))
    ]


def test_secrets_are_not_in_its_text(whole: Project) -> None:
    assert "secret" not in repr(whole).replace(whole.where, "")


def test_a_pattern_makes_a_route_of_each_topic_that_no_rule_names(whole: Project) -> None:
    routes = routes_of(whole.rules, ["flights", "orders.eu.paid", "else"])

    assert [(it.topic, it.stream, it.name) for it in routes] == [
        ("flights", "FLIGHTS", "flights"),
        ("orders.eu.paid", "ORDERS-orders-eu-paid", "orders-eu-paid"),
    ]
    assert routes[0].max_msgs_per_subject == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("=", "is no TOML"),
        ("[kafak]", "there is no key 'kafak'; did you mean 'kafka'?"),
        ("[kafka]", "[kafka] needs bootstrap"),
        ('[kafka]\nbootstrap = "k"', "there is no [[route]]"),
        (PLAIN + 'strem = "X"', "[[route]] 1: there is no key 'strem'; did you mean 'stream'?"),
        (PLAIN + "shared = 3", "[[route]] 1: shared must be true or false, and is a whole number"),
        (PLAIN + "max_age_s = 'x'", "[[route]] 1: max_age_s must be a number, and is text"),
        (PLAIN.replace('"flights"', "5", 1), "[[route]] 1: topic must be text, and is a whole"),
        (PLAIN.replace('topic = "flights"', 'topic = "a b"'), "'a b' is no Kafka topic name"),
        (PLAIN.replace('topic = "flights"', ""), "needs either topic or topics"),
        (PLAIN.replace('topic = "flights"', 'topics = "("'), "'(' is no pattern of topic names"),
        (PLAIN.replace('stream = "FLIGHTS"', ""), "[[route]] 1: it lacks the key `stream`"),
        (PLAIN + 'on_gap = "jump"', "[[route]] 1: on_gap 'jump' is none of stop, continue"),
        (PLAIN + '[nats]\ntls_first = "x"', "[nats]: tls_first must be true or false, and is text"),
        (PLAIN + '[[group]]\nkafka = "b"', "[[group]] 1: it lacks the key `group`"),
        (PLAIN + '[kafka.options]\n"a" = { env = "NOT_SET" }', "NOT_SET is not set"),
        (PLAIN + '[kafka.options]\n"a" = { file = "none" }', "none cannot be read: No such file"),
        (PLAIN + '[kafka.options]\n"a" = { cmd = "x" }', "is neither { env = … } nor"),
        (PLAIN + '[nats]\nurl = "http://x"', "is no NATS URL"),
        (PLAIN + '[nats]\ncred = "x"', "there is no key 'cred'; did you mean 'creds'?"),
        (PLAIN + '[[group]]\nkafka = "b"\ngroup = "a b"\nroutes = []', "'a b' is no group name"),
        (PLAIN + '[group]\nkafka = "b"', "must be written [[group]]"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "project.toml"
    file.write_text(text)

    with pytest.raises(ConfigurationError) as error:
        load_project(file)

    assert complaint in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mark_of_byte_order_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "project.toml"
    file.write_text(PLAIN.strip(), encoding="utf-8-sig")

    assert load_project(file).kafka == "k:1"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"a\xff", "byte 0xff at 1 is not UTF-8"), (b"#" * (FILE_BYTES_MAX + 1), "it is over 16,777")],
)
def test_what_is_no_text_or_no_end_of_it_is_no_project(
    tmp_path: Path, data: bytes, complaint: str
) -> None:
    file = tmp_path / "project.toml"
    file.write_bytes(data)

    with pytest.raises(ConfigurationError, match=complaint):
        load_project(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*none\.toml: No such file"):
        load_project(tmp_path / "none.toml")


async def test_topics_are_taken_from_kafka_and_one_can_be_chosen(
    mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders.eu", "orders.us", "else"):
        mock.create_topic(name, 1)
    project = a_project(tmp_path, mock, 'topics = "orders.*"', "{topic}", "{topic}.{partition}")

    routes = await current_routes(project)
    chosen = await current_routes(project.select(["orders-us"]))

    assert [it.topic for it in routes] == ["orders.eu", "orders.us"]
    assert [it.topic for it in chosen] == ["orders.us"]
    with pytest.raises(ConfigurationError, match=r"no route orders-jp .there are: orders-eu, ord"):
        await current_routes(project.select(["orders-jp"]))


async def test_what_kafka_keeps_for_itself_is_meant_by_no_pattern(
    mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders", "__consumer_offsets"):
        mock.create_topic(name, 1)
    project = a_project(tmp_path, mock, 'topics = ".*"', "{topic}", "{topic}.{partition}")

    assert [it.topic for it in await current_routes(project)] == ["orders"]


async def test_two_routes_that_write_one_subject_space_are_refused(
    mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders.eu", "orders.us"):
        mock.create_topic(name, 1)
    project = a_project(tmp_path, mock, 'topics = "orders.*"', "{topic}", "orders.{partition}")

    with pytest.raises(ConfigurationError, match="write one subject space"):
        await current_routes(project)


async def test_a_pattern_that_fits_nothing_is_said(mock: Kafka, tmp_path: Path) -> None:
    project = a_project(tmp_path, mock, 'topics = "none"', "{topic}", "{topic}.{partition}")

    with pytest.raises(ConfigurationError, match=r"no topic at .* matches any route"):
        await current_routes(project)


def a_project(folder: Path, kafka: Kafka, topics: str, stream: str, subject: str) -> Project:
    file = folder / "project.toml"
    file.write_text(
        f'[kafka]\nbootstrap = "{kafka.bootstrap}"\n[[route]]\n{topics}\n'
        f'stream = "{stream}"\nsubject = "{subject}"\n'
    )
    return load_project(file)
