"""What an assessment says of topics: on real Kafka in full, on the mock what it can tell."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from millstream_bridge import ConfigurationError, Record
from millstream_bridge.back.runner import way_back_name
from millstream_bridge.kafka import source
from millstream_bridge.kafka.admin import KafkaAdmin, KafkaGroup, Topic, TopicConfig
from millstream_bridge.model import TimestampType, Watermarks
from millstream_bridge.project.assess import assess
from millstream_bridge.project.findings import (
    Finding,
    TopicFacts,
    Verdict,
    findings,
    group_lag,
    verdict,
)
from millstream_bridge.project.shape import Shape, newest
from tests.bridge.moves import a_route
from tests.bridge.test_cli import run
from tests.bridge.topics import await_readable, transactional
from tests.helpers.kafka import Kafka
from tests.helpers.record_batch import produce_bytes, record_batch
from tests.helpers.servers import Server


def a_record(offset: int, **changes: object) -> Record:
    record = Record(0, offset, 1_000 * offset, TimestampType.CREATE, b"k", b"v")
    return record._replace(**changes)  # type: ignore[arg-type]


def facts_of(records: Sequence[Record], **changes: object) -> TopicFacts:
    shape = Shape()
    shape.add(records)
    known: dict[str, object] = {
        "topic": Topic("t", 1, 1),
        "marks": {0: Watermarks(0, len(records))},
        "config": TopicConfig(values={"cleanup.policy": "delete", "retention.ms": "-1"}),
        "shape": shape,
        "message_bytes_max": 1_000_000,
    }
    return TopicFacts(**{**known, **changes})  # type: ignore[arg-type]


def about(found: Sequence[Finding], what: str) -> Finding:
    return next(it for it in found if it.about == what)


def test_a_plain_topic_moves_as_it_is() -> None:
    found = findings(facts_of([a_record(n) for n in range(10)]))

    assert found == []
    assert verdict(found) is Verdict.AS_IS


def test_a_record_over_the_servers_limit_needs_a_choice_and_is_named() -> None:
    found = findings(facts_of([a_record(0), a_record(1, value=b"x" * 1_000_001)]))

    assert verdict(found) is Verdict.CHOICE
    assert "partition 0 offset 1" in about(found, "size").what
    assert "chunks" in about(found, "size").remedy


@pytest.mark.parametrize(("own", "said"), [(frozenset(), False), ({"max.message.bytes"}, True)])
def test_a_topic_that_permits_more_than_the_server_is_told_where_somebody_meant_it(
    own: frozenset[str], said: bool
) -> None:
    config = TopicConfig(values={"max.message.bytes": "2000000"}, own=own)

    found = findings(facts_of([a_record(0)], config=config))

    assert any("permits records of 2,000,000 bytes" in it.what for it in found) is said
    assert verdict(found) is Verdict.AS_IS


def test_headers_over_what_a_stream_takes_cannot_move() -> None:
    found = findings(facts_of([a_record(0, headers=(("n", b"x" * 70_000),))]))

    assert verdict(found) is Verdict.CANNOT
    assert "partition 0 offset 0" in about(found, "headers").what


def test_compaction_and_retention_come_with_the_setting_that_answers_them() -> None:
    config = TopicConfig(values={"cleanup.policy": "compact,delete", "retention.ms": "172800000"})

    found = findings(facts_of([a_record(0)], config=config))

    assert "max_msgs_per_subject = 1" in about(found, "compaction").remedy
    assert "2 days" in about(found, "retention").what
    assert about(found, "retention").verdict is Verdict.CHOICE


def test_gaps_null_keys_long_keys_schemas_and_packed_headers_are_seen() -> None:
    confluent = b"\x00\x00\x00\x00\x2a" + b"avro"
    records = [
        a_record(0, key=None, value=confluent),
        a_record(5, key=b"x" * 300, value=confluent, headers=(("twice", b"1"), ("twice", b"2"))),
    ]

    found = findings(facts_of(records))

    assert "4 offsets" in about(found, "offsets").what
    assert "42" in about(found, "schemas").what
    assert "1 records" in about(found, "headers").what
    assert [it.what.split()[0] for it in found if it.about == "keys"] == ["1", "keys"]
    assert verdict(found) is Verdict.AS_IS


def test_a_topic_that_cannot_be_read_cannot_move() -> None:
    found = findings(facts_of([], problem="not permitted"))

    assert (verdict(found), found[0].what) == (Verdict.CANNOT, "not permitted")


def test_an_empty_token_of_a_name_needs_a_template_of_its_own() -> None:
    found = findings(facts_of([a_record(0)], topic=Topic("a..b", 1, 1)))

    assert about(found, "name").verdict is Verdict.CHOICE


def test_a_groups_lag_counts_its_partitions_and_what_retention_took_is_said() -> None:
    group = KafkaGroup(
        name="g", state="Empty", members=0, positions={("t", 0): 3, ("t", 1): 9, ("u", 0): 1}
    )
    marks = {0: Watermarks(5, 10), 1: Watermarks(0, 10)}

    lag = group_lag(group, "t", marks)

    assert lag is not None
    assert (lag.lag, dict(lag.positions)) == (8, {0: 3, 1: 9})
    found = findings(facts_of([a_record(0)], marks=marks, groups=[lag]))
    assert "partitions 0" in about(found, "groups").what
    assert group_lag(group, "v", marks) is None


def test_partitions_in_which_a_group_has_committed_nothing_are_named() -> None:
    group = KafkaGroup(name="g", state="Empty", members=0, positions={("t", 1): 9})
    marks = {0: Watermarks(0, 0), 1: Watermarks(0, 10)}
    marks |= dict.fromkeys(range(2, 14), Watermarks(0, 10))
    lag = group_lag(group, "t", marks)
    assert lag is not None

    [finding] = findings(facts_of([a_record(0)], marks=marks, groups=[lag]))

    assert finding.verdict is Verdict.CHOICE
    assert "in some partitions (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …)" in finding.what
    assert "--uncommitted" in finding.remedy


def test_the_newest_records_are_shared_out_over_the_partitions_that_have_any() -> None:
    marks = {0: Watermarks(0, 100), 1: Watermarks(4, 4), 2: Watermarks(95, 98)}

    assert newest(marks, 20) == {0: Watermarks(90, 100), 2: Watermarks(95, 98)}
    assert newest({1: Watermarks(4, 4)}, 20) == {}


def test_the_rate_is_that_of_the_records_own_timestamps() -> None:
    shape = Shape()
    shape.add([a_record(n) for n in range(11)])

    assert shape.per_second == pytest.approx(1.0)


async def test_topics_are_assessed_by_pattern(kafka: Kafka, topic: str) -> None:
    kafka.create_topic(f"{topic}.one", 2)
    kafka.create_topic(f"{topic}.two", 1)
    kafka.produce(
        f"{topic}.one", [{"partition": n % 2, "key": b"k", "value": b"v"} for n in (0, 1)]
    )

    found = await assess(kafka=kafka.bootstrap, topics=rf"{topic}\..*", sample_records=1_000)

    one, two = found.topics
    assert (one.topic.name, one.offsets, one.shape.records) == (f"{topic}.one", 2, 2)
    assert (two.topic.name, two.offsets) == (f"{topic}.two", 0)
    told = found.as_json()
    assert told["schema"] == "millstream.bridge.assess/1"
    json.dumps(told)


async def test_the_mock_says_in_one_line_what_it_cannot_tell(mock: Kafka) -> None:
    mock.create_topic("a", 1)
    mock.create_topic("b", 1)

    found = await assess(kafka=mock.bootstrap)

    assert len(found.notes) == 1
    assert "compaction, retention, limits and groups are unknown" in found.notes[0]
    assert [it.config for it in found.topics] == [None, None]


@pytest.mark.kafka
async def test_settings_gaps_and_groups_of_a_real_kafka_are_found(
    a_real_kafka: Kafka, topic: str
) -> None:
    config = {"cleanup.policy": "compact", "max.message.bytes": "2000000"}
    a_real_kafka.create_topic(topic, 1, config)
    producer = transactional(a_real_kafka, topic)
    for n in range(2):
        producer.begin_transaction()
        producer.produce(topic, key=b"k", value=b"%d" % n, partition=0)
        producer.commit_transaction(20)
    await_readable(a_real_kafka, topic)
    admin = KafkaAdmin(a_real_kafka.bootstrap)
    await admin.set_positions(f"billing-{topic}", topic, {0: 1})
    await admin.set_positions(way_back_name(a_route(topic)), topic, {0: 1})  # no consumer's
    await admin.close()

    found = await assess(kafka=a_real_kafka.bootstrap, topics=topic)

    [facts] = found.topics
    assert facts.config is not None
    assert facts.config.own == {"cleanup.policy", "max.message.bytes"}
    assert facts.config.is_compacted
    assert facts.shape.missing == 1
    assert [(it.group, it.members) for it in facts.groups] == [(f"billing-{topic}", 0)]
    assert facts.groups[0].lag == 3
    assert found.notes == []


@pytest.mark.kafka
async def test_positions_of_an_empty_group_can_be_read_and_set(
    a_real_kafka: Kafka, topic: str
) -> None:
    a_real_kafka.create_topic(topic, 2)
    admin = KafkaAdmin(a_real_kafka.bootstrap)
    try:
        unknown = await admin.group(f"g-{topic}")
        await admin.set_positions(f"g-{topic}", topic, {0: 4, 1: 2})
        known = await admin.group(f"g-{topic}")
    finally:
        await admin.close()

    assert (unknown.state, unknown.positions) == ("Dead", {})
    assert (known.is_empty, dict(known.of_topic(topic))) == (True, {0: 4, 1: 2})


async def test_a_pattern_that_fits_nothing_or_is_none_is_said(mock: Kafka) -> None:
    with pytest.raises(ConfigurationError, match=r"no topic at .* matches 'none'"):
        await assess(kafka=mock.bootstrap, topics="none")
    with pytest.raises(ConfigurationError, match="is no pattern"):
        await assess(kafka=mock.bootstrap, topics="(")


async def test_a_batch_that_cannot_be_read_is_said_of_its_topic_and_the_others_are_assessed(
    mock: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOCK_CLUSTER", "what no cluster is called")
    for name in (topic, f"{topic}-sound"):
        mock.create_topic(name, 1)
        produce_bytes(mock.bootstrap, name, 0, record_batch([b"first", b"second"]))
    produce_bytes(mock.bootstrap, topic, 0, record_batch([b"damaged"], spoil=True))

    found = await assess(kafka=mock.bootstrap, topics=f"{topic}.*")

    assert [(it.topic.name, found.verdict_of(it) == "cannot") for it in found.topics] == [
        (topic, True),
        (f"{topic}-sound", False),
    ]
    said = about(findings(found.topics[0]), "reading").what
    assert f"topic {topic} partition 0 offset 2: the batch here cannot be read" in said


async def test_the_command_prints_a_table_findings_and_a_report(
    nats_server: Server, mock: Kafka
) -> None:
    mock.create_topic("flights", 2)
    mock.produce("flights", [{"partition": 0, "key": None, "value": b"x" * 100}])
    options = ["--kafka", mock.bootstrap, "--nats", nats_server.url]

    shown = await asyncio.to_thread(run, "assess", *options)
    told = await asyncio.to_thread(run, "assess", *options, "--json")

    assert (shown.returncode, told.returncode) == (0, 0)
    assert "TOPIC    PARTITIONS  RECORDS" in shown.stdout
    assert "flights: as it is: 1 of 1 records of the sample have no key" in shown.stdout
    [one] = json.loads(told.stdout)["topics"]
    assert (one["topic"], one["offsets"], one["sample"]["null_keys"]) == ("flights", 1, 1)
