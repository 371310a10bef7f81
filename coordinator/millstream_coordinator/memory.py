"""A group without a server: the port in this process, for users' tests and for the simulation.

`MemoryServer` is what a group needs of a NATS server, as plain data with a clock that its user
moves: buckets with revisions and compare-and-set, streams, consumers with an ack floor, heartbeats
and probes. It answers the same commands with the same replies as ``jetstream.py``; what the server
pushes (a changed key, a message, a heartbeat) goes to the client's ``send``.

    server = MemoryServer()
    server.add_stream("FLIGHTS")
    server.publish("FLIGHTS", "flights.3.N14228", b"…")
    group = Group(server, stream="FLIGHTS", name="delays", partitions=10)

How far it goes: one node, pull consumers, no subject transforms, no retention but limits and
work-queue. Redelivery after ``ack_wait`` is not modelled by time; `MemoryServer.redeliver` does it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import naming
from .errors import StreamMissing
from .model import NO_HEADERS, MemberSettings, Message, Retention
from .partitioning.key import KeyRule
from .ports import (
    Ack,
    Alive,
    Beat,
    BucketGone,
    ClosePull,
    Command,
    Conflict,
    ConsumerNames,
    ConsumerRead,
    CreateConsumer,
    DeleteConsumer,
    DeleteKey,
    Delivered,
    Done,
    DoubleAck,
    Failed,
    Failure,
    Happening,
    Heard,
    KeyChanged,
    KeyRead,
    ListConsumers,
    Listen,
    Listener,
    OpenPull,
    Overlap,
    Prepare,
    Prepared,
    Probe,
    PullEnded,
    PullIdle,
    ReadConsumer,
    ReadKey,
    Reply,
    Spawn,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)

Send = Callable[[Happening | Reply], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    timestamp_ns: int


@dataclass(slots=True)
class MemoryConsumer:
    """A pull consumer: explicit ack, one filter."""

    name: str
    partition: int
    rule: KeyRule
    max_ack_pending: int
    next_place: int
    """Index into the stream's messages of what comes next."""
    floor: int
    """Where it started, or below what is not acked."""
    delivered: int = 0
    delivered_seq: int = 0
    pending: dict[int, int] = field(default_factory=dict)
    """Delivered and not acked: stream sequence → consumer sequence."""
    pull: "MemoryClient | None" = None
    pull_id: int = 0
    pull_epoch: int = 0

    @property
    def ack_floor(self) -> int:
        """Everything it delivers up to this stream sequence is acked."""
        return min(self.pending) - 1 if self.pending else max(self.floor, self.delivered_seq)


@dataclass(slots=True)
class MemoryStream:
    """Messages in order; on a work-queue stream an ack removes one."""

    retention: Retention = Retention.LIMITS
    messages: list[Stored] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    consumers: dict[str, MemoryConsumer] = field(default_factory=dict)


@dataclass(slots=True)
class _Bucket:
    revision: int = 0
    values: dict[str, tuple[bytes | None, int, float | None]] = field(default_factory=dict)
    """Key → value (None: deleted), revision, when it runs out."""


class Observer:
    """Sees what the server does; the simulation's checkers override it."""

    def wrote(self, client: "MemoryClient", key: str, value: bytes | None) -> None:
        """A write took place."""

    def read(self, client: "MemoryClient", key: str, value: bytes | None) -> None:
        """A key was read."""

    def acked(self, seq: int) -> None:
        """A message that was pending is acked."""


