"""A group's own stream gets another number of partitions: nothing lost, repeated or overtaken."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from millstream_coordinator import naming
from millstream_coordinator.errors import NotPossible
from millstream_coordinator.jetstream.api import Api
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    MemberRecord,
    ParkedRecord,
    PartitionRecord,
    decode,
    encode,
)
from millstream_coordinator.partitioning.description import parse_description
from millstream_coordinator.partitioning.difference import ServerTraits
from millstream_coordinator.partitioning.topic import Description
from millstream_coordinator.provisioning import generation
from millstream_coordinator.provisioning.create import apply
from millstream_coordinator.provisioning.generation import GenerationStep, renew
from millstream_coordinator.provisioning.plan import plan
from tests.helpers.servers import Server

STEPS = list(GenerationStep)


@dataclass(frozen=True, slots=True)
class Work:
    """A group with a work queue of four partitions, sourced from the stream of its name."""

    client: Client
    name: str

    @property
    def api(self) -> Api:
        return Api(self.client, 2.0)

    def described(self, partitions: int, more: str = "") -> Description:
        return parse_description(
            f"[topic.{self.name}]\nlayout='sourced'\n[group.{self.name}]\n"
            f"key='{self.name}.{{customer}}.*'\npartitions={partitions}\n{more}"
        )

    async def publish(self, first: int, last: int) -> None:
        for number in range(first, last):
            await self.client.jetstream().publish(f"{self.name}.c{number % 5}.x", b"%d" % number)

    async def state(self, stream: str) -> dict[str, Any]:
        state: dict[str, Any] = (await self.api.call(f"STREAM.INFO.{stream}"))["state"]
        return state

    async def until(self, stream: str, last_seq: int) -> None:
        async with asyncio.timeout(30):
            while True:
                if (await self.state(stream))["last_seq"] >= last_seq:
                    return
                await asyncio.sleep(0.02)

    async def handle(self, stream: str, count: int) -> list[tuple[str, int, int]]:
        """Take so many messages as a group would: (subject, sequence, number), acked."""
        taken: list[tuple[str, int, int]] = []
        subscription = await self.client.jetstream().pull_subscribe(
            "", durable=naming.consumer(self.name, 0, 7), stream=stream
        )
        while len(taken) < count:
            for message in await subscription.fetch(count - len(taken), timeout=20):
                await message.ack_sync()
                taken.append((message.subject, message.metadata.sequence.stream, int(message.data)))
        await subscription.unsubscribe()
        return taken

    async def value(self, key: str) -> bytes | None:
        return (await self.api.read(naming.bucket(self.name), key)).value

    async def put(self, key: str, value: bytes) -> None:
        await self.api.write(naming.bucket(self.name), key, value, 0, {})

    async def config(self) -> ConfigRecord:
        value = await self.value(naming.CONFIG_KEY)
        assert value is not None
        return decode(ConfigRecord, value)


@pytest.fixture
async def work(client: Client, name: str) -> Work:
    return await begun(client, name)


async def begun(client: Client, name: str) -> Work:
    await client.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    work = Work(client, name)
    await apply(client, await plan(client, work.described(4)))
    for partition in range(4):
        record = PartitionRecord(epoch=3 + partition)
        await work.put(naming.partition_key(partition), encode(record))
    return work


def check_order(handled: list[tuple[str, int, int]], count: int) -> None:
    """Everything once, each key's in order, sequences growing, and one partition per key."""
    assert sorted(number for *_, number in handled) == list(range(count))
    by_key = defaultdict(list)
    for subject, seq, number in handled:
        by_key[subject.split(".")[-2]].append((seq, number))
    assert all(found == sorted(found) for found in by_key.values())


async def test_what_was_left_and_what_comes_goes_on_in_order(work: Work) -> None:
    old = naming.work_stream(work.name)
    await work.publish(0, 20)
    await work.until(old, 20)
    handled = await work.handle(old, 7)

    done = await renew(work.client, work.described(6), work.name)

    await work.publish(20, 40)
    assert (done.old_stream, done.new_stream) == (old, naming.work_stream(work.name, 2))
    handled += await work.handle(done.new_stream, 33)
    check_order(handled, 40)
    partitions = {(it.split(".")[-2], it.split(".")[3]) for it, *_ in handled[7:]}
    assert len(partitions) == 5
    assert all(int(partition) < 6 for _, partition in partitions)
    assert old not in await work.api.stream_names()


async def test_the_group_is_at_the_new_number_with_epochs_above_all_there_were(work: Work) -> None:
    await renew(work.client, work.described(3, "levels = [9]"), work.name)

    config = await work.config()
    assert (config.partitions, config.levels, config.base_epoch) == (3, (3, 9), 6)
    assert config.stream == naming.work_stream(work.name, 2)
    for partition in range(3):
        value = await work.value(naming.partition_key(partition))
        assert value is not None
        record = decode(PartitionRecord, value)
        assert (record.epoch, record.owner, record.floor) == (7, None, 0)
    assert await work.value(naming.partition_key(3)) is None
    control = await work.value(naming.CONTROL_KEY)
    assert control is not None
    assert not decode(ControlRecord, control).is_paused


async def test_the_description_fits_afterwards_and_a_second_change_goes_on(work: Work) -> None:
    await work.publish(0, 6)
    await work.until(naming.work_stream(work.name), 6)
    await renew(work.client, work.described(6), work.name)

    assert (await plan(work.client, work.described(6))).is_done
    assert (await renew(work.client, work.described(6), work.name)).is_done
    again = await renew(work.client, work.described(2), work.name)

    assert again.new_stream == naming.work_stream(work.name, 3)
    await work.publish(6, 10)
    check_order(await work.handle(again.new_stream, 10), 10)


