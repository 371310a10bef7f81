"""Making what a description asks for, on both servers."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from millstream_coordinator import naming
from millstream_coordinator.errors import ConfigMismatch, ServerUnreachable, StreamUnfit
from millstream_coordinator.group import Group
from millstream_coordinator.jetstream.api import Api, api_prefix
from millstream_coordinator.model import (
    ConfigRecord,
    MemberRecord,
    Message,
    PartitionRecord,
    decode,
    encode,
)
from millstream_coordinator.partitioning.description import parse_description
from millstream_coordinator.partitioning.difference import start_of
from millstream_coordinator.partitioning.key import KeyRule
from millstream_coordinator.partitioning.layout import group_arguments
from millstream_coordinator.partitioning.publisher import Publisher
from millstream_coordinator.partitioning.topic import Description, Start
from millstream_coordinator.provisioning.create import apply
from millstream_coordinator.provisioning.generation import current, renew
from millstream_coordinator.provisioning.plan import (
    Action,
    Plan,
    PlanRefused,
    Step,
    StepKind,
    plan,
)
from millstream_coordinator.provisioning.start import resolve_start
from tests.helpers import require
from tests.helpers.servers import REAL, Server

TOKEN = """
[topic.NAME]
subject = "NAME.{partition}.{partition:16}.{region}.{customer}"
partitions = 4
MORE
[group.NAME]
on_failure = "dead-letter"
"""
SOURCED = """
[topic.NAME]
layout = "sourced"
MORE
[group.NAME]
key = "NAME.{customer}.*"
partitions = 4
levels = [8]
"""


def described(text: str, name: str, more: str = "") -> Description:
    return parse_description(text.replace("MORE", more).replace("NAME", name), file="t.toml")


async def made(client: Client, description: Description) -> Plan:
    planned = await plan(client, description)
    await apply(client, planned)
    return planned


def actions(planned: Plan) -> list[tuple[str, str]]:
    return [(str(step.kind), str(step.action)) for step in planned.steps]


async def call(client: Client, name: str, body: object = None) -> dict[str, Any]:
    return await Api(client, 2.0).call(name, body)


async def config_of(client: Client, stream: str) -> dict[str, Any]:
    config: dict[str, Any] = (await call(client, f"STREAM.INFO.{stream}"))["config"]
    return config


async def messages_in(client: Client, stream: str, count: int) -> list[tuple[str, int]]:
    """Subjects and sequences of a stream, once it has so many."""
    async with asyncio.timeout(20):
        while True:
            state = (await call(client, f"STREAM.INFO.{stream}"))["state"]
            if state["messages"] >= count:
                break
            await asyncio.sleep(0.02)
    found = []
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        message = await client.jetstream().get_msg(stream, seq)
        found.append((str(message.subject), seq))
    assert len(found) == count
    return found


async def everything(client: Client) -> dict[str, Any]:
    """Configurations of all streams of the server."""
    names = (await call(client, "STREAM.NAMES"))["streams"] or []
    return {name: await config_of(client, name) for name in names}


async def test_a_topic_and_its_group_are_made(client: Client, name: str) -> None:
    planned = await made(client, described(TOKEN, name))

    assert actions(planned) == [
        ("stream", "create"),
        ("stream", "create"),
        ("bucket", "create"),
        ("config", "create"),
    ]
    stored = await client.jetstream().publish(f"{name}.eu.c7", b"")
    message = await client.jetstream().get_msg(name, stored.seq)
    rule = KeyRule.parse(f"{name}.{{partition}}.{{partition:16}}.*.{{customer}}")
    coarse, fine = (
        rule.partition_of(str(message.subject)),
        rule.partition_of(str(message.subject), 16),
    )
    assert fine is not None
    assert coarse == fine % 4
    cfg = await Api(client, 2.0).read(naming.bucket(name), naming.CONFIG_KEY)
    assert cfg.value is not None
    assert decode(ConfigRecord, cfg.value).levels == (4, 16)


async def test_a_replay_to_the_stored_subject_is_taken_as_it_is(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))

    stored = await client.jetstream().publish(f"{name}.3.11.eu.c7", b"")

    assert (await client.jetstream().get_msg(name, stored.seq)).subject == f"{name}.3.11.eu.c7"


@pytest.mark.parametrize(
    "more",
    [
        "storage = 'memory'",
        "storage = 'memory'\ncompression = 's2'",
        "compression = 's2'\nmax_age = '1h'",
        "max_age = '500ms'",
        "max_age = '90d'\nduplicate_window = '1h'",
        "max_bytes = '1MiB'\nmax_messages = 10\nmax_message_bytes = 1000\ndiscard = 'new'",
        "retention = 'workqueue'",
        "written_by = 'producers'\npartitioner = 'murmur3'",
    ],
)
async def test_the_server_takes_every_option_over_as_it_is_described(
    client: Client, name: str, more: str
) -> None:
    await made(client, described(TOKEN, name, more))

    assert (await plan(client, described(TOKEN, name, more))).is_done


async def test_a_dry_run_changes_nothing(client: Client, name: str) -> None:
    before = await everything(client)

    planned = await plan(client, described(TOKEN, name))

    assert await everything(client) == before
    assert not planned.is_done
    document = json.loads(json.dumps(planned.as_json()))
    assert document["schema"] == "millstream.coordinator.create/1"
    assert [step["action"] for step in document["steps"]] == ["create"] * 4


async def test_what_is_there_as_described_is_kept(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))
    before = await everything(client)

    again = await made(client, described(TOKEN, name))

    assert again.is_done
    assert await everything(client) == before


async def test_limits_of_a_stream_that_is_there_are_updated(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))

    changed = await made(client, described(TOKEN, name, "max_age = '7d'\nmax_bytes = '1GiB'"))

    assert [str(it) for step in changed.steps for it in step.differences] == [
        "max_age is no limit, wanted 604800 s, can be updated: what is over it goes at once",
        "max_bytes is no limit, wanted 1073741824, can be updated: what is over it goes at once",
    ]
    config = await config_of(client, name)
    assert (config["max_age"], config["max_bytes"]) == (7 * 86400 * 10**9, 2**30)
    assert (
        await plan(client, described(TOKEN, name, "max_age = '7d'\nmax_bytes = '1GiB'"))
    ).is_done


async def test_what_cannot_be_changed_is_refused_before_anything_is(
    client: Client, name: str
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.*.*"]))
    await client.jetstream().publish(f"{name}.eu.c7", b"")
    before = await everything(client)

    planned = await plan(client, described(TOKEN, name))

    assert planned.is_refused
    assert "subject_transform is not set" in str(planned.steps[0])
    with pytest.raises(PlanRefused, match="a key would be in two partitions at once") as refused:
        await apply(client, planned)
    assert "\n" not in str(refused.value)
    assert await everything(client) == before


async def test_an_empty_stream_can_still_become_a_topic(client: Client, name: str) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.*.*"]))

    planned = await made(client, described(TOKEN, name))

    assert planned.steps[0].action is Action.UPDATE
    assert (await plan(client, described(TOKEN, name))).is_done


async def test_subjects_that_another_stream_has_are_refused(client: Client, name: str) -> None:
    await client.jetstream().add_stream(StreamConfig(name=f"X{name}", subjects=[f"{name}.eu.>"]))

    planned = await plan(client, described(TOKEN, name))

    assert f"overlaps with those of stream 'X{name}'" in str(planned.steps[0])
    assert planned.is_refused


async def test_replicas_without_a_cluster_are_refused(client: Client, name: str) -> None:
    planned = await plan(client, described(TOKEN, name, "replicas = 3"))

    assert all(step.action is Action.REFUSE for step in planned.steps[:3])
    assert "in no cluster" in planned.steps[0].reason


async def test_two_descriptions_of_one_group_do_not_go_together(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))
    other = f"[topic.O{name}]\nsubject='O{name}.{{partition}}.{{k}}'\npartitions=2\n[group.{name}]"

    planned = await plan(client, parse_description(other))

    step = planned.steps[-1]
    assert (step.kind, step.action) == (StepKind.CONFIG, Action.REFUSE)
    assert [it.field for it in step.differences][:3] == ["stream", "partitions", "levels"]
    assert "another description" in step.reason
    assert "\n" not in str(step)


async def test_a_group_made_by_somebody_else_meanwhile_is_a_mismatch(
    client: Client, name: str
) -> None:
    first = await plan(client, described(TOKEN, name))
    second = await plan(client, described(TOKEN, name, ""))
    second = replace(
        second,
        steps=tuple(
            replace(step, record=replace(step.record, max_attempts=9)) if step.record else step
            for step in second.steps
        ),
    )
    await apply(client, first)

    with pytest.raises(ConfigMismatch):
        await apply(client, second)


async def test_the_same_plan_applied_by_two_is_made_once(client: Client, name: str) -> None:
    one, other = [await plan(client, described(TOKEN, name)) for _ in range(2)]

    await asyncio.gather(apply(client, one), apply(client, other))

    assert (await plan(client, described(TOKEN, name))).is_done


async def test_policies_are_changed_while_no_member_is_there(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))
    changed = parse_description(
        TOKEN.replace("MORE", "").replace("NAME", name).replace("dead-letter", "park")
    )

    planned = await made(client, changed)

    assert [str(step.action) for step in planned.steps][-1] == "update"
    assert (await plan(client, changed)).is_done


async def test_policies_stay_while_a_member_is_there(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))
    api = Api(client, 2.0)
    await api.write(
        naming.bucket(name), naming.member_key("m1"), encode(MemberRecord(instance="i")), 0, {}
    )
    changed = parse_description(
        TOKEN.replace("MORE", "").replace("NAME", name).replace("dead-letter", "park")
    )

    step = (await plan(client, changed)).steps[-1]

    assert step.action is Action.REFUSE
    assert "1 members agree on it now (m1): stop them" in step.reason


async def test_a_resized_group_is_as_described(client: Client, name: str) -> None:
    await made(client, described(TOKEN, name))
    api = Api(client, 2.0)
    entry = await api.read(naming.bucket(name), naming.CONFIG_KEY)
    assert entry.value is not None
    resized = replace(decode(ConfigRecord, entry.value), level=16, base_epoch=9)
    await api.write(naming.bucket(name), naming.CONFIG_KEY, encode(resized), entry.revision, {})

    assert (await plan(client, described(TOKEN, name))).is_done


async def positions(client: Client, group: str) -> dict[int, PartitionRecord]:
    found = {}
    for partition in range(4):
        entry = await Api(client, 2.0).read(naming.bucket(group), naming.partition_key(partition))
        if entry.value is not None:
            found[partition] = decode(PartitionRecord, entry.value)
    return found


@pytest.mark.parametrize(("start", "floor"), [("latest", 3), ("sequence:3", 2)])
async def test_a_group_begins_where_its_description_says(
    client: Client, name: str, start: str, floor: int
) -> None:
    topic = described(TOKEN, name)
    await apply(client, await plan(client, replace(topic, groups={})))
    for number in range(3):
        await client.jetstream().publish(f"{name}.eu.c{number}", b"")
    text = TOKEN.replace("MORE", "").replace("NAME", name) + f"start = '{start}'"

    planned = await made(client, parse_description(text))

    records = await positions(client, name)
    assert actions(planned)[-2:] == [("start", "create"), ("config", "create")]
    assert {(it.floor, it.owner, it.state) for it in records.values()} == {(floor, None, "free")}
    assert len(records) == 4


async def test_a_start_that_was_written_stays_when_the_rest_is_made_again(
    client: Client, name: str
) -> None:
    topic = described(TOKEN, name)
    await apply(client, await plan(client, replace(topic, groups={})))
    await client.jetstream().publish(f"{name}.eu.c", b"")
    text = TOKEN.replace("MORE", "").replace("NAME", name) + "start = 'latest'"
    planned = await plan(client, parse_description(text))
    await apply(client, replace(planned, steps=planned.steps[:-1]))  # as a crash would leave it
    await client.jetstream().publish(f"{name}.eu.c", b"")

    again = await made(client, parse_description(text))

    assert actions(again)[-1:] == [("config", "create")]
    assert {record.floor for record in (await positions(client, name)).values()} == {1}


async def test_a_group_that_began_meanwhile_is_not_put_elsewhere(client: Client, name: str) -> None:
    topic = described(TOKEN, name)
    await apply(client, await plan(client, replace(topic, groups={})))
    await client.jetstream().publish(f"{name}.eu.c", b"")
    text = TOKEN.replace("MORE", "").replace("NAME", name) + "start = 'latest'"
    planned = await plan(client, parse_description(text))
    api = Api(client, 2.0)
    bucket = next(step for step in planned.steps if step.kind is StepKind.BUCKET)
    await call(client, f"STREAM.CREATE.{bucket.body['name']}", bucket.body)
    await api.write(
        naming.bucket(name), naming.partition_key(2), encode(PartitionRecord(epoch=1)), 0, {}
    )

    with pytest.raises(PlanRefused, match=r"'part\.2' was written by somebody else"):
        await apply(client, planned)

    assert (await api.read(naming.bucket(name), naming.CONFIG_KEY)).value is None


async def test_a_start_in_time_is_the_sequence_before_it(client: Client, name: str) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    for _ in range(3):
        await client.jetstream().publish(f"{name}.a", b"")
    api = Api(client, 2.0)
    message = (await api.call(f"STREAM.MSG.GET.{name}", {"seq": 2}))["message"]
    second = datetime.fromisoformat(message["time"][:26].rstrip("Z") + "+00:00")

    # The server's clock has more digits than ours: the time is a little before the second's.
    floor = await resolve_start(api, name, Start.at(second))

    assert floor in (0, 1)
    assert await resolve_start(api, name, Start.at(datetime(2001, 1, 1, tzinfo=UTC))) == 0
    assert await resolve_start(api, name, Start.at(datetime(2199, 1, 1, tzinfo=UTC))) == 3
    assert (await api.call(f"CONSUMER.NAMES.{name}"))["consumers"] in ([], None)


async def test_a_group_gets_a_work_queue_from_a_stream_that_is_not_touched(
    client: Client, name: str
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    for number in range(6):
        await client.jetstream().publish(f"{name}.c{number % 3}.paid", b"%d" % number)
    await client.jetstream().publish(f"{name}.else", b"")
    before = await config_of(client, name)

    planned = await made(client, described(SOURCED, name))

    assert actions(planned) == [
        ("stream", "keep"),
        ("stream", "create"),
        ("bucket", "create"),
        ("config", "create"),
    ]
    assert await config_of(client, name) == before
    stream = naming.work_stream(name)
    rule = KeyRule.parse(
        f"{naming.work_prefix(name)}.{{partition}}.{{partition:8}}.{name}.{{customer}}.*"
    )
    stored = await messages_in(client, stream, 6)
    assert [rule.key_of(subject, {}, b"") for subject, _ in stored] == [
        f"c{number % 3}".encode() for number in range(6)
    ]
    for subject, _ in stored:
        coarse, fine = rule.partition_of(subject), rule.partition_of(subject, 8)
        assert fine is not None
        assert coarse == fine % 4
    assert (await plan(client, described(SOURCED, name))).is_done


async def test_a_work_queue_gets_messages_whose_id_the_origin_took_again(
    client: Client, name: str
) -> None:
    config = {"name": name, "subjects": [f"{name}.>"], "duplicate_window": 100_000_000}
    await call(client, f"STREAM.CREATE.{name}", config)
    async with asyncio.timeout(20):
        while (await call(client, f"STREAM.INFO.{name}"))["state"]["messages"] < 3:
            await client.jetstream().publish(f"{name}.c.x", b"", headers={"Nats-Msg-Id": "1"})

    await made(client, described(SOURCED, name))

    assert len(await messages_in(client, naming.work_stream(name), 3)) == 3


async def test_a_replay_can_be_published_into_a_groups_own_stream(
    client: Client, name: str
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    await made(client, described(SOURCED, name))

    subject = f"{naming.work_prefix(name)}.1.5.{name}.c7.paid"
    stored = await client.jetstream().publish(subject, b"", headers={"Millstream-Replay": name})

    assert stored.stream == naming.work_stream(name)


@pytest.mark.parametrize(("start", "kept"), [("earliest", 5), ("latest", 2), ("sequence:3", 3)])
async def test_a_work_queue_begins_where_its_description_says(
    client: Client, name: str, start: str, kept: int
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    for _ in range(3):
        await client.jetstream().publish(f"{name}.c.paid", b"")
    text = SOURCED.replace("MORE", "").replace("NAME", name) + f"start = '{start}'"

    await made(client, parse_description(text))
    for _ in range(2):
        await client.jetstream().publish(f"{name}.c.paid", b"")

    assert len(await messages_in(client, naming.work_stream(name), kept)) == kept
    await made(client, parse_description(text))
    assert len(await messages_in(client, naming.work_stream(name), kept)) == kept
    assert (await plan(client, parse_description(text))).is_done
    assert not start_of(await config_of(client, naming.work_stream(name)))


async def test_a_source_that_waits_for_its_first_message_keeps_its_start(
    client: Client, name: str
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    for _ in range(3):
        await client.jetstream().publish(f"{name}.c.paid", b"")
    text = SOURCED.replace("MORE", "").replace("NAME", name) + "start = 'latest'"
    await made(client, parse_description(text))

    waiting = await plan(client, parse_description(text))
    await client.jetstream().publish(f"{name}.c.paid", b"")
    await messages_in(client, naming.work_stream(name), 1)
    begun = await plan(client, parse_description(text))

    assert waiting.is_done
    assert "start is 4, wanted not set, can be updated" in str(begun.steps[1])


async def test_an_empty_work_queue_is_given_nothing_again_after_its_server_was_killed(
    server: Server, tmp_path: Path, name: str
) -> None:
    with Server(server.kind, tmp_path) as other:
        client = await connected(other)
        await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
        for number in range(5):
            await client.jetstream().publish(f"{name}.c.x", b"%d" % number)
        text = SOURCED.replace("MORE", "").replace("NAME", name) + "start = 'sequence:3'"
        await made(client, parse_description(text))
        await handled_by_a_member(client, parse_description(text), name, 3)
        await client.close()
        other.kill()
        await other.restart()
        client = await connected(other)

        await client.jetstream().publish(f"{name}.c.x", b"5")

        assert [seq for _, seq in await messages_in(client, naming.work_stream(name), 1)] == [4]
        await client.close()


async def test_a_work_queue_may_begin_at_a_time(client: Client, name: str) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    await client.jetstream().publish(f"{name}.c.paid", b"")
    text = SOURCED.replace("MORE", "").replace("NAME", name)

    await made(client, parse_description(text + "start = 2001-01-01T00:00:00Z"))

    assert len(await messages_in(client, naming.work_stream(name), 1)) == 1
    assert (await plan(client, parse_description(text + "start = 2001-01-01T00:00:00Z"))).is_done


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        (None, "is not there, and the topic has no subject"),
        ({"retention": "workqueue"}, "has retention workqueue: sourcing would take its messages"),
        ({"subjects": ["X.NAME.*"]}, "is nothing that stream"),
    ],
)
async def test_an_origin_that_cannot_be_read_is_refused(
    client: Client, name: str, origin: dict[str, Any] | None, reason: str
) -> None:
    if origin is not None:
        config = {"name": name, "subjects": ["NAME.*.*"], **origin}
        config["subjects"] = [subject.replace("NAME", name) for subject in config["subjects"]]
        await call(client, f"STREAM.CREATE.{name}", config)

    planned = await plan(client, described(SOURCED, name))

    refused = [step for step in planned.steps if step.action is Action.REFUSE]
    assert len(refused) == 1
    assert reason in refused[0].reason


async def test_another_number_of_partitions_takes_a_new_work_queue(
    client: Client, name: str
) -> None:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    await made(client, described(SOURCED, name))
    text = SOURCED.replace("MORE", "").replace("NAME", name)

    planned = await plan(client, parse_description(text.replace("[8]", "[16]")))

    stream, config = planned.steps[1], planned.steps[-1]
    assert stream.action is config.action is Action.REFUSE
    assert "a resize makes a new generation" in str(stream)


async def test_a_topic_of_streams_gets_one_per_partition(client: Client, name: str) -> None:
    text = (
        f"[topic.{name}]\nlayout='streams'\nsubject='{name}.{{partition}}.{{customer}}'\n"
        f"partitions=3\n[group.{name}]\nstart='sequence:2'"
    )

    planned = await made(client, parse_description(text))

    stored = [await client.jetstream().publish(f"{name}.{n}.c", b"") for n in range(3)]
    assert [ack.stream for ack in stored] == [f"{name}-0", f"{name}-1", f"{name}-2"]
    assert [ack.seq for ack in stored] == [1, 1, 1]
    assert {it.floor for it in (await positions(client, name)).values()} == {1}
    assert actions(planned).count(("stream", "create")) == 3


Handled = list[tuple[bytes | None, int, tuple[int, int]]]


async def handled_by_a_member(
    client: Client, description: Description, name: str, count: int
) -> Handled:
    """What one member of the described group handles until it has so many: key, number, mark."""
    generation = await current(client, name)
    group = Group(client, **group_arguments(description, name, generation))
    handled: Handled = []
    stop = asyncio.Event()

    @group.handler(key=description.groups[name].rule)
    async def handle(message: Message) -> None:
        handled.append((message.key, int(message.data), (message.epoch, message.seq)))
        if len(handled) == count:
            stop.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(group.run(handle_signals=False))
        waiting = tasks.create_task(stop.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        await group.stop()
        waiting.cancel()
    return handled


def check_order(handled: Handled, numbers: Iterable[int]) -> None:
    """Everything once, each key's in order, and marks that a fenced sink takes."""
    assert sorted(number for _, number, _ in handled) == list(numbers)
    for key in {key for key, *_ in handled}:
        mine = [(number, mark) for one, number, mark in handled if one == key]
        assert mine == sorted(mine)
        marks = [mark for _, mark in mine]
        assert marks == sorted(marks)
        seqs = [seq for _, seq in marks]
        assert seqs == sorted(seqs)


