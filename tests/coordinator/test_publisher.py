"""The publisher: right subject, nothing sent that cannot arrive, order kept, failures told."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, strategies as st
from nats.aio.client import Client
from nats.js.api import StreamConfig

from millstream_coordinator.errors import BadName
from millstream_coordinator.partitioning.description import parse_description
from millstream_coordinator.partitioning.key import KeyRule, from_token, key_headers, to_token
from millstream_coordinator.partitioning.partition import Partitioner, crc32, kafka, nats
from millstream_coordinator.partitioning.publisher import (
    MessageUnfit,
    Publisher,
    PublishFailed,
    SubjectTemplate,
    TemplateError,
)
from millstream_coordinator.provisioning.create import apply
from millstream_coordinator.provisioning.plan import plan

KEYS = st.one_of(st.none(), st.binary(max_size=200))


@given(KEYS, st.sampled_from(Partitioner), st.integers(1, 40))
def test_the_groups_key_rule_reads_what_the_template_writes(
    key: bytes | None, partitioner: Partitioner, partitions: int
) -> None:
    template = SubjectTemplate.parse(
        "flights.{partition}.{key}", partitions=partitions, partitioner=partitioner
    )
    partition = template.partition(key) or 0

    subject = template.subject(key, partition)

    rule = KeyRule.parse("flights.*.{key}")
    assert rule.partition_of(subject) == partition
    if key is None or len(key) <= 128:
        assert rule.key_of(subject, {}, b"") == key


def test_the_partition_is_that_of_kafkas_key_not_of_its_token() -> None:
    template = SubjectTemplate.parse("a.{partition}.{key}", partitions=12)

    assert template.partition(b"a.b") == kafka(b"a.b", 12) != kafka(b"a%2Eb", 12)


def test_the_nats_partitioner_hashes_the_token_as_the_server_does() -> None:
    template = SubjectTemplate.parse("a.{partition}.{key}", partitions=12, partitioner="nats")

    assert template.partition(b"a.b") == nats(b"a%2Eb", 12) != nats(b"a.b", 12)


@given(KEYS, st.sampled_from(Partitioner), st.integers(1, 12))
@example(b"N14228", Partitioner.KAFKA, 3)
def test_a_finer_token_modulo_the_coarser_number_is_the_coarser_token(
    key: bytes | None, partitioner: Partitioner, partitions: int
) -> None:
    text = (
        f"a.{{partition}}.{{partition:{partitions * 4}}}.x.{{partition:{partitions * 8}}}.{{key}}"
    )
    template = SubjectTemplate.parse(text, partitions=partitions, partitioner=partitioner)
    coarse = SubjectTemplate.parse(
        "a.{partition}.{key}", partitions=partitions, partitioner=partitioner
    )
    place = template.place(key)

    subject = template.subject(key, 0 if place is None else place)

    rule = KeyRule.parse(text)
    finest = rule.partition_of(subject, partitions * 8)
    assert finest is not None
    assert rule.partition_of(subject, partitions * 4) == finest % (partitions * 4)
    assert rule.partition_of(subject) == finest % partitions
    assert template.partition(key) == coarse.partition(key)


def test_key_and_partition_may_stand_anywhere() -> None:
    template = SubjectTemplate.parse("{key}.x.{partition}", partitions=3)

    assert template.subject(b"k", 2) == "k.x.2"


def test_a_key_that_reads_like_a_field_is_only_a_key() -> None:
    template = SubjectTemplate.parse("a.{key}.{partition}", partitions=3)

    assert template.subject(b"{partition}", 2) == "a.{partition}.2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flights.{key}", "'{partition}' must be there once"),
        ("flights.{partition}", "'{key}' must be there once"),
        ("{key}.{partition}.{key}", "'{key}' must be there once"),
        ("flights.{partition}.a{key}", "as a whole token"),
        ("flights.{partition}.{tail}.{key}", "as a whole token"),
        ("flights.*.{partition}.{key}", "wildcard '\\*'"),
        ("flights.{partition}.{key}.>", "wildcard '>'"),
        ("flights..{partition}.{key}", "empty"),
        ("flights .{partition}.{key}", "space"),
        ("flights.{partition}.{partition:4}.{key}", "4 partitions are no multiple of 3"),
        ("flights.{partition:6}.{key}", "'{partition}' must be there once"),
        ("flights.{partition}.{partition:06}.{key}", "as a whole token"),
        ("flights.{partition}.{partition:6}.{partition:6}.{key}", "there twice"),
        ("flights.{partition}.{partition:3000000000}.{key}", "3000000000 partitions"),
        ("", "empty"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as refused:
        SubjectTemplate.parse(text, partitions=3)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("partitions", [0, -1, 2**31])
def test_an_impossible_number_of_partitions_is_refused(partitions: int) -> None:
    with pytest.raises(TemplateError, match=f"{partitions} partitions"):
        SubjectTemplate.parse("a.{partition}.{key}", partitions=partitions)


def test_an_unknown_partitioner_is_refused_with_those_there_are() -> None:
    with pytest.raises(TemplateError, match="nats, kafka, murmur3, crc32"):
        SubjectTemplate.parse("a.{partition}.{key}", partitions=3, partitioner="md5")


def test_a_null_token_that_is_none_is_refused() -> None:
    with pytest.raises(TemplateError, match="null token"):
        SubjectTemplate.parse("a.{partition}.{key}", partitions=3, null_token="a.b")


async def stream(client: Client, name: str) -> str:
    """A stream for ``<name>.>``; returns the template's text."""
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    return f"{name}.{{partition}}.{{key}}"