class MemoryServer:
    """Everything the members of groups share."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.now = 0.0
        self.streams: dict[str, MemoryStream] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._clients: dict[str, MemoryClient] = {}
        self._observer = observer or Observer()

    def port(self, settings: MemberSettings, rule: KeyRule | None) -> "MemoryPort":
        """Make a member's port (what `Group` asks its connection for)."""
        return MemoryPort(self, settings, rule)

    def add_stream(self, name: str, retention: Retention = Retention.LIMITS) -> MemoryStream:
        """Make a stream."""
        return self.streams.setdefault(name, MemoryStream(retention))

    def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> int:
        """Store a message and deliver it where it is waited for; returns its sequence."""
        one = self.streams[stream]
        seq = len(one.messages) + 1
        timestamp_ns = int(self.now * 1e9)
        one.messages.append(Stored(seq, subject, data, headers, timestamp_ns))
        for consumer in one.consumers.values():
            self._deliver(one, consumer)
        return seq

    def delete_bucket(self, group: str) -> None:
        """Lose a group's bucket, as an operator's mistake would."""
        if self._buckets.pop(naming.bucket(group), None) is not None:
            for client in list(self._clients.values()):
                if client.settings.group == group and client.is_watching:
                    client.is_watching = False
                    client.send(BucketGone())

    def value(self, group: str, key: str) -> bytes | None:
        """Return a key's value as the server has it."""
        bucket = self._buckets.get(naming.bucket(group))
        found = bucket.values.get(key) if bucket is not None else None
        return found[0] if found is not None else None

    def touch(self, group: str, key: str) -> None:
        """Write a key's own value again: everybody's revision of it is old now."""
        bucket = self._buckets.get(naming.bucket(group))
        found = bucket.values.get(key) if bucket is not None else None
        if bucket is not None and found is not None and found[0] is not None:
            self._put(group, bucket, key, found[0], None)

    def tick(self) -> None:
        """Let run out what has a time to live, and send idle heartbeats to standing pulls."""
        for name, bucket in self._buckets.items():
            group = name.removeprefix("MILLSTREAM_")
            for key, (value, _, ends_at) in list(bucket.values.items()):
                if value is not None and ends_at is not None and self.now >= ends_at:
                    self._put(group, bucket, key, None, None)
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                if consumer.pull is not None:
                    consumer.pull.send(
                        PullIdle(pull=consumer.pull_id, consumer_seq=consumer.delivered)
                    )

    def redeliver(self, stream: str, name: str) -> None:
        """Deliver again what a consumer has pending, as after ``ack_wait``."""
        one = self.streams[stream]
        consumer = one.consumers[name]
        for seq in sorted(consumer.pending):
            if consumer.pull is not None:
                self._send_message(consumer, one.messages[seq - 1], num_delivered=2)

    # ---- clients ----

    def attach(self, client: "MemoryClient") -> None:
        """Take a client in; it answers probes from now on."""
        self._clients[client.settings.instance] = client

    def detach(self, client: "MemoryClient") -> None:
        """Drop a client with everything it subscribed to."""
        self._clients.pop(client.settings.instance, None)
        client.is_watching = False
        client.hears = None
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                if consumer.pull is client:
                    consumer.pull = None

    def execute(self, client: "MemoryClient", command: Command) -> None:
        """Carry out a command of a client that is attached."""
        match command:
            case ReadKey() | WriteKey() | DeleteKey() | Prepare() | Watch():
                self._execute_on_bucket(client, command)
            case Beat():
                self._beat(client, command)
            case Listen():
                client.hears = "*" if command.member is None else command.member
            case Probe():
                self._probe(client, command)
            case _:
                self._execute_on_stream(client, command)

    def _beat(self, client: "MemoryClient", command: Beat) -> None:
        me = client.settings
        heard = Heard(member=me.member, instance=me.instance, sent_at=command.sent_at)
        for other in list(self._clients.values()):
            if other.settings.group != me.group:
                continue
            if other is client or other.hears in ("*", me.member):
                other.send(heard)

    def _probe(self, client: "MemoryClient", command: Probe) -> None:
        for other in list(self._clients.values()):
            is_meant = other.settings.member == command.member
            if is_meant and other.settings.group == client.settings.group:
                other.probed(client, command.id)
                return
        client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))

    # ---- buckets ----

    def _execute_on_bucket(
        self, client: "MemoryClient", command: ReadKey | WriteKey | DeleteKey | Prepare | Watch
    ) -> None:
        name = naming.bucket(client.settings.group)
        if isinstance(command, Prepare):
            self._buckets.setdefault(name, _Bucket())
            client.send(Prepared(id=command.id))
            return
        bucket = self._buckets.get(name)
        if bucket is None:
            if isinstance(command, Watch):
                client.send(BucketGone())
            else:
                client.send(Failed(id=command.id, reason=Failure.BUCKET_GONE))
            return
        match command:
            case Watch():
                client.is_watching = True
                for key, (value, revision, _) in list(bucket.values.items()):
                    if not key.startswith(naming.DONE_PREFIX):
                        client.send(KeyChanged(key=key, value=value, revision=revision))
                client.send(WatchCaughtUp())
            case ReadKey():
                value, revision, _ = bucket.values.get(command.key, (None, 0, None))
                self._observer.read(client, command.key, value)
                client.send(KeyRead(id=command.id, value=value, revision=revision))
            case WriteKey() | DeleteKey():
                self._write(client, bucket, command)

    def _write(
        self, client: "MemoryClient", bucket: _Bucket, command: WriteKey | DeleteKey
    ) -> None:
        _, revision, _ = bucket.values.get(command.key, (None, 0, None))
        if revision != command.revision:
            client.send(Conflict(id=command.id))
            return
        value = command.value if isinstance(command, WriteKey) else None
        ttl_s = command.ttl_s if isinstance(command, WriteKey) else None
        self._observer.wrote(client, command.key, value)
        written = self._put(client.settings.group, bucket, command.key, value, ttl_s)
        client.send(Written(id=command.id, revision=written))

    def _put(
        self, group: str, bucket: _Bucket, key: str, value: bytes | None, ttl_s: float | None
    ) -> int:
        bucket.revision += 1
        ends_at = None if ttl_s is None else self.now + ttl_s
        bucket.values[key] = (value, bucket.revision, ends_at)
        if not key.startswith(naming.DONE_PREFIX):
            changed = KeyChanged(key=key, value=value, revision=bucket.revision)
            for client in list(self._clients.values()):
                if client.is_watching and client.settings.group == group:
                    client.send(changed)
        return bucket.revision

    # ---- streams ----

    def _execute_on_stream(self, client: "MemoryClient", command: Command) -> None:
        stream = self.streams[client.settings.config.stream or ""]
        match command:
            case ListConsumers():
                client.send(ConsumerNames(id=command.id, names=tuple(stream.consumers)))
            case ReadConsumer():
                client.send(_books(stream.consumers.get(command.name), command.id))
            case CreateConsumer():
                client.send(self._create(client, stream, command))
            case DeleteConsumer():
                consumer = stream.consumers.pop(command.name, None)
                if consumer is not None and consumer.pull is not None:
                    consumer.pull.send(
                        PullEnded(pull=consumer.pull_id, reason="409 Consumer Deleted")
                    )
                client.send(Done(id=command.id))
            case _:
                self._execute_on_consumer(client, stream, command)

    def _execute_on_consumer(
        self, client: "MemoryClient", stream: MemoryStream, command: Command
    ) -> None:
        match command:
            case OpenPull():
                self._open_pull(client, stream, command)
            case ClosePull():
                for consumer in stream.consumers.values():
                    if consumer.pull is client and consumer.pull_id == command.pull:
                        consumer.pull = None
            case Ack():
                if not command.is_progress:
                    self._ack(stream, command.message)
            case DoubleAck():
                if self._ack(stream, command.message):
                    client.send(Done(id=command.id))
                else:
                    client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))
            case _:
                raise AssertionError(f"no command of a port: {command}")

    def _create(
        self, client: "MemoryClient", stream: MemoryStream, command: CreateConsumer
    ) -> Reply:
        assert client.rule is not None
        if command.name in stream.consumers:
            return Failed(id=command.id, reason=Failure.REFUSED, detail="consumer exists")
        is_work_queue = stream.retention is Retention.WORK_QUEUE
        if is_work_queue and any(
            one.partition == command.partition for one in stream.consumers.values()
        ):
            return Overlap(id=command.id)
        stream.consumers[command.name] = MemoryConsumer(
            name=command.name,
            partition=command.partition,
            rule=client.rule,
            max_ack_pending=client.settings.limits.max_ack_pending,
            next_place=0 if is_work_queue else command.start_seq - 1,
            floor=0 if is_work_queue else command.start_seq - 1,
        )
        return Done(id=command.id)

    def _open_pull(self, client: "MemoryClient", stream: MemoryStream, command: OpenPull) -> None:
        consumer = stream.consumers.get(command.name)
        if consumer is None:
            client.send(PullEnded(pull=command.pull, reason="503"))
            return
        consumer.pull = client
        consumer.pull_id = command.pull
        consumer.pull_epoch = command.epoch
        self._deliver(stream, consumer)

    def _deliver(self, stream: MemoryStream, consumer: MemoryConsumer) -> None:
        messages = stream.messages
        while (
            consumer.pull is not None
            and len(consumer.pending) < consumer.max_ack_pending
            and consumer.next_place < len(messages)
        ):
            stored = messages[consumer.next_place]
            consumer.next_place += 1
            if stored.seq in stream.removed:
                continue
            if consumer.rule.partition_of(stored.subject) == consumer.partition:
                self._send_message(consumer, stored, num_delivered=1)

    def _send_message(
        self, consumer: MemoryConsumer, stored: Stored, *, num_delivered: int
    ) -> None:
        assert consumer.pull is not None
        consumer.delivered += 1
        consumer.delivered_seq = max(consumer.delivered_seq, stored.seq)
        consumer.pending[stored.seq] = consumer.delivered
        message = Message(
            subject=stored.subject,
            data=stored.data,
            headers=stored.headers,
            key=consumer.rule.key_of(stored.subject, stored.headers, stored.data),
            partition=consumer.partition,
            seq=stored.seq,
            epoch=consumer.pull_epoch,
            num_delivered=num_delivered,
            timestamp_ns=stored.timestamp_ns,
            reply=f"{consumer.name} {stored.seq}",
            consumer_seq=consumer.delivered,
        )
        consumer.pull.send(Delivered(consumer.pull_id, (message,)))

    def _ack(self, stream: MemoryStream, message: Message) -> bool:
        name, _, seq = message.reply.partition(" ")
        consumer = stream.consumers.get(name)
        if consumer is None:
            return False
        if consumer.pending.pop(int(seq), None) is not None:
            self._observer.acked(int(seq))
            if stream.retention is Retention.WORK_QUEUE:
                stream.removed.add(int(seq))
            self._deliver(stream, consumer)
        return True