async def test_a_member_begins_where_the_description_says(client: Client, name: str) -> None:
    text = f"[topic.{name}]\n" + LAYOUTS["token"].replace("NAME", name)
    whole = await plan(client, parse_description(text))
    await apply(client, replace(whole, steps=whole.steps[:1]))
    for number in range(20):
        await client.jetstream().publish(f"{name}.c{number % 5}", b"%d" % number)
    description = parse_description(text + "\nstart='sequence:13'")

    await apply(client, await plan(client, description))

    handled = await handled_by_a_member(client, description, name, 8)
    check_order(handled, range(12, 20))


async def test_a_group_goes_on_with_another_number_of_partitions(client: Client, name: str) -> None:
    text = f"[topic.{name}]\n" + LAYOUTS["sourced"].replace("NAME", name)
    description = parse_description(text)
    other = parse_description(text.replace("partitions=4\nlevels=[8]", "partitions=6"))
    await apply(client, await plan(client, description))
    for number in range(30):
        await client.jetstream().publish(f"{name}.c{number % 5}", b"%d" % number)
    handled = await handled_by_a_member(client, description, name, 30)
    for number in range(30, 50):
        await client.jetstream().publish(f"{name}.c{number % 5}", b"%d" % number)
    await messages_in(client, naming.work_stream(name), 20)

    await renew(client, other, name)

    for number in range(50, 60):
        await client.jetstream().publish(f"{name}.c{number % 5}", b"%d" % number)
    handled += await handled_by_a_member(client, other, name, 30)
    check_order(handled, range(60))


