"""From descriptions to streams, and what is different on a server; without one."""

import re
from dataclasses import replace
from typing import Any

import pytest

from millstream_coordinator.errors import StreamUnfit
from millstream_coordinator.model import ConfigRecord, FailurePolicy
from millstream_coordinator.partitioning.description import parse_description
from millstream_coordinator.partitioning.difference import (
    Change,
    Difference,
    ServerTraits,
    WantedStream,
    differences,
    dropped,
    updated,
)
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.partitioning.layout import (
    Place,
    check_partitions,
    config_record,
    group_arguments,
    group_config,
    place,
    wanted_streams,
)

TOKEN = """
[topic.ORDERS]
subject = "orders.{partition}.{partition:16}.{region}.*.{customer}"
partitions = 4
max_age = "7d"
[group.billing]
on_failure = "park"
dead_letters = { max_age = "30d" }
[group.audit]
level = 16
"""
STREAMS = """
[topic.ORDERS]
layout = "streams"
subject = "orders.{partition}.{customer}"
partitions = 3
partitioner = "crc32"
[group.billing]
"""
SOURCED = """
[topic.ORDERS]
layout = "sourced"
[group.billing]
key = "orders.{customer}.>"
partitions = 4
levels = [16]
replicas = 3
start = "time:2026-01-31T00:00:00Z"
[group.audit]
key = "orders.{customer}.paid"
partitions = 2
start = "sequence:17"
"""


def wanted(text: str) -> dict[str, WantedStream]:
    return {stream.name: stream for stream in wanted_streams(parse_description(text))}


def test_a_topic_with_tokens_is_one_stream_that_transforms_and_takes_the_stored_form() -> None:
    streams = wanted(TOKEN)

    config = streams["ORDERS"].config
    assert list(streams) == ["ORDERS", "MILLSTREAM_DLQ_billing"]
    assert config["subjects"] == ["orders.*.*.*", "orders.*.*.*.*.*"]
    assert config["subject_transform"] == {
        "src": "orders.*.*.*",
        "dest": "orders.{{partition(4,1,3)}}.{{partition(16,1,3)}}"
        ".{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}",
    }
    assert (config["retention"], config["storage"], config["max_age"]) == (
        "limits",
        "file",
        7 * 86400 * 10**9,
    )
    assert config["metadata"] == {"millstream.levels": "4,16", "millstream.partitioner": "nats"}


def test_what_producers_write_is_not_transformed() -> None:
    config = wanted(TOKEN.replace("partitions = 4", "partitions = 4\nwritten_by = 'producers'"))[
        "ORDERS"
    ].config

    assert config["subjects"] == ["orders.*.*.*.*.*"]
    assert "subject_transform" not in config
    assert config["metadata"]["millstream.partitioner"] == "kafka"


def test_a_stream_has_room_for_two_epochs_of_all_groups_at_their_finest_level() -> None:
    few = wanted(TOKEN)["ORDERS"]
    many = wanted(
        TOKEN.replace("{partition:16}", "{partition:400}").replace("level = 16", "level = 400")
    )["ORDERS"]

    assert (few.needed_consumers, few.config["max_consumers"]) == (2 * 2 * 16, 1000)
    assert (many.needed_consumers, many.config["max_consumers"]) == (2 * 2 * 400, 1700)


def test_a_topic_of_streams_has_one_per_partition() -> None:
    streams = wanted(STREAMS)

    assert list(streams) == ["ORDERS-0", "ORDERS-1", "ORDERS-2"]
    assert [stream.config["subjects"] for stream in streams.values()] == [
        ["orders.0.*"],
        ["orders.1.*"],
        ["orders.2.*"],
    ]
    assert streams["ORDERS-1"].config["metadata"]["millstream.partitioner"] == "crc32"


