"""The storm's second judge: are the records of a topic in their streams once and in order?

It shares no code with the bridge or with `verify`. Kafka is read by confluent-kafka's own consumer,
the streams by nats-py, and it looks only at what the storm wrote: record number n of partition p
has key ``k<n % 997>`` and value ``<p>:<n>``, and is to be message number n of the partition, on the
subject ``<prefix>.<p>.k<n % 997>``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import nats
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from nats.aio.client import Client
from nats.aio.msg import Msg

_BATCH = 5_000
_WAIT_S = 60.0
_POLL_S = 0.2
"""So long a client waits for a full batch, which at the end never comes."""


def key_of(number: int) -> bytes:
    """The key of a partition's record number."""
    return b"k%d" % (number % 997)


def value_of(partition: int, number: int) -> bytes:
    """The value of a partition's record number."""
    return b"%d:%d" % (partition, number)


@dataclass(slots=True)
class Judgement:
    """What was found; the first few faults in words."""

    in_kafka: int = 0
    in_nats: int = 0
    foreign: int = 0
    missing: int = 0
    doubled: int = 0
    out_of_order: int = 0
    strange: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """As many here as there, none missing, none twice, all in order."""
        faults = self.missing + self.doubled + self.out_of_order + self.strange
        return not faults and self.in_kafka == self.in_nats


def count_in_kafka(bootstrap: str, topic: str, partitions: int) -> dict[int, int]:
    """How many records each partition has, each seen to be what was written there."""
    found = dict.fromkeys(range(partitions), 0)
    for partition, message in records_in_kafka(bootstrap, topic, partitions):
        number = found[partition]
        said = (message.key(), message.value())
        assert said == (key_of(number), value_of(partition, number)), "Kafka has other records"
        found[partition] = number + 1
    return found


def records_in_kafka(
    bootstrap: str, topic: str, partitions: int, *, isolation: str = "read_committed"
) -> Iterator[tuple[int, Message]]:
    """Each record with its partition, per partition in order, up to where all have ended."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "judge",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
        }
    )
    ended: set[int] = set()
    silent = 0
    try:
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        while len(ended) < partitions:
            messages = consumer.consume(1_000, _POLL_S)
            silent = 0 if messages else silent + 1
            assert silent * _POLL_S < _WAIT_S, "Kafka fell silent"
            for message in messages:
                partition, error = message.partition(), message.error()
                assert partition is not None
                if error is None:
                    yield partition, message
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add(partition)
    finally:
        consumer.close()


async def judge(
    urls: Sequence[str], streams: Sequence[str], prefix: str, in_kafka: dict[int, int]
) -> Judgement:
    """Read the streams, message by message, and compare with what Kafka has."""
    found = Judgement(in_kafka=sum(in_kafka.values()))
    seen = {partition: bytearray(count) for partition, count in in_kafka.items()}
    highest = dict.fromkeys(in_kafka, -1)
    client = await nats.connect(list(urls))
    try:
        for stream in streams:
            async for messages in messages_of(client, stream):
                for message in messages:
                    _look(message, prefix, found, seen, highest)
    finally:
        await client.close()
    for partition, marks in seen.items():
        lost = marks.count(0)
        found.missing += lost
        if lost:
            _say(found, f"partition {partition} lacks {lost}, first number {marks.index(0)}")
    return found


def _look(
    message: Msg,
    prefix: str,
    found: Judgement,
    seen: dict[int, bytearray],
    highest: dict[int, int],
) -> None:
    partition_text, _, number_text = message.data.partition(b":")
    if not (partition_text.isdigit() and number_text.isdigit()):
        found.foreign += 1
        return
    partition, number = int(partition_text), int(number_text)
    found.in_nats += 1
    if message.subject != f"{prefix}.{partition}.{key_of(number).decode()}":
        found.strange += 1
        _say(found, f"{message.data!r} is on {message.subject}")
    marks = seen[partition]
    if number >= len(marks):
        found.strange += 1
        _say(found, f"Kafka has no {message.data!r}")
    elif marks[number]:
        found.doubled += 1
        _say(found, f"{message.data!r} comes again")
    else:
        marks[number] = 1
        if number < highest[partition]:
            found.out_of_order += 1
            _say(found, f"{message.data!r} comes after number {highest[partition]}")
    highest[partition] = max(highest[partition], number)


async def messages_of(client: Client, stream: str) -> AsyncIterator[list[Msg]]:
    """All messages of a stream in its order, by a consumer without acknowledgements."""
    config = {"ack_policy": "none", "mem_storage": True, "inactive_threshold": 60_000_000_000}
    body = json.dumps({"stream_name": stream, "config": config}).encode()
    answer = json.loads((await client.request(f"$JS.API.CONSUMER.CREATE.{stream}", body)).data)
    name, left = answer["name"], answer["num_pending"]
    inbox = client.new_inbox()
    came: list[Msg] = []
    all_came = asyncio.Event()

    async def take(message: Msg) -> None:
        came.append(message)
        if len(came) == min(_BATCH, left):
            all_came.set()

    subscription = await client.subscribe(
        inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    while left:
        all_came.clear()
        await client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}",
            b'{"batch":%d}' % min(_BATCH, left),
            reply=inbox,
        )
        async with asyncio.timeout(_WAIT_S):
            await all_came.wait()
        yield came
        left -= len(came)
        came.clear()
    await subscription.unsubscribe()


def _say(found: Judgement, text: str) -> None:
    if len(found.examples) < 5:
        found.examples.append(text)