LAYOUTS = {
    "token": "subject='NAME.{partition}.{partition:8}.{customer}'\npartitions=4\n[group.NAME]",
    "sourced": (
        "layout='sourced'\nsubject='NAME.{customer}'\n[group.NAME]\npartitions=4\nlevels=[8]"
    ),
    "streams": (
        "layout='streams'\nsubject='NAME.{partition}.{customer}'\npartitions=2\n[group.NAME]"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_member_joins_the_group_that_was_made_and_handles_everything_in_order(
    client: Client, name: str, layout: str
) -> None:
    text = f"[topic.{name}]\n" + LAYOUTS[layout].replace("NAME", name)
    text += "\non_failure='dead-letter'\nmax_attempts=3\nmax_ack_pending=10"
    description = parse_description(text)
    await apply(client, await plan(client, description))
    publisher = Publisher(client, f"{name}.{{partition}}.{{key}}", partitions=2)
    for number in range(40):
        if layout == "streams":
            await publisher.publish(f"c{number % 5}", b"%d" % number)
        else:
            await client.jetstream().publish(f"{name}.c{number % 5}", b"%d" % number)
    handled = await handled_by_a_member(client, description, name, 40)

    check_order(handled, range(40))
    assert (await plan(client, description)).is_done


@pytest.mark.parametrize("stopped_after", range(5))
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_plan_that_stopped_after_any_step_is_made_whole_by_the_next(
    client: Client, name: str, layout: str, stopped_after: int
) -> None:
    text = f"[topic.{name}]\n" + LAYOUTS[layout].replace("NAME", name)
    description = parse_description(text + "\non_failure='park'\nstart='sequence:2'")
    planned = await plan(client, description)
    steps = planned.steps[:stopped_after]
    assert len(planned.steps) > stopped_after
    await apply(client, replace(planned, steps=steps))

    await apply(client, await plan(client, description))

    again = await plan(client, description)
    assert again.is_done
    places = [step for step in planned.steps if step.kind is not StepKind.START]
    assert [step.name for step in again.steps] == [step.name for step in places]


async def test_each_step_is_told_when_it_is_done(client: Client, name: str) -> None:
    told: list[Step] = []
    planned = await plan(client, described(TOKEN, name))

    await apply(client, planned, on_step=told.append)

    assert tuple(told) == planned.steps


async def test_a_field_that_the_server_drops_is_told(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = await plan(client, described(TOKEN, name))
    answer = Api.call

    async def forgetful(self: Api, name: str, body: object = None) -> dict[str, Any]:
        said = await answer(self, name, body)
        if name.startswith("STREAM.CREATE"):
            said["config"].pop("subject_transform", None)
        return said

    monkeypatch.setattr(Api, "call", forgetful)
    with pytest.raises(StreamUnfit, match="did not take over subject_transform"):
        await apply(client, planned)


async def test_a_server_without_jetstream_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, server: Server, name: str
) -> None:
    with Server(server.kind, tmp_path_factory.mktemp("core"), jetstream=False) as core:
        client = await connected(core)
        with pytest.raises(ServerUnreachable, match="no JetStream answers"):
            await plan(client, described(TOKEN, name))
        await client.close()


@pytest.mark.real_server
async def test_another_jetstream_domain_is_reached_by_its_prefix(tmp_path: Path, name: str) -> None:
    # The embedded broker has one domain, without a name.
    require.need("nats")
    file = tmp_path / "server.conf"
    file.write_text(f'jetstream {{ store_dir: "{tmp_path}/store", domain: hub }}\n')
    with Server(REAL, tmp_path, jetstream=False, arguments=("-c", str(file))) as hub:
        client = await connected(hub)
        prefix = api_prefix(domain="hub")
        description = described(SOURCED, name, f"subject = '{name}.{{customer}}.*'")

        await apply(client, await plan(client, description, prefix=prefix), prefix=prefix)

        assert (await plan(client, description, prefix=prefix)).is_done
        await client.close()


async def connected(server: Server) -> Client:
    client = Client()
    await client.connect(server.url)
    return client