def test_a_group_of_a_sourced_topic_has_a_work_queue_of_its_own() -> None:
    streams = wanted(SOURCED)

    config = streams["MILLSTREAM_WORK_billing"].config
    assert list(streams) == ["MILLSTREAM_WORK_billing", "MILLSTREAM_WORK_audit"]
    assert streams["MILLSTREAM_WORK_billing"].source == "ORDERS"
    assert config["retention"] == "workqueue"
    assert config["subjects"] == ["millstream.work.billing.*.*.orders.*.>"]
    assert config["num_replicas"] == 3
    assert config["sources"] == [
        {
            "name": "ORDERS",
            "subject_transforms": [
                {
                    "src": "orders.*.>",
                    "dest": "millstream.work.billing.{{partition(4,1)}}.{{partition(16,1)}}"
                    ".orders.{{wildcard(1)}}.>",
                }
            ],
            "opt_start_time": "2026-01-31T00:00:00Z",
        }
    ]
    assert streams["MILLSTREAM_WORK_audit"].config["sources"][0]["opt_start_seq"] == 17


def test_an_origin_with_a_subject_is_made_as_well() -> None:
    text = "[topic.O]\nlayout='sourced'\nsubject='o.{k}.*'\n[group.g]\npartitions=2"

    streams = wanted(text)

    assert list(streams) == ["O", "MILLSTREAM_WORK_g"]
    assert streams["O"].config["subjects"] == ["o.*.*"]


def test_dead_letters_are_kept_by_a_stream_that_refuses_when_it_is_full() -> None:
    config = wanted(TOKEN)["MILLSTREAM_DLQ_billing"].config

    assert config["subjects"] == ["millstream.dlq.billing.*.>"]
    assert (config["discard"], config["max_age"]) == ("new", 30 * 86400 * 10**9)


def test_a_groups_record_says_what_its_members_must_agree_on() -> None:
    description = parse_description(TOKEN)

    assert group_config(description, description.groups["billing"]) == ConfigRecord(
        partitions=4,
        stream="ORDERS",
        filter="orders.{partition}.{partition:16}.*.*.*",
        key="orders.{partition}.{partition:16}.{key}.*.{key2}",
        levels=(4, 16),
        on_failure=FailurePolicy.PARK,
    )
    assert group_config(description, description.groups["audit"]).active == 16


def test_rules_with_other_names_for_the_same_tokens_make_one_group() -> None:
    one, other = (KeyRule.parse(text) for text in ("o.*.{customer}", "o.{partition}.{key}"))

    assert config_record(one, "O", 4) == config_record(other, "O", 4)


def test_a_members_arguments_come_from_the_description() -> None:
    assert group_arguments(parse_description(STREAMS), "billing") == {
        "stream": "ORDERS-{partition}",
        "name": "billing",
        "partitions": 3,
        "max_ack_pending": 256,
        "on_failure": FailurePolicy.RETRY,
        "max_attempts": 5,
    }


@pytest.mark.parametrize(
    ("level", "partition", "subjects"),
    [(None, 3, "o.3.*.*"), (4, 3, "o.3.*.*"), (16, 11, "o.*.11.*")],
)
def test_a_partition_has_its_place_at_the_level_that_is_read(
    level: int | None, partition: int, subjects: str
) -> None:
    config = config_record(KeyRule.parse("o.{partition}.{partition:16}.{k}"), "O", 4, level=level)

    assert place(config, partition) == Place("O", subjects)


def test_a_partition_may_have_a_stream_of_its_own_or_none() -> None:
    config = config_record(KeyRule.parse("o.{k}"), "O-{partition}", 4)

    assert place(config, 3) == Place("O-3", "o.*")
    assert place(replace(config, filter=None), 3) == Place("O-3", None)
    assert place(config_record(None, None, 4), 3) is None


NESTED = KeyRule.parse("orders.{partition}.{partition:16}.{region}.*.{customer}")


@pytest.mark.parametrize(("name", "text"), [("ORDERS", TOKEN), ("ORDERS-1", STREAMS)])
def test_a_group_may_read_a_stream_as_described(name: str, text: str) -> None:
    description = parse_description(text)
    rule = description.groups["billing"].rule

    check_partitions(rule, description.topics["ORDERS"].partitions, name, wanted(text)[name].config)


def test_a_group_may_read_its_own_stream_and_one_that_says_nothing() -> None:
    group = parse_description(SOURCED).groups["billing"]
    check_partitions(group.rule, 4, "W", wanted(SOURCED)["MILLSTREAM_WORK_billing"].config)
    check_partitions(NESTED, 4, "O", {"subjects": ["orders.>"]})
    check_partitions(KeyRule.parse("o.{k}"), 1, "O", {"subjects": ["o.*"]})


