"""Streams that fit and streams that do not: said at the start, before anything is changed."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client, ServerVersion

from millstream_coordinator import Group, GroupError, KeyRuleError, StreamMissing, StreamUnfit
from millstream_coordinator.errors import ServerUnfit, ServerUnreachable
from millstream_coordinator.jetstream.api import Api
from millstream_coordinator.jetstream.consumers import Consumers
from millstream_coordinator.jetstream.port import check_version
from millstream_coordinator.jetstream.streams import Streams
from millstream_coordinator.model import ConfigRecord, MemberSettings
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.ports import CreateConsumer, ListConsumers
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

from .members import running, until
from .test_worker import Seen, member


async def make(client: Client, name: str, /, **config: Any) -> None:
    body = {"name": name.upper(), "subjects": [f"{name}.*.*"], "storage": "memory", **config}
    await Api(client, 2.0).call(f"STREAM.CREATE.{body['name']}", body)


async def names(client: Client) -> list[str]:
    return await Api(client, 2.0).stream_names()


async def refusal(client: Client, server: Server, name: str, **given: object) -> GroupError:
    """What a member is told at its start; nothing was made by it."""
    before = await names(client)
    with pytest.raises(GroupError) as raised:
        async with asyncio.timeout(60):
            await member(server.url, name, Seen(), **given).run(handle_signals=False)
    assert await names(client) == before
    return raised.value


async def test_interest_retention_is_refused(server: Server, client: Client, name: str) -> None:
    await make(client, name, retention="interest")

    error = await refusal(client, server, name)

    assert isinstance(error, StreamUnfit)
    assert "interest retention loses messages" in str(error)


@pytest.mark.parametrize(
    ("key", "subject", "reason"),
    [
        ("NAME.{partition}.{key}", "NAME.4.k", "which is of none of 4 partitions"),
        ("NAME.{partition}.{partition:8}.{key}", "NAME.1.9.k", "which is of none of 8 partitions"),
    ],
)
async def test_messages_of_partitions_that_would_be_nobodys_are_refused(
    client: Client, name: str, key: str, subject: str, reason: str
) -> None:
    await make(client, name, subjects=[f"{name}.>"])
    key, subject = (it.replace("NAME", name) for it in (key, subject))
    config = ConfigRecord(partitions=4, stream=name.upper(), filter=None)
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    streams = Streams(Api(client, 2.0), settings, KeyRule.parse(key))
    for one in (f"{name}.3.7.k", f"{name}.3.k"):
        await client.jetstream().publish(one, b"")
    await streams.look()

    await client.jetstream().publish(subject, b"")
    with pytest.raises(StreamUnfit, match=reason) as raised:
        await streams.look()

    assert f"it holds {subject!r}, which" in str(raised.value)


async def test_what_a_stream_holds_beside_the_partitions_is_left_alone(
    server: Server, client: Client, name: str
) -> None:
    await make(client, name, subjects=[f"{name}.>"])
    for subject in ("eu.k", "3.k", "17.x.k"):
        await client.jetstream().publish(f"{name}.{subject}", b"")

    async with running(group := member(server.url, name, Seen())):
        await until(lambda: len(group.partitions) == 4)


async def test_no_stream_of_letters_is_made_for_a_group_that_keeps_none(
    server: Server, client: Client, name: str
) -> None:
    await make(client, name)
    async with running(group := member(server.url, name, Seen())):
        await until(lambda: len(group.partitions) == 4)

        error = await refusal(client, server, name, on_failure="park")

    assert "exists with on_failure 'retry', wanted on_failure 'park'" in str(error)


async def test_the_consumers_of_other_groups_count(
    server: Server, client: Client, name: str
) -> None:
    await make(client, name, max_consumers=10)
    api = Api(client, 2.0)
    for partition in range(2):
        consumer = {"durable_name": f"other-p{partition}-e7", "ack_policy": "explicit"}
        await api.call(
            f"CONSUMER.CREATE.{name.upper()}.other-p{partition}-e7",
            {"stream_name": name.upper(), "config": consumer},
        )

    error = await refusal(client, server, name)

    assert "4 partitions need up to 8 consumers beside 4 of others, it takes 10" in str(error)


async def test_a_million_partitions_are_refused_by_what_the_stream_takes(
    server: Server, client: Client, name: str
) -> None:
    await make(client, name)

    error = await refusal(client, server, name, partitions=1_000_000)

    said = "1000000 partitions need up to 2000000 consumers, it takes 1000"
    assert str(error).endswith(said)


async def test_a_work_queue_that_somebody_else_reads_is_refused(
    server: Server, client: Client, name: str
) -> None:
    await make(client, name, retention="workqueue")
    consumer = {"durable_name": "other", "ack_policy": "explicit", "filter_subject": f"{name}.2.*"}
    await Api(client, 2.0).call(
        f"CONSUMER.CREATE.{name.upper()}.other.{name}.2.*",
        {"stream_name": name.upper(), "config": consumer},
    )

    error = await refusal(client, server, name)

    assert f"consumer 'other' reads {name}.2.*: a work queue has one reader" in str(error)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_age": 60 * 10**9}, "age"),
        ({"max_msgs": 100, "max_bytes": 10**6}, "number and size"),
        ({"max_msgs_per_subject": 1}, "number per subject"),
    ],
)
async def test_a_stream_that_drops_what_is_unread_is_warned_about(
    server: Server,
    client: Client,
    name: str,
    config: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await make(client, name, **config)

    with caplog.at_level(logging.WARNING):
        async with running(group := member(server.url, name, Seen())):
            await until(lambda: len(group.partitions) == 4)

    said = [one.getMessage() for one in caplog.records if "drops" in one.getMessage()]
    stream = name.upper()
    assert said == [f"group {name}: stream '{stream}' drops messages by {words}, handled or not"]


async def test_a_stream_that_refuses_rather_than_drops_is_fine(
    server: Server, client: Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make(client, name, max_msgs=100, discard="new")

    async with running(group := member(server.url, name, Seen())):
        await until(lambda: len(group.partitions) == 4)

    assert "drops" not in caplog.text


async def test_a_transform_to_another_number_of_partitions_is_refused(
    server: Server, client: Client, name: str
) -> None:
    transform = {"src": f"{name}.*", "dest": f"{name}.{{{{partition(8,1)}}}}.{{{{wildcard(1)}}}}"}
    await make(client, name, subjects=[f"{name}.*"], subject_transform=transform)

    error = await refusal(client, server, name)

    assert isinstance(error, StreamUnfit)
    assert "8 partitions where 4 are wanted" in str(error)


@pytest.mark.parametrize("found", [4, 8])
async def test_a_sourced_work_queue_is_read_as_the_partitions_it_is_sourced_into(
    server: Server, client: Client, name: str, found: int
) -> None:
    origin = f"{name.upper()}-FROM"
    await make(client, name, name=origin, subjects=[f"from{name}.*"])
    written = f"{name}.{{{{partition({found},1)}}}}.{{{{wildcard(1)}}}}"
    transform = {"src": f"from{name}.*", "dest": written}
    sources = [{"name": origin, "subject_transforms": [transform]}]
    await make(client, name, subjects=None, retention="workqueue", sources=sources)

    if found != 4:
        error = await refusal(client, server, name)
        assert "8 partitions where 4 are wanted" in str(error)
        return
    seen = Seen()
    async with running(member(server.url, name, seen)):
        for number in range(12):
            await client.jetstream().publish(f"from{name}.k{number % 3}", b"%d" % number)
        await until(lambda: len(seen.messages) == 12)
    assert seen.of_key(b"k1") == [1, 4, 7, 10]


async def test_a_missing_transform_is_refused(server: Server, client: Client, name: str) -> None:
    await make(client, name, subjects=[f"{name}.*"])

    error = await refusal(client, server, name)

    assert isinstance(error, KeyRuleError)
    assert f"no subject of partition 0 ('{name}.0.*') is among the stream's" in str(error)


# ---- one stream per partition ----


async def make_each(client: Client, name: str, count: int = 4, **config: Any) -> str:
    for partition in range(count):
        stream = f"{name.upper()}-{partition}"
        subjects = [f"{name}.{partition}.*"]
        await make(client, name, **{"name": stream, "subjects": subjects, **config})
    return f"{name.upper()}-{{partition}}"


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_each_partition_may_have_a_stream_of_its_own(
    server: Server, client: Client, name: str, retention: str
) -> None:
    pattern = await make_each(client, name, retention=retention)
    seen = Seen()
    first = member(server.url, name, seen, stream=pattern, member="a")
    second = member(server.url, name, seen, stream=pattern, member="b")

    async with running(first):
        async with running(second):
            await until(lambda: len(first.partitions) == len(second.partitions) == 2)
            for number in range(28):
                key = number % 7
                await client.jetstream().publish(f"{name}.{key % 4}.k{key}", b"%d" % number)
            await until(lambda: len(seen.messages) == 28)
        await until(lambda: len(first.partitions) == 4)
        await client.jetstream().publish(f"{name}.1.k1", b"29")
        await until(lambda: len(seen.messages) == 29)

    assert seen.of_key(b"k1") == [1, 8, 15, 22, 29]
    assert {one.seq for one in seen.messages if one.partition == 3} == set(range(1, 5))


async def test_a_partition_without_its_stream_is_named(
    server: Server, client: Client, name: str
) -> None:
    pattern = await make_each(client, name, 3)

    error = await refusal(client, server, name, stream=pattern)

    assert isinstance(error, StreamMissing)
    assert f"'{name.upper()}-3'" in str(error)


async def test_streams_that_are_unlike_each_other_are_refused(
    server: Server, client: Client, name: str
) -> None:
    pattern = await make_each(client, name, 3)
    odd = {"name": f"{name.upper()}-3", "subjects": [f"{name}.3.*"], "retention": "workqueue"}
    await make(client, name, **odd)

    error = await refusal(client, server, name, stream=pattern)

    assert f"it has workqueue retention, '{name.upper()}-0' has not" in str(error)


async def test_consumers_of_a_group_are_listed_over_all_its_streams(
    client: Client, server: Server, name: str
) -> None:
    del server
    pattern = await make_each(client, name)
    api = Api(client, 2.0)
    rule = KeyRule.parse(f"{name}.*.{{key}}")
    config = ConfigRecord(partitions=4, stream=pattern, filter=None)
    settings = MemberSettings(group=name, member="m", instance="i", config=config)
    streams = Streams(api, settings, rule)
    await streams.look()
    consumers = Consumers(api, settings, rule, streams)
    for partition in (1, 3):
        consumer = f"{name}-p{partition}-e1"
        await consumers.create(
            CreateConsumer(id=1, name=consumer, partition=partition, start_seq=1)
        )

    listed = await consumers.names(ListConsumers(id=2))

    assert getattr(listed, "names", ()) == (f"{name}-p1-e1", f"{name}-p3-e1")


# ---- the server ----


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
def plain_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    if request.param == REAL:
        require.need("nats")
    with Server(str(request.param), tmp_path, jetstream=False) as opened:
        yield opened


async def test_a_server_without_jetstream_is_said(plain_server: Server) -> None:
    group = member(plain_server.url, "g", Seen())

    with pytest.raises(ServerUnreachable, match=r"no JetStream answers at '\$JS\.API'"):
        await group.run(handle_signals=False)


async def test_a_domain_nobody_has_is_said(server: Server, client: Client, name: str) -> None:
    await make(client, name)
    group = Group(client, stream=name.upper(), name=name, partitions=4, domain="nowhere")
    group.handler(key=f"{name}.*.{{key}}")(Seen())
    del server

    with pytest.raises(ServerUnreachable, match=r"at '\$JS\.nowhere\.API'"):
        async with asyncio.timeout(60):
            await group.run(handle_signals=False)


@pytest.mark.parametrize("version", ["2.10.0", "2.15.1-beta", "3.0.0", "0.0.0-unknown", "nightly"])
def test_a_server_of_2_10_or_newer_or_of_another_kind_is_taken(version: str) -> None:
    check_version("host:4222", ServerVersion(version))


def test_a_server_before_2_10_is_too_old() -> None:
    with pytest.raises(ServerUnfit, match=r"it is nats-server 2\.9\.25, a group needs 2\.10"):
        check_version("host:4222", ServerVersion("2.9.25"))