async def stored(client: Client, name: str, count: int) -> list[tuple[str, bytes]]:
    """Everything in the stream: subjects without its name, and payloads."""
    messages = [await client.jetstream().get_msg(name, seq) for seq in range(1, count + 1)]
    return [(str(it.subject).removeprefix(f"{name}."), it.data or b"") for it in messages]


async def test_a_published_message_is_stored_under_its_keys_subject(
    client: Client, name: str
) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=12)

    told = await publisher.publish("N1.4", b"payload", headers={"A": "b"})

    assert (told.partition, told.seq, told.stream) == (kafka(b"N1.4", 12), 1, name)
    message = await client.jetstream().get_msg(name, 1)
    assert message.subject == told.subject == f"{name}.{told.partition}.N1%2E4"
    assert (message.data, message.headers) == (b"payload", {"A": "b"})


async def test_a_long_key_comes_back_from_token_and_header(client: Client, name: str) -> None:
    key = b"\xff" * 500
    publisher = Publisher(client, await stream(client, name), partitions=12)

    told = await publisher.publish(key, b"")

    message = await client.jetstream().get_msg(name, told.seq)
    assert from_token(told.subject.split(".")[2], message.headers) == key


BAD_KEYS = [
    None,
    b"",
    b" ",
    b".",
    b"*",
    b">",
    b"a.b",
    b"%null",
    b"%empty",
    b"$JS.API.INFO",
    b"\x00\r\n\t",
    b"\xff\xfe",
    "zürich 日本".encode(),
    b"k" * 128,
    b"k" * 129,
    b"k" * 128 + b"other",
    b"." * 5000,
]


async def test_every_key_comes_back_to_the_group_as_it_was_published(
    client: Client, name: str
) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=12)
    read = KeyRule.parse(f"{name}.*.{{key}}").reader()

    told = [await publisher.publish(key, b"") for key in BAD_KEYS]

    messages = [await client.jetstream().get_msg(name, it.seq) for it in told]
    found = [read(str(it.subject), it.headers or {}, b"") for it in messages]
    assert found == BAD_KEYS


async def test_a_key_written_into_a_servers_transform_comes_back(client: Client, name: str) -> None:
    description = parse_description(
        f"[topic.{name}]\nsubject='{name}.{{partition}}.{{partition:8}}.{{key}}'\npartitions=4"
    )
    await apply(client, await plan(client, description))
    rule = KeyRule.parse(f"{name}.{{partition}}.{{partition:8}}.{{key}}")
    written = SubjectTemplate.parse(rule.text, partitions=4, partitioner="nats")
    read = rule.reader()

    told = [
        await client.jetstream().publish(f"{name}.{to_token(key)}", b"", headers=key_headers(key))
        for key in BAD_KEYS
    ]

    messages = [await client.jetstream().get_msg(name, it.seq) for it in told]
    assert [read(str(it.subject), it.headers or {}, b"") for it in messages] == BAD_KEYS
    assert [it.subject for it in messages] == [
        written.subject(key, written.place(key) or 0) for key in BAD_KEYS
    ]


async def test_the_servers_own_partition_agrees_with_the_nats_partitioner(
    client: Client, name: str
) -> None:
    template = SubjectTemplate.parse("a.{partition}.{key}", partitions=10, partitioner="nats")
    await client.jetstream()._api_request(
        f"$JS.API.STREAM.CREATE.{name}",
        (
            f'{{"name":"{name}","subjects":["{name}.*"],"subject_transform":{{"src":"{name}.*",'
            f'"dest":"{name}.{{{{partition(10,1)}}}}.{{{{wildcard(1)}}}}"}}}}'
        ).encode(),
    )
    keys = [b"N14228", b"a.b", b"", None, b"\x00\xff", "zürich".encode(), b"k" * 200]

    for key in keys:
        await client.jetstream().publish(f"{name}.{to_token(key)}", b"")

    partitions = [
        int(subject.split(".")[0]) for subject, _ in await stored(client, name, len(keys))
    ]
    assert partitions == [template.partition(key) for key in keys]