@pytest.mark.parametrize(
    ("partitions", "config", "reason"),
    [
        (
            4,
            {"subject_transform": {"src": "o.*", "dest": "orders.{{ Partition( 8, 1 ) }}.x.y"}},
            "a token for 8 partitions where 4 are wanted",
        ),
        (
            4,
            {"subject_transform": {"src": "o", "dest": "o.{{partition(4)}}.{{partition(8)}}.>"}},
            "a token for 8 partitions where 16 are wanted",
        ),
        (
            2,
            {"sources": [{"subject_transforms": [{"src": "o.*", "dest": "o.{{partition(4,1)}}"}]}]},
            "a token for 4 partitions where 2 are wanted",
        ),
        (8, {"metadata": {"millstream.levels": "4,16"}}, "in 4,16 partitions, not in 8,16"),
    ],
)
def test_a_stream_with_other_partitions_is_refused(
    partitions: int, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StreamUnfit, match=reason) as refused:
        check_partitions(NESTED, partitions, "ORDERS", config)

    assert "\n" not in str(refused.value)


# ---- comparing ----


def found(name: str, text: str, **changes: Any) -> tuple[WantedStream, dict[str, Any]]:
    """A described stream, and its configuration on a server with these changes."""
    stream = wanted(text)[name]
    echoed = {"sealed": False, "metadata": {}, **stream.config}
    echoed["metadata"] = {"_nats.ver": "2.15.1", **echoed["metadata"]}
    return stream, {**echoed, **changes}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ORDERS", TOKEN),
        ("ORDERS-1", STREAMS),
        ("MILLSTREAM_WORK_billing", SOURCED),
        ("MILLSTREAM_DLQ_billing", TOKEN),
    ],
)
def test_what_is_as_described_has_no_differences(name: str, text: str) -> None:
    stream, config = found(name, text)

    assert differences(stream, config, messages=7) == ()


def test_what_the_description_says_nothing_of_is_no_difference_and_stays() -> None:
    stream, config = found("ORDERS", TOKEN, description="mine", placement={"tags": ["eu"]})

    assert differences(stream, config) == ()
    assert updated(stream, config)["placement"] == {"tags": ["eu"]}


def test_order_of_subjects_and_where_a_source_began_are_no_differences() -> None:
    stream, config = found("ORDERS", TOKEN)
    config["subjects"] = config["subjects"][::-1]
    work, sourced = found("MILLSTREAM_WORK_audit", SOURCED)
    sourced["sources"] = [{**sourced["sources"][0], "opt_start_seq": 99}]

    assert differences(stream, config) == ()
    assert differences(work, sourced) == ()
    assert updated(work, sourced)["sources"][0]["opt_start_seq"] == 99


@pytest.mark.parametrize(
    ("changes", "field", "change", "reason"),
    [
        ({"retention": "workqueue"}, "retention", Change.REPLACE, "to or from a work queue"),
        ({"retention": "interest"}, "retention", Change.UPDATE, ""),
        ({"storage": "memory"}, "storage", Change.REPLACE, "between file and memory"),
        ({"num_replicas": 3}, "num_replicas", Change.UPDATE, ""),
        ({"max_age": 0}, "max_age", Change.UPDATE, "goes at once"),
        ({"max_age": 10**9}, "max_age", Change.UPDATE, ""),
        ({"max_msgs": 5}, "max_msgs", Change.UPDATE, ""),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject", Change.UPDATE, "read or not"),
        ({"subjects": ["orders.*.*.*"]}, "subjects", Change.UPDATE, ""),
        ({"max_consumers": 63}, "max_consumers", Change.UPDATE, "its groups need 64"),
        ({"no_ack": True}, "no_ack", Change.UPDATE, "would not learn"),
        ({"sealed": True}, "sealed", Change.REPLACE, "nothing can be written"),
        ({"mirror": {"name": "X"}}, "mirror", Change.REPLACE, "nothing can be written"),
        ({"subject_transform": None}, "subject_transform", Change.REPLACE, "two partitions"),
        ({"metadata": {}}, "millstream.levels", Change.UPDATE, "nothing says so yet"),
        (
            {"metadata": {"millstream.levels": "8", "millstream.partitioner": "nats"}},
            "millstream.levels",
            Change.REPLACE,
            "two partitions",
        ),
        (
            {"metadata": {"millstream.levels": "4,16", "millstream.partitioner": "kafka"}},
            "millstream.partitioner",
            Change.REPLACE,
            "two partitions",
        ),
    ],
)
def test_each_difference_says_whether_it_can_be_changed_and_why(
    changes: dict[str, Any], field: str, change: Change, reason: str
) -> None:
    stream, config = found("ORDERS", TOKEN, **changes)

    first, *_ = differences(stream, config, messages=7)

    assert (first.field, first.change) == (field, change)
    assert reason in first.reason
    assert re.fullmatch(
        rf"{field} is .+, wanted .+, can(not be changed| be updated)(: .+)?", str(first)
    )


