"""What a chaos group works on: one of the layouts of a topic, made as users make it.

============== ===================================================================================
``token``      one limits stream, whose subjects carry the partition's token and a finer one
``workqueue``  the same as a work queue
``streams``    a stream per partition; cannot be resized
``sourced``    a work queue of the group's own, sourced from a stream that knows no partitions
============== ===================================================================================
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from nats.aio.client import Client

from millstream_coordinator import Message
from millstream_coordinator.partitioning import layout as layouts
from millstream_coordinator.partitioning.description import parse_description
from millstream_coordinator.partitioning.partition import nats
from millstream_coordinator.partitioning.topic import Description
from millstream_coordinator.provisioning.create import apply
from millstream_coordinator.provisioning.plan import plan
from tests.chaos.group_cluster import STREAM

SOURCE = "Nats-Stream-Source"


class Layout(StrEnum):
    """How a topic is laid out, and what becomes of what was handled."""

    TOKEN = "token"
    WORK_QUEUE = "workqueue"
    STREAMS = "streams"
    SOURCED = "sourced"


_TOPICS = {
    Layout.TOKEN: 'subject = "flights.{{partition}}.{{partition:{finer}}}.{{key}}"',
    Layout.WORK_QUEUE: 'subject = "flights.{{partition}}.{{partition:{finer}}}.{{key}}"\n'
    'retention = "workqueue"',
    Layout.STREAMS: 'layout = "streams"\nsubject = "flights.{{partition}}.{{key}}"',
    Layout.SOURCED: 'layout = "sourced"\nsubject = "flights.{{key}}"',
}


@dataclass(frozen=True)
class Ground:
    """``num_keys`` is a multiple of ``partitions``: each has as many."""

    layout: Layout
    group: str
    partitions: int
    num_keys: int
    replicas: int = 1

    @cached_property
    def _description(self) -> Description:
        topic = _TOPICS[self.layout].format(finer=2 * self.partitions)
        partitions = f"partitions = {self.partitions}"
        if self.layout is Layout.SOURCED:
            of_topic, of_group = "", f"{partitions}\nlevels = [{2 * self.partitions}]"
        else:
            of_topic, of_group = f'{partitions}\nwritten_by = "producers"', ""
        return parse_description(
            f"[topic.{STREAM}]\n{topic}\n{of_topic}\nreplicas = {self.replicas}\n"
            f"[group.{self.group}]\n{of_group}\n"
        )

    @property
    def rule(self) -> str:
        """The workers' key rule."""
        return self._description.groups[self.group].rule.text

    @property
    def stream(self) -> str:
        """What the workers read; ``{partition}`` stands for a partition's number."""
        topic = self._description.topics[STREAM]
        return layouts.group_stream(topic, self._description.groups[self.group])

    @property
    def read_streams(self) -> list[str]:
        """Names of the streams the workers read."""
        numbers = range(self.partitions) if self.layout is Layout.STREAMS else (0,)
        return [self.stream.replace("{partition}", str(number)) for number in numbers]

    @property
    def streams(self) -> list[str]:
        """Names of all streams a message passes through."""
        return [*([STREAM] if self.layout is Layout.SOURCED else []), *self.read_streams]

    @cached_property
    def keys(self) -> list[list[str]]:
        """The keys of each partition."""
        keys: list[list[str]] = [[] for _ in range(self.partitions)]
        number = 0
        while any(len(some) < self.num_keys // self.partitions for some in keys):
            key = f"k{number}"
            some = keys[self._partition_of(key)]
            if len(some) < self.num_keys // self.partitions:
                some.append(key)
            number += 1
        return keys

    def _partition_of(self, key: str) -> int:
        if self.layout is Layout.SOURCED:
            return nats(key.encode(), self.partitions)  # the server's own, in the transform
        return int(key[1:]) % self.partitions

    def subject(self, key: str) -> str:
        """Where a message of the key is published."""
        partition = self._partition_of(key)
        match self.layout:
            case Layout.SOURCED:
                return f"flights.{key}"
            case Layout.STREAMS:
                return f"flights.{partition}.{key}"
            case _:
                return f"flights.{partition}.{int(key[1:]) % (2 * self.partitions)}.{key}"

    async def make(self, client: Client) -> None:
        """Make the streams and the group's bucket, as ``millstream coordinator create`` does."""
        await apply(client, await plan(client, self._description))


def published_seq(message: Message) -> int:
    """The sequence that the producer was told: of the stream the message was published into."""
    source = message.headers.get(SOURCE)
    return message.seq if source is None else int(source.split()[1])
