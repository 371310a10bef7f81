"""A group as its members would have left it in the bucket, made by hand: for tests of operation."""

from collections.abc import Iterable, Mapping

from nats.aio.client import Client
from nats.js.api import KeyValueConfig, RetentionPolicy, StreamConfig

from millstream_coordinator import naming
from millstream_coordinator.jetstream.letters import keep_headers
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    LetterReason,
    MemberRecord,
    PartitionRecord,
    PartitionState,
    Record,
    decode,
    encode,
)
from millstream_coordinator.operation.target import Target


async def make_stream(
    client: Client,
    name: str,
    subjects: Iterable[str] = (),
    retention: RetentionPolicy = RetentionPolicy.LIMITS,
) -> None:
    """A stream ``<name>.>`` holding one message for each subject."""
    jetstream = client.jetstream()
    await jetstream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], retention=retention))
    for subject in subjects:
        await jetstream.publish(f"{name}.{subject}", b"")


async def make_group(
    client: Client,
    name: str,
    records: Mapping[str, Record] = {},
    *,
    config: ConfigRecord | None = None,
    partitions: int = 1,
) -> Target:
    """A group's bucket with the records given; it reads the stream of its own name."""
    bucket = await client.jetstream().create_key_value(KeyValueConfig(bucket=naming.bucket(name)))
    config = config or ConfigRecord(
        partitions=partitions, stream=name, filter=f"{name}.{{partition}}.*"
    )
    for key, record in {naming.CONFIG_KEY: config, **records}.items():
        await bucket.put(key, encode(record))
    return Target(client, name)


def served(
    owners: Iterable[str], *, capacity: int = 1, epoch: int = 1, floor: int = 0
) -> dict[str, Record]:
    """Records of members that own one partition each, in order."""
    records: dict[str, Record] = {}
    for number, owner in enumerate(owners):
        records[naming.member_key(owner)] = MemberRecord(instance=f"{owner}-1", capacity=capacity)
        records[naming.partition_key(number)] = PartitionRecord(
            epoch=epoch,
            owner=owner,
            instance=f"{owner}-1",
            floor=floor,
            state=PartitionState.OWNED,
            done_from=owner,
        )
    return records


async def make_letters(
    client: Client,
    name: str,
    *keys: str,
    partition: int = 0,
    reason: LetterReason = LetterReason.DEAD_LETTER,
    subject: str = "",
    own: Mapping[str, str] = {},
) -> None:
    """One letter for each key token, as an owner stores them; message sequences are 11, 12, …

    ``own``: headers of the messages.
    """
    jetstream = client.jetstream()
    stream = naming.dead_letter_stream(name)
    await jetstream.add_stream(
        StreamConfig(name=stream, subjects=[naming.dead_letter(name, "*", ">")])
    )
    for number, key in enumerate(keys, 11):
        headers = {
            naming.LETTER_SUBJECT: subject or f"{name}.{partition}.{key}",
            naming.LETTER_SEQ: str(number),
            naming.LETTER_EPOCH: "3",
            naming.LETTER_ERROR: "ValueError: odd",
            naming.LETTER_ATTEMPTS: "5",
            naming.LETTER_REASON: reason,
            naming.LETTER_TIME: "2000",
            naming.LETTER_STORED: "1000",
            **keep_headers({"Colour": "red", "Nats-Msg-Id": f"m{number}", **own}),
        }
        body = f"body {number}".encode()
        await jetstream.publish(naming.dead_letter(name, partition, key), body, headers=headers)


async def control(target: Target) -> ControlRecord:
    """``ctl`` as it is stored; the empty one when it is not there."""
    return (await target.view()).control


async def revision(target: Target, key: str) -> int:
    """Of a key; 0 when it is not there."""
    return (await target.api.read(target.bucket, key)).revision


async def partition(target: Target, number: int) -> PartitionRecord:
    """``part.<n>`` as it is stored."""
    entry = await target.api.read(target.bucket, naming.partition_key(number))
    assert entry.value is not None
    return decode(PartitionRecord, entry.value)