def test_where_keys_are_can_be_changed_while_a_stream_is_empty() -> None:
    stream, config = found("ORDERS", TOKEN, subject_transform=None)

    assert [it.change for it in differences(stream, config)] == [Change.UPDATE]


def test_another_origin_or_transform_takes_a_new_work_queue() -> None:
    stream, config = found("MILLSTREAM_WORK_audit", SOURCED)
    config["sources"] = [{**config["sources"][0], "name": "SALES"}]

    assert [(it.field, it.change) for it in differences(stream, config)] == [
        ("sources", Change.REPLACE)
    ]


def test_more_room_for_consumers_than_needed_is_kept() -> None:
    stream, config = found("ORDERS", TOKEN, max_consumers=64)

    assert differences(stream, config) == ()
    assert updated(stream, config)["max_consumers"] == 64
    assert updated(stream, {**config, "max_consumers": -1})["max_consumers"] == -1
    assert updated(stream, {**config, "max_consumers": 63})["max_consumers"] == 1000


def test_servers_differ_in_the_room_for_consumers() -> None:
    text = TOKEN.replace("{partition:16}", "{partition:400}").replace("level = 16", "level = 400")
    stream, unlimited = found("ORDERS", text, max_consumers=-1)
    _, limited = found("ORDERS", text, max_consumers=9)

    def judged(config: dict[str, Any], *version: int) -> list[Change]:
        server = ServerTraits.of(*version)
        return [it.change for it in differences(stream, config, server=server)]

    assert judged(unlimited, 2, 15) == judged(limited, 2, 12) == [Change.UPDATE]
    assert judged(unlimited, 2, 14) == []
    assert judged(limited, 2, 11) == [Change.REPLACE]


@pytest.mark.parametrize(("version", "window"), [((2, 13), 10**8), ((2, 14), 0), ((0, 0), 0)])
def test_a_sourced_stream_drops_no_repeated_message_id_where_the_server_lets_it(
    version: tuple[int, int], window: int
) -> None:
    streams = wanted_streams(parse_description(SOURCED), server=ServerTraits.of(*version))

    assert {stream.config["duplicate_window"] for stream in streams} == {window}


def test_the_update_is_what_was_asked_for() -> None:
    stream, config = found("ORDERS", TOKEN, max_age=5, no_ack=True, max_consumers=3)

    assert differences(stream, updated(stream, config)) == ()


def test_a_field_that_a_server_dropped_is_named() -> None:
    stream, config = found("ORDERS", TOKEN)
    del config["subject_transform"]
    config["max_consumers"] = -1

    assert dropped(stream.config, config) == ["subject_transform", "max_consumers"]
    assert dropped(stream.config, found("ORDERS", TOKEN)[1]) == []


@pytest.mark.parametrize(
    ("field", "found", "wanted", "text"),
    [
        ("subjects", ["a", "b"], None, "is a, b, wanted not set"),
        ("max_age", 0, 90 * 10**9, "is no limit, wanted 90 s"),
        ("max_bytes", -1, 10, "is no limit, wanted 10"),
        (
            "subject_transform",
            {"src": "o.*", "dest": "o.{{partition(4,1)}}"},
            None,
            "is o.* -> o.{{partition(4,1)}}, wanted not set",
        ),
    ],
)
def test_a_difference_reads_as_one_line(
    field: str, found: object, wanted: object, text: str
) -> None:
    difference = Difference(
        field=field, found=found, wanted=wanted, change=Change.UPDATE, reason="so"
    )

    assert str(difference) == f"{field} {text}, can be updated: so"