async def test_messages_without_a_key_take_turns(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)

    told = [await publisher.publish(None, b"") for _ in range(8)]

    assert Counter(it.partition for it in told) == dict.fromkeys(range(4), 2)
    assert {it.subject.split(".")[2] for it in told} == {"%null"}


async def test_the_empty_key_takes_turns_with_crc32_only(client: Client, name: str) -> None:
    text = await stream(client, name)
    turning = Publisher(client, text, partitions=4, partitioner="crc32")
    hashing = Publisher(client, text, partitions=4, partitioner="kafka")

    turns = [(await turning.publish(b"", b"")).partition for _ in range(4)]
    fixed = [(await hashing.publish(b"", b"")).partition for _ in range(2)]

    assert sorted(turns) == [0, 1, 2, 3]
    assert fixed == [kafka(b"", 4)] * 2


async def test_a_partition_may_be_given(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4, partitioner="crc32")
    other = (crc32(b"k", 4) + 1) % 4

    assert (await publisher.publish(b"k", b"", partition=other)).partition == other


async def test_a_partition_that_is_not_there_is_refused(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)

    with pytest.raises(MessageUnfit, match="no partition 4"):
        await publisher.publish(b"k", b"", partition=4)


async def test_messages_without_a_key_take_turns_over_the_finest_level(
    client: Client, name: str
) -> None:
    await stream(client, name)
    publisher = Publisher(client, f"{name}.{{partition}}.{{partition:4}}.{{key}}", partitions=2)

    told = [await publisher.publish(None, b"") for _ in range(8)]

    tokens = Counter(tuple(it.subject.split(".")[1:3]) for it in told)
    assert tokens == dict.fromkeys([("0", "0"), ("1", "1"), ("0", "2"), ("1", "3")], 2)


async def test_a_partition_that_is_given_has_finer_tokens_of_its_own(
    client: Client, name: str
) -> None:
    await stream(client, name)
    text = f"{name}.{{partition}}.{{partition:8}}.{{key}}"
    publisher = Publisher(client, text, partitions=2)
    other = 1 - kafka(b"k", 2)

    told = await publisher.publish(b"k", b"", partition=other)

    rule = KeyRule.parse(text)
    fine = rule.partition_of(told.subject, 8)
    assert fine is not None
    assert told.partition == rule.partition_of(told.subject) == fine % 2 == other
    own = await publisher.publish(b"k", b"", partition=1 - other)
    assert rule.partition_of(own.subject, 8) == kafka(b"k", 8)


async def test_each_partition_may_have_a_stream_of_its_own(client: Client, name: str) -> None:
    for partition in range(3):
        await client.jetstream().add_stream(
            StreamConfig(name=f"{name}-{partition}", subjects=[f"{name}.{partition}.*"])
        )
    publisher = Publisher(
        client, f"{name}.{{partition}}.{{key}}", partitions=3, stream=f"{name}-{{partition}}"
    )

    told = [await publisher.publish(f"k{number}", b"") for number in range(12)]

    assert {it.stream for it in told} == {f"{name}-{partition}" for partition in range(3)}
    assert all(it.stream == f"{name}-{it.partition}" for it in told)
    assert sorted(it.seq for it in told if it.partition == 0) == list(
        range(1, 1 + sum(it.partition == 0 for it in told))
    )


async def test_a_message_that_another_stream_would_take_is_refused(
    client: Client, name: str
) -> None:
    text = await stream(client, name)
    publisher = Publisher(client, text, partitions=3, stream=f"{name}-{{partition}}")

    with pytest.raises(PublishFailed, match="expected stream does not match"):
        await publisher.publish(b"k", b"")


async def test_trace_context_is_added_to_the_headers(client: Client, name: str) -> None:
    def inject(carrier: dict[str, str]) -> None:
        carrier["traceparent"] = f"00-{len(carrier):032x}-1-01"

    publisher = Publisher(client, await stream(client, name), partitions=4, inject=inject)
    given_headers = {"A": "b"}

    await publisher.publish(b"k", b"", headers=given_headers)

    message = await client.jetstream().get_msg(name, 1)
    assert message.headers == {"A": "b", "traceparent": f"00-{1:032x}-1-01"}
    assert given_headers == {"A": "b"}