async def test_a_dry_run_changes_nothing(work: Work) -> None:
    before = await work.api.stream_names(), await work.config()

    told = await renew(work.client, work.described(6), work.name, dry_run=True)

    assert (told.old_partitions, told.new_partitions, told.is_done) == (4, 6, False)
    assert (await work.api.stream_names(), await work.config()) == before


@pytest.mark.parametrize("backlog", [0, 9])
@pytest.mark.parametrize("step", STEPS)
async def test_a_change_that_stopped_after_any_step_goes_on_where_it_was(
    work: Work, step: GenerationStep, backlog: int
) -> None:
    old = naming.work_stream(work.name)
    await work.publish(0, 9)
    await work.until(old, 9)
    handled = await work.handle(old, 9 - backlog) if backlog < 9 else []

    def crash(done: GenerationStep) -> None:
        if done is step:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await renew(work.client, work.described(6), work.name, on_step=crash)
    await work.publish(9, 15)
    await renew(work.client, work.described(6), work.name)

    await work.publish(15, 20)
    new = naming.work_stream(work.name, 2)
    handled += await work.handle(new, 20 - len(handled))
    check_order(handled, 20)
    assert old not in await work.api.stream_names()


async def test_traffic_during_the_change_is_neither_lost_nor_repeated(work: Work) -> None:
    old = naming.work_stream(work.name)
    await work.publish(0, 50)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work.publish(50, 600))
        await renew(work.client, work.described(6), work.name)

    new = naming.work_stream(work.name, 2)
    check_order(await work.handle(new, 600), 600)
    assert old not in await work.api.stream_names()


async def test_the_new_stream_and_its_place_survive_a_killed_server(
    server: Server, tmp_path: Path, name: str
) -> None:
    with Server(server.kind, tmp_path) as other:
        work = await begun(await nats.connect(other.url), name)
        await work.publish(0, 12)
        await work.until(naming.work_stream(name), 12)
        handled = await work.handle(naming.work_stream(name), 5)
        new = (await renew(work.client, work.described(6), name)).new_stream
        await work.publish(12, 20)
        handled += await work.handle(new, 15)
        await apply(work.client, await plan(work.client, work.described(6)))
        await work.client.close()
        other.kill()
        await other.restart()
        work = Work(await nats.connect(other.url), name)

        await work.publish(20, 30)

        handled += await work.handle(new, 10)
        check_order(handled, 30)
        await work.client.close()


async def test_a_group_paused_by_its_operator_stays_paused(work: Work) -> None:
    await work.put(naming.CONTROL_KEY, encode(ControlRecord(is_paused=True)))

    await renew(work.client, work.described(6), work.name)

    control = await work.value(naming.CONTROL_KEY)
    assert control is not None
    assert decode(ControlRecord, control).is_paused


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("members.m1", encode(MemberRecord(instance="i")), "1 members run (m1 is one)"),
        ("parked.2", encode(ParkedRecord(keys={"k": 3})), "'parked.2' has parked keys"),
        ("part.9", encode(PartitionRecord(epoch=1, stopped_seq=4)), "'part.9' is stopped"),
        ("part.9", encode(PartitionRecord(epoch=1, owner="m1")), "was not put down cleanly"),
        (
            "part.9",
            encode(PartitionRecord(epoch=1, cause="missed heartbeats")),
            "was not put down cleanly",
        ),
    ],
)
async def test_what_would_be_lost_is_refused_before_anything_is_changed(
    work: Work, key: str, value: bytes, reason: str
) -> None:
    await work.put(key, value)
    before = await work.api.call(f"STREAM.INFO.{naming.work_stream(work.name)}")

    with pytest.raises(NotPossible) as refused:
        await renew(work.client, work.described(6), work.name)

    assert reason in str(refused.value)
    assert await work.value(naming.CONTROL_KEY) is None
    after = await work.api.call(f"STREAM.INFO.{naming.work_stream(work.name)}")
    assert after["config"] == before["config"]


async def test_a_stream_that_somebody_else_reads_is_refused(work: Work) -> None:
    await work.client.jetstream().pull_subscribe(
        "", durable="other", stream=naming.work_stream(work.name)
    )

    with pytest.raises(NotPossible, match="consumer 'other' reads"):
        await renew(work.client, work.described(6), work.name)


async def test_a_server_that_would_lose_the_new_stream_is_refused(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = ServerTraits.of(2, 10)
    monkeypatch.setattr(generation, "server_traits", lambda api: oldest)

    with pytest.raises(NotPossible, match=r"2\.10 loses a stream"):
        await renew(work.client, work.described(6), work.name)

    assert await work.value(naming.CONTROL_KEY) is None


async def test_another_key_is_refused(work: Work) -> None:
    description = parse_description(
        f"[topic.{work.name}]\nlayout='sourced'\n[group.{work.name}]\n"
        f"key='{work.name}.{{customer}}.{{order}}'\npartitions=6"
    )

    with pytest.raises(NotPossible, match="order is kept per key"):
        await renew(work.client, description, work.name)


async def test_a_group_without_a_stream_of_its_own_is_refused(client: Client, name: str) -> None:
    description = parse_description(
        f"[topic.{name}]\nsubject='{name}.{{partition}}.{{k}}'\npartitions=2\n[group.{name}]"
    )

    with pytest.raises(NotPossible, match="no stream of its own"):
        await renew(client, description, name)