def _books(consumer: MemoryConsumer | None, id_: int) -> ConsumerRead:
    if consumer is None:
        return ConsumerRead(id=id_, is_there=False)
    return ConsumerRead(
        id=id_,
        is_there=True,
        ack_floor=consumer.ack_floor,
        delivered=consumer.delivered,
        num_ack_pending=len(consumer.pending),
    )


class MemoryClient:
    """One member's connection: ``send`` takes what the server has for it."""

    def __init__(self, settings: MemberSettings, rule: KeyRule | None, send: Send) -> None:
        self.settings = settings
        self.rule = rule
        self.send = send
        self.is_watching = False
        self.hears: str | None = None
        """Whose heartbeats: a member, ``*`` for everybody's, None for nobody's but its own."""

    def probed(self, asker: "MemoryClient", id_: int) -> None:
        """Answer a probe at once; a simulated member that is paused overrides this."""
        asker.send(Alive(id=id_, instance=self.settings.instance))


class MemoryPort:
    """A `Port` on a `MemoryServer`, on the running loop and the machine's clock."""

    def __init__(
        self, server: MemoryServer, settings: MemberSettings, rule: KeyRule | None
    ) -> None:
        self._server = server
        self._client = MemoryClient(settings, rule, self._send)
        self._is_open = False

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Attach; raises StreamMissing."""
        stream = self._client.settings.config.stream
        if stream is not None and stream not in self._server.streams:
            raise StreamMissing(stream)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._server.attach(self._client)
        spawn(self._keep_time(), "clock")

    def execute(self, command: Command) -> None:
        """Carry the command out with the loop's next round."""
        self._loop.call_soon(self._execute, command)

    async def close(self) -> None:
        """Detach."""
        self._is_open = False
        self._server.detach(self._client)

    def _execute(self, command: Command) -> None:
        if self._is_open:
            self._server.now = time.monotonic()
            self._server.execute(self._client, command)

    def _send(self, event: Happening | Reply) -> None:
        self._loop.call_soon(self._hand_over, event)

    def _hand_over(self, event: Happening | Reply) -> None:
        if self._is_open:
            self._listener(event)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self._server.now = time.monotonic()
            self._server.tick()