async def test_a_replay_names_the_group_it_is_for(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)

    await publisher.publish(b"k", b"", replay_for="billing")

    assert (await client.jetstream().get_msg(name, 1)).headers == {"Millstream-Replay": "billing"}
    with pytest.raises(BadName):
        await publisher.publish(b"k", b"", replay_for="a.b")


async def test_a_repeated_message_id_is_told(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)
    await publisher.publish(b"k", b"", headers={"Nats-Msg-Id": "1"})

    told = await publisher.publish(b"k", b"", headers={"Nats-Msg-Id": "1"})

    assert (told.is_duplicate, told.seq) == (True, 1)


async def test_sent_messages_are_stored_in_the_order_of_the_calls(
    client: Client, name: str
) -> None:
    async with Publisher(client, await stream(client, name), partitions=4, window=7) as publisher:
        for number in range(50):
            await publisher.send(f"k{number % 3}", str(number).encode())

    assert [data for _, data in await stored(client, name, 50)] == [b"%d" % it for it in range(50)]


async def test_the_window_bounds_what_is_unconfirmed(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4, window=3)
    lengths = []

    for _ in range(20):
        await publisher.send(b"k", b"")
        lengths.append(len(publisher._unconfirmed))
    await publisher.flush()

    assert max(lengths) <= 3
    assert not publisher._unconfirmed


async def test_sending_from_many_tasks_loses_nothing(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4, window=4)

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(publisher.send(b"k", str(number).encode()))
    await publisher.flush()

    payloads = {data for _, data in await stored(client, name, 40)}
    assert payloads == {b"%d" % number for number in range(40)}


async def test_a_subject_no_stream_takes_is_told_at_once(client: Client, name: str) -> None:
    publisher = Publisher(client, f"{name}.{{partition}}.{{key}}", partitions=4)

    with pytest.raises(PublishFailed, match="no stream takes this subject"):
        await publisher.publish(b"k", b"")


async def test_what_failed_in_the_window_is_raised_by_flush(client: Client, name: str) -> None:
    publisher = Publisher(client, f"{name}.{{partition}}.{{key}}", partitions=4)
    for _ in range(3):
        await publisher.send(b"k", b"")

    with pytest.raises(PublishFailed, match="no stream takes this subject") as failed:
        await publisher.flush()

    assert failed.value.more == 2
    await publisher.flush()


async def test_a_confirmation_that_does_not_come_is_a_failure(client: Client, name: str) -> None:
    silent = await client.subscribe(f"{name}.>")
    publisher = Publisher(
        client,
        f"{name}.{{partition}}.{{key}}",
        partitions=4,
        timeout=timedelta(milliseconds=20),
    )
    await publisher.send(b"k", b"")

    with pytest.raises(PublishFailed, match="no confirmation in time"):
        await publisher.flush()
    with pytest.raises(PublishFailed):
        await publisher.publish(b"k", b"")

    await silent.unsubscribe()


async def test_a_message_over_max_payload_is_refused_and_the_connection_stays(
    client: Client, name: str
) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)
    size = client.max_payload - 10

    with pytest.raises(MessageUnfit, match="max_payload"):
        await publisher.publish(b"k", b"x" * size, headers={"Long": "y" * 100})

    assert (await publisher.publish(b"k", b"x" * client.max_payload)).seq == 1


async def test_headers_over_their_limit_are_refused(client: Client, name: str) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)
    fitting = 65_535 - len("NATS/1.0\r\nA: \r\n\r\n")

    with pytest.raises(MessageUnfit, match="65536 bytes of headers"):
        await publisher.publish(b"k", b"", headers={"A": "y" * (fitting + 1)})

    assert (await publisher.publish(b"k", b"", headers={"A": "y" * fitting})).seq == 1


@pytest.mark.parametrize(
    ("header", "value"), [("a b", "x"), ("a:b", "x"), ("", "x"), ("a", " x"), ("a", "x\ny: z")]
)
async def test_a_header_that_would_not_arrive_as_it_is_is_refused(
    client: Client, name: str, header: str, value: str
) -> None:
    publisher = Publisher(client, await stream(client, name), partitions=4)

    with pytest.raises(MessageUnfit, match="would not arrive as it is"):
        await publisher.publish(b"k", b"", headers={header: value})


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"window": "9"}, {"timeout": 5}, {"timeout": timedelta(-1)}], ids=str
)
async def test_a_setting_out_of_range_is_refused_at_once(
    client: Client, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Publisher(client, "a.{partition}.{key}", partitions=4, **wrong)
