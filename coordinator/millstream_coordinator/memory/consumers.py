"""What members ask of streams in memory: consumers found, made and deleted, pulls, acks."""

from collections.abc import Callable, Mapping

from .. import naming
from ..model import Retention
from ..ports import (
    Ack,
    Acks,
    ClosePull,
    Command,
    ConsumerNames,
    ConsumerRead,
    CreateConsumer,
    DeleteConsumer,
    Done,
    DoubleAck,
    Failed,
    Failure,
    ListConsumers,
    OpenPull,
    Overlap,
    PullEnded,
    ReadConsumer,
    Reply,
)
from .client import MemoryClient, Observer
from .stream import MemoryConsumer, MemoryStream, StandingPull


class MemoryConsumers:
    """The consumers of every stream, in the members' hands."""

    def __init__(
        self,
        streams: Mapping[str, MemoryStream],
        observer: Observer,
        now: Callable[[], float],
    ) -> None:
        """``streams``: by their names, as they come and go."""
        self._streams = streams
        self._observer = observer
        self._now = now

    def may_overlap(self, client: MemoryClient) -> bool:
        """Whether two consumers of the client's stream may read the same messages."""
        stream = (client.settings.config.stream or "").replace("{partition}", "0")
        return stream in self._streams and self._streams[stream].retention is Retention.LIMITS

    def drop_pulls(self, client: MemoryClient, number: int | None = None) -> None:
        """Forget a client's pull of a number; None: every one."""
        for stream in self._streams.values():
            for consumer in stream.consumers.values():
                pull = consumer.pull
                if pull is not None and pull.owner is client and number in (None, pull.number):
                    consumer.pull = None

    def execute(self, client: MemoryClient, command: Command) -> None:
        """Carry out a command on the stream that it is about."""
        if isinstance(command, ListConsumers):
            self._list_consumers(client, command)
            return
        if isinstance(command, ClosePull):
            self.drop_pulls(client, command.pull)
            return
        if isinstance(command, Acks):
            for message in command.messages:
                self.execute(client, Ack(message=message))
            return
        stream = self._stream_of(client, command)
        if stream is None:
            self._refuse(client, command)
            return
        match command:
            case ReadConsumer():
                client.send(_books(stream.consumers.get(command.name), client, command.id))
            case CreateConsumer():
                client.send(self._create(client, stream, command))
            case DeleteConsumer():
                stream.remove_consumer(command.name, "409 Consumer Deleted")
                client.send(Done(id=command.id))
            case OpenPull():
                self._open_pull(client, stream, command)
            case Ack() | DoubleAck():
                self._ack(client, stream, command)
            case _:
                raise AssertionError(f"no command of a port: {command}")

    def _stream_of(self, client: MemoryClient, command: Command) -> MemoryStream | None:
        """The stream a command is about; with ``{partition}`` in its name there are many."""
        config = client.settings.config
        if config.stream is None:
            return None
        number = getattr(command, "partition", None)
        name = getattr(command, "name", None)
        if isinstance(command, Ack | DoubleAck):
            number = command.message.partition
        elif number is None and name is not None:
            found = naming.parse_consumer(client.settings.group, name)
            number = None if found is None else found.partition
        return self._streams.get(config.stream.replace("{partition}", str(number)))

    def _list_consumers(self, client: MemoryClient, command: ListConsumers) -> None:
        pattern = client.settings.config.stream or ""
        numbers = range(client.settings.config.partitions if "{partition}" in pattern else 1)
        names: list[str] = []
        for number in numbers:
            stream = self._streams.get(pattern.replace("{partition}", str(number)))
            if stream is None:
                self._refuse(client, command)
                return
            names += stream.consumers
        client.send(ConsumerNames(id=command.id, names=tuple(names)))

    def _refuse(self, client: MemoryClient, command: Command) -> None:
        """Answer a command for a stream that is not there."""
        if isinstance(command, OpenPull):
            client.send(PullEnded(pull=command.pull, reason="503"))
        elif isinstance(command, DoubleAck):
            client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))
        elif not isinstance(command, Ack):
            id_: int = getattr(command, "id")  # noqa: B009 - all the others have one
            client.send(Failed(id=id_, reason=Failure.STREAM_GONE, detail="stream not found"))

    def _create(self, client: MemoryClient, stream: MemoryStream, command: CreateConsumer) -> Reply:
        assert client.rule is not None
        there = stream.consumers.get(command.name)
        if there is not None:
            # The same one again is no error, as seen on 2.15.1 with the action "create".
            start_seq = command.start_seq if stream.retention is Retention.LIMITS else 0
            if (there.start_seq, there.level) == (start_seq, command.level):
                return Done(id=command.id)
            return Failed(id=command.id, reason=Failure.REFUSED, detail="consumer already exists")
        if stream.overlaps(client.rule, command.partition, command.level):
            return Overlap(id=command.id)
        settings = client.settings
        stream.add_consumer(
            command.name,
            command.partition,
            client.rule,
            level=command.level,
            start_seq=command.start_seq,
            max_ack_pending=settings.limits.max_ack_pending,
            ack_wait_s=settings.timing.ack_wait_s,
        )
        self._observer.made(client, command.name)
        return Done(id=command.id)

    def _open_pull(self, client: MemoryClient, stream: MemoryStream, command: OpenPull) -> None:
        consumer = stream.consumers.get(command.name)
        if consumer is None:
            client.send(PullEnded(pull=command.pull, reason="503"))
            return
        self._observer.pulls(client, command.name)
        consumer.pull = StandingPull(client, command.pull, command.epoch, client.send)
        stream.deliver(consumer, self._now())

    def _ack(self, client: MemoryClient, stream: MemoryStream, command: Ack | DoubleAck) -> None:
        name, _, seq = command.message.reply.partition(" ")
        consumer = stream.consumers.get(name)
        if isinstance(command, Ack) and command.is_progress:
            if consumer is not None:
                stream.progress(consumer, int(seq), self._now())
            return
        if consumer is not None and stream.ack(consumer, int(seq), self._now()):
            self._observer.acked(consumer.partition, int(seq))
        if isinstance(command, DoubleAck):
            is_there = consumer is not None
            client.send(
                Done(id=command.id)
                if is_there
                else Failed(id=command.id, reason=Failure.NO_RESPONDERS)
            )


def _books(consumer: MemoryConsumer | None, client: MemoryClient, id_: int) -> ConsumerRead:
    if consumer is None:
        return ConsumerRead(id=id_, is_there=False)
    return ConsumerRead(
        id=id_,
        is_there=True,
        ack_floor=consumer.ack_floor,
        delivered=consumer.delivered,
        num_ack_pending=len(consumer.pending),
        level=consumer.level or client.settings.config.partitions,
    )
