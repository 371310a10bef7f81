"""A plan says what will be, as a file that can be read back; its check says what drifted since."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
)
from hypothesis import example, given, strategies as st

from millstream_bridge import NatsTarget, Route
from millstream_bridge.kafka.admin import Topic, TopicConfig
from millstream_bridge.project.assess import Assessment
from millstream_bridge.project.drift import check, kafka_drift, stream_drift
from millstream_bridge.project.file import load_project
from millstream_bridge.project.findings import GroupLag, TopicFacts
from millstream_bridge.project.plan import names_of, plan_text
from millstream_bridge.project.routes import check_together, current_routes
from millstream_bridge.project.rule import routes_of
from millstream_bridge.records.mapping import Mapping
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_assess import a_record, facts_of
from tests.bridge.test_cli import run
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server


def text_of(*topics: TopicFacts, is_cluster: bool = False) -> str:
    return plan_text(
        topics,
        kafka="k:1",
        nats=NatsTarget(url="nats://n:4222"),
        pattern=".*",
        is_cluster=is_cluster,
    )


topic_names = st.lists(
    st.builds(
        str.__add__,
        st.sampled_from(["", "long." * 13]),
        st.text("ab.-_", min_size=1, max_size=6).filter(lambda it: it not in (".", "..")),
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(topic_names)
@example(["a", "a.b"])
def test_no_two_topics_of_a_plan_get_in_each_others_way(topics: list[str]) -> None:
    routes = [
        Route(topic=topic, stream=stream, subject=f"{head}.{{partition}}.{{key}}", name=name)
        for topic, (name, stream, head) in names_of(topics).items()
    ]

    check_together(routes)


def test_compaction_becomes_a_line_and_retention_a_choice(tmp_path: Path) -> None:
    config = TopicConfig(
        values={
            "cleanup.policy": "compact,delete",
            "retention.ms": "604800000",
            "delete.retention.ms": "86400000",
        }
    )
    file = tmp_path / "project.toml"

    file.write_text(text_of(facts_of([a_record(0)], config=config)))

    [route] = routes_of(load_project(file).rules, [])
    assert (route.max_msgs_per_subject, route.max_age_s) == (1, None)
    lines = file.read_text().splitlines()
    assert "max_msgs_per_subject = 1  # cleanup.policy = compact,delete" in lines
    assert any(it.startswith("# max_age_s = 604800  # retention.ms") for it in lines)
    assert any(it.startswith("# tombstone_ttl_s = 86400  # delete.retention.ms") for it in lines)


@pytest.mark.parametrize(("is_cluster", "replicas"), [(True, 3), (False, 1)])
def test_copies_are_kept_where_there_are_servers_for_them(
    tmp_path: Path, is_cluster: bool, replicas: int
) -> None:
    file = tmp_path / "project.toml"

    file.write_text(text_of(facts_of([], topic=Topic("t", 1, 3)), is_cluster=is_cluster))

    [route] = routes_of(load_project(file).rules, [])
    assert route.replicas == replicas
    alone = "this NATS server stands alone" in file.read_text()
    assert alone is not is_cluster


def test_groups_are_noted_with_their_routes(tmp_path: Path) -> None:
    lag = GroupLag(group="billing.v1", state="Stable", members=2, lag=7, positions={0: 3})
    file = tmp_path / "project.toml"

    file.write_text(text_of(facts_of([a_record(0)], groups=[lag])))

    [group] = load_project(file).groups
    assert (group.kafka, group.group, group.routes) == ("billing.v1", "billing-v1", ("t",))
    assert "# Stable, 2 members; behind by 7" in file.read_text()


def test_a_group_of_several_topics_becomes_one_for_each(tmp_path: Path) -> None:
    lag = GroupLag(group="billing.v1", state="Stable", members=2, lag=7, positions={0: 3})
    other = dataclasses.replace(lag, group="billing-v1")
    topics = [
        facts_of([a_record(0)], topic=Topic("orders.eu", 1, 1), groups=[lag]),
        facts_of([a_record(0)], topic=Topic("orders-eu", 1, 1), groups=[lag, other]),
    ]
    file = tmp_path / "project.toml"

    file.write_text(text_of(*topics))

    project = load_project(file)
    assert [(it.topic, it.name) for it in routes_of(project.rules, [])] == [
        ("orders.eu", "orders-eu-2"),
        ("orders-eu", "orders-eu"),
    ]
    assert [(it.kafka, it.group, it.routes) for it in project.groups] == [
        ("billing-v1", "billing-v1", ("orders-eu",)),
        ("billing.v1", "billing-v1-orders-eu", ("orders-eu",)),
        ("billing.v1", "billing-v1-orders-eu-2", ("orders-eu-2",)),
    ]


def test_a_topic_that_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    readable = facts_of([a_record(0)], topic=Topic("u", 1, 1))
    file = tmp_path / "project.toml"

    file.write_text(text_of(facts_of([], problem="not permitted"), readable))

    assert [it.topic for it in routes_of(load_project(file).rules, [])] == ["u"]
    assert "# reading: not permitted → permit Read and Describe" in file.read_text()


def test_groups_that_came_and_went_are_drift(tmp_path: Path) -> None:
    billing = GroupLag(group="billing", state="Stable", members=2, lag=7, positions={0: 3})
    file = tmp_path / "project.toml"
    file.write_text(text_of(facts_of([a_record(0)], groups=[billing])))
    other = facts_of([a_record(0)], groups=[dataclasses.replace(billing, group="audit")])

    found = kafka_drift(load_project(file), Assessment(kafka="k:1", topics=[other], notes=[]))

    assert [(it.where, it.what) for it in found] == [
        ("group audit", "Kafka group audit reads topic t, and the project does not have it"),
        ("group billing", "has no position in any topic of the project"),
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("", ["partition 0 offset 0 makes a message of 2,000,160 bytes"]),
        ('large = "chunks"', []),
        ('on_poison = "park"', []),
    ],
)
def test_a_record_that_fits_no_message_is_drift_unless_the_route_answers_it(
    tmp_path: Path, settings: str, says: list[str]
) -> None:
    small = facts_of([a_record(0)], message_bytes_max=1 << 20)
    file = tmp_path / "project.toml"
    file.write_text(text_of(small).replace("planned =", f"{settings}\nplanned ="))
    large = facts_of([a_record(0, value=b"x" * 2_000_000)], message_bytes_max=1 << 20)

    found = kafka_drift(load_project(file), Assessment(kafka="k:1", topics=[large], notes=[]))

    assert [it.what.partition(", the server")[0] for it in found] == says


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"subjects": ["flights.>"], "max_msgs_per_subject": 1}, []),
        (
            {"subjects": ["flights.>"], "max_msgs_per_subject": 1, "storage": "memory"},
            ["storage is memory, the route says file"],
        ),
        ({"subjects": ["flights.>"]}, ["max_msgs_per_subject is -1, the route says 1"]),
        (
            {
                "subjects": ["flights.>"],
                "max_msgs_per_subject": 1,
                "num_replicas": 3,
                "allow_atomic": True,
            },
            ["num_replicas is 3, the route says 1"],
        ),
        ({"subjects": ["else.>"]}, ["does not listen to flights.*.* (only to else.>)"]),
    ],
)
def test_a_stream_that_is_not_as_its_route_is_drift(
    config: dict[str, object], what: list[str]
) -> None:
    route = a_route("flights", max_msgs_per_subject=1)

    assert [it.what for it in stream_drift(Mapping(route), config)] == what


def test_what_leads_to_both_sides_is_written_but_no_secret(tmp_path: Path) -> None:
    text = plan_text(
        [facts_of([a_record(0)])],
        kafka="k:1",
        nats=NatsTarget(url="nats://user:hidden@n:4222", tls_ca=tmp_path / "ca.pem"),
        pattern=".*",
        is_cluster=False,
        kafka_options={"security.protocol": "SASL_SSL", "sasl.password": "hidden"},
    )
    file = tmp_path / "project.toml"
    file.write_text(text)

    project = load_project(file)

    assert "hidden" not in text
    assert project.kafka_options == {"security.protocol": "SASL_SSL"}
    assert (str(project.nats), project.nats.tls_ca) == ("nats://n:4222", tmp_path / "ca.pem")
    assert '# "sasl.password" = { env = "SASL_PASSWORD" }' in text


async def test_a_plan_can_be_run_as_it_is_and_has_not_drifted(
    real_nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    for name in ("orders", "orders.eu", "..odd"):
        mock.create_topic(name, 2)
        mock.produce(name, [{"partition": 0, "key": b"k", "value": b"v"}])
    file = tmp_path / "project.toml"
    options = ("--kafka", mock.bootstrap, "--nats", real_nats_server.url, "--out", str(file))

    told = await asyncio.to_thread(run, "plan", *options[:4], "--json")
    written = await asyncio.to_thread(run, "plan", *options)
    again = await asyncio.to_thread(run, "plan", *options)

    assert written.returncode == 0, written.stderr
    assert json.loads(told.stdout) == {
        "schema": "millstream.bridge.plan/1",
        "project": None,
        "text": file.read_text(),
    }
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "is there already" in again.stderr
    project = load_project(file)
    routes = await current_routes(project)
    for route in routes:
        report = await move_all(mock.bootstrap, real_nats_server.url, route)
        assert report.records == 1
    assert (await check(project, sample_records=100)).drifts == []


async def test_each_stream_of_a_dense_route_is_looked_at(
    nats_server: Server, mock: Kafka, topic: str, tmp_path: Path
) -> None:
    mock.create_topic(topic, 2)
    dense = a_route(topic, mode="dense", stream="FLIGHTS-{partition}", max_bytes=1 << 20)
    await move_all(mock.bootstrap, nats_server.url, dense)
    file = tmp_path / "project.toml"
    file.write_text(
        f'[kafka]\nbootstrap = "{mock.bootstrap}"\n[nats]\nurl = "{nats_server.url}"\n'
        f'[[route]]\ntopic = "{topic}"\nmode = "dense"\nstream = "{dense.stream}"\n'
        f'subject = "{dense.subject}"\n'
    )

    found = (await check(load_project(file), sample_records=0)).drifts

    assert [(it.where, it.what) for it in found] == [
        (f"stream FLIGHTS-{p}", "max_bytes is 1048576, the route says -1") for p in (0, 1)
    ]


async def test_what_drifted_is_said_with_a_remedy_and_exit_1(
    real_nats_server: Server, mock: Kafka, tmp_path: Path
) -> None:
    mock.create_topic("orders", 2)
    file = tmp_path / "project.toml"
    made = run(
        "plan", "--kafka", mock.bootstrap, "--nats", real_nats_server.url, "--out", str(file)
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == (
        f"{file}: 1 route; read it, then millstream bridge run --project {file}\n"
    )
    file.write_text(
        file.read_text().replace('"partitions" = "2"', '"partitions" = "1"')
        + '[[route]]\ntopic = "gone"\nstream = "GONE"\nsubject = "gone.{partition}"\n'
    )
    mock.create_topic("new", 1)

    told = await asyncio.to_thread(run, "plan", "--check", str(file), "--json")
    shown = await asyncio.to_thread(run, "plan", "--check", str(file))

    assert (told.returncode, shown.returncode) == (1, 1)
    document = json.loads(told.stdout)
    assert document["schema"] == "millstream.bridge.plan/1"
    assert [(it["where"], it["what"]) for it in document["drift"]] == [
        ("orders", "partitions was 1, is 2 now"),
        ("gone", "the topic is not there (any more), or may not be seen"),
        ("new", "a topic that no route moves"),
    ]
    assert "gone: the topic is not there (any more), or may not be seen → remove" in shown.stdout
    assert shown.stdout.endswith("3 drifted\n")
    of_kafka, of_template = document["notes"]
    assert "describes neither topics nor groups" in of_kafka
    assert of_template.startswith("gone: the whole key is not in the subject")
    assert shown.stderr.splitlines() == [f"note: {of_kafka}", f"note: {of_template}"]


@pytest.mark.kafka
async def test_settings_and_groups_that_changed_on_a_real_kafka_are_drift(
    real_nats_server: Server, a_real_kafka: Kafka, topic: str, tmp_path: Path
) -> None:
    a_real_kafka.create_topic(topic, 1, {"cleanup.policy": "compact"})
    file = tmp_path / "project.toml"
    made = await asyncio.to_thread(
        run,
        "plan",
        *("--kafka", a_real_kafka.bootstrap, "--nats", real_nats_server.url),
        *("--topics", topic, "--out", str(file)),
    )
    assert made.returncode == 0, made.stderr
    project = load_project(file)
    before = (await check(project, sample_records=0)).drifts
    admin = AdminClient({"bootstrap.servers": a_real_kafka.bootstrap})
    change = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[change])
    for done in (
        *admin.incremental_alter_configs([resource]).values(),
        *admin.create_partitions([NewPartitions(topic, 2)]).values(),
    ):
        done.result(20)

    after = (await check(project, sample_records=0)).drifts

    assert before == []
    assert [route.max_msgs_per_subject for route in await current_routes(project)] == [1]
    assert {it.what for it in after} == {
        "partitions was 1, is 2 now",
        "cleanup.policy was compact, is delete now",
    }
    assert all(it.remedy for it in after)
