"""A group without a server: the port in this process, for users' tests and for the simulation.

`MemoryServer` is what a group needs of a NATS server, as plain data: buckets with revisions and
compare-and-set, streams, consumers with an ack floor, heartbeats and probes. It answers the same
commands with the same replies as a server does over ``jetstream/`` (one set of scenarios runs on
both: ``tests/coordinator/test_port_conformance.py``); what the server pushes (a changed key, a
message, a heartbeat) goes to the client's ``send``.

A whole group in a test, in virtual time, without a server (`run_virtual` is ``asyncio.run`` whose
clock jumps):

    from millstream_coordinator import Group, MemoryServer, Message, run_virtual

    def test_every_leg_is_followed() -> None:
        async def main() -> None:
            server = MemoryServer(seed=7)
            server.add_stream("FLIGHTS")
            for leg in range(20):
                server.publish("FLIGHTS", f"flights.{leg % 4}.N{leg % 4}", b"%d" % leg)
            legs: list[int] = []

            async def follow(message: Message) -> None:
                await asyncio.sleep(1)  # a second of virtual time
                legs.append(int(message.data))

            async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
                members = []
                for name in ("a", "b"):
                    group = Group(server, stream="FLIGHTS", name="g", partitions=4, member=name)
                    group.handler(key="flights.*.{key}")(follow)
                    members.append((group, tasks.create_task(group.run(handle_signals=False))))
                await server.until(lambda: len(legs) == 10)
                members[0][1].cancel()  # a crash; `stop` would be a farewell
                await server.until(lambda: len(set(legs)) == 20)
                await members[1][0].stop()

        run_virtual(main())

Without ``seed`` nothing takes time. With one, everything under way between a member and the server
takes a moment drawn from it: another seed is another interleaving, the same seed the same run, down
to every event. What can be done to a group: `redeliver`, `delete_bucket`, `delete_consumer`,
`purge`, `disconnect` a member and let it come back, cancel the task of a member (a crash).

How far it goes: one node, pull consumers, no subject transforms, no retention but limits and
work-queue, and limits only by `purge`.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from . import naming
from .errors import StreamMissing
from .memory_letters import MemoryLetter, MemoryLetters
from .memory_stream import MemoryConsumer, MemoryStream, StandingPull
from .model import NO_HEADERS, MemberSettings, Retention
from .partitioning.key import KeyRule
from .ports import (
    Ack,
    Acks,
    Alive,
    Announce,
    Announced,
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
    DeleteLetter,
    Disconnected,
    Done,
    DoubleAck,
    Failed,
    Failure,
    FindParked,
    Happening,
    Heard,
    KeyChanged,
    KeyNames,
    KeyRead,
    ListConsumers,
    Listen,
    Listener,
    ListKeys,
    OpenPull,
    Overlap,
    Prepare,
    Prepared,
    Probe,
    PullEnded,
    ReadConsumer,
    ReadKey,
    ReadLetters,
    Reconnected,
    Reply,
    Spawn,
    StoreLetter,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)
from .virtual import VirtualLoop

Send = Callable[[Happening | Reply], None]

WATCH_SILENCE_S = 3.0
"""A watch on a bucket that is gone falls silent; so long it takes to look."""
TICK_S = 1.0
"""As often as a server sends idle heartbeats."""
POLL_S = 0.01
POLL_MAX_S = 0.25
DELAY_S = 0.002
"""Mean of what takes a moment, with a ``seed``."""


@dataclass(slots=True)
class _Bucket:
    begins_at: int
    revision: int
    values: dict[str, tuple[bytes | None, int, float | None]] = field(default_factory=dict)
    """Key → value (None: deleted), revision, when it runs out."""


class Observer:
    """Sees what the server does; the simulation's checkers override it."""

    def wrote(self, client: "MemoryClient", key: str, value: bytes | None) -> None:
        """A write took place."""

    def read(self, client: "MemoryClient", key: str, value: bytes | None) -> None:
        """A key was read."""

    def acked(self, partition: int, seq: int) -> None:
        """A message that was pending is acked."""

    def made(self, client: "MemoryClient", name: str) -> None:
        """A consumer was made."""

    def pulls(self, client: "MemoryClient", name: str) -> None:
        """A pull was opened on a consumer that is there."""

    def stored(
        self,
        client: "MemoryClient",
        command: StoreLetter,
        reply: Reply,
        letters: Sequence[MemoryLetter],
    ) -> None:
        """A letter was to be stored; all that are there now."""

    def announced(self, client: "MemoryClient", value: bytes) -> None:
        """A member told the world."""


class MemoryServer:
    """Everything the members of groups share. Not thread-safe."""

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        seed: int | None = None,
        clock: Callable[[], float] | None = None,
        has_key_ttl: bool = True,
    ) -> None:
        """``clock``: monotonic seconds; None: the running loop's.

        ``has_key_ttl`` False: keys do not run out by themselves, as on servers before 2.11.
        """
        self.streams: dict[str, MemoryStream] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._clients: dict[str, MemoryClient] = {}
        self._observer = observer or Observer()
        self._clock = clock
        self._has_key_ttl = has_key_ttl
        self._letters: dict[str, MemoryLetters] = {}
        self._seed = seed
        self._tick_at = 0.0
        self._random = random.Random(seed or 0)  # noqa: S311 - not for secrets: to be repeated

    # ---- what `Group` asks of its connection ----

    def port(self, settings: MemberSettings, rule: KeyRule | None) -> "MemoryPort":
        """Make a member's port."""
        return MemoryPort(self, settings, rule)

    def now(self) -> float:
        """Monotonic seconds; 0 before any loop runs."""
        if self._clock is not None:
            return self._clock()
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            return 0.0

    def wall_ns(self) -> int:
        """Wall clock; in virtual time it begins in 2001."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return 0
        return loop.wall_ns() if isinstance(loop, VirtualLoop) else time.time_ns()

    def chance(self) -> float:
        """Draw from [0, 1)."""
        return self._random.random()

    def delay_s(self) -> float | None:
        """How long the next thing is under way; None: no time at all."""
        return None if self._seed is None else self._random.expovariate(1 / DELAY_S)

    # ---- what users' tests do ----

    def add_stream(self, name: str, retention: Retention = Retention.LIMITS) -> MemoryStream:
        """Make a stream."""
        return self.streams.setdefault(name, MemoryStream(retention))

    def delete_stream(self, name: str) -> None:
        """Lose a stream with its consumers. KeyError: there is none."""
        stream = self.streams.pop(name)
        for consumer in stream.consumers.values():
            consumer.end_pull("409 Consumer Deleted")

    def publish(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> int:
        """Store a message and deliver it where it is waited for; returns its sequence."""
        return self.streams[stream].add(subject, data, headers, self.now(), self.wall_ns())

    def purge(self, stream: str, below: int) -> list[int]:
        """Drop messages below a sequence, as limits do; returns the sequences that were there."""
        return self.streams[stream].purge(below, self.now())

    def redeliver(self, stream: str, name: str | None = None) -> None:
        """Deliver again what a consumer (None: every one) has pending, as after ``ack_wait``."""
        one = self.streams[stream]
        for consumer in list(one.consumers.values()):
            if name is None or consumer.name == name:
                one.redeliver(consumer, self.now(), is_forced=True)

    def delete_consumer(self, stream: str, name: str) -> None:
        """Lose a consumer, as with the only node that had it."""
        self.streams[stream].remove_consumer(name, "503")

    def delete_bucket(self, group: str) -> None:
        """Lose a group's bucket, as by an operator's mistake.

        Members notice with their next write, or when their watch was silent for a while.
        """
        gone = self._buckets.pop(naming.bucket(group), None)
        for client in self._clients.values():
            if gone is not None and client.watched is gone:
                client.silent_at = self.now() + WATCH_SILENCE_S

    def disconnect(self, member: str, duration_s: float = 0.1) -> None:
        """Cut the connections of a member of any group; they are back after ``duration_s``."""
        for client in list(self._clients.values()):
            if client.settings.member == member:
                client.cut(duration_s)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, by looking now and then; put a timeout around it."""
        pause_s = POLL_S
        while not is_so():
            await asyncio.sleep(pause_s)
            pause_s = min(POLL_MAX_S, pause_s * 1.5)

    def letters(self, group: str) -> list[MemoryLetter]:
        """Return the group's dead letters and parked messages, oldest first."""
        return self._letters_of(group).all()

    def value(self, group: str, key: str) -> bytes | None:
        """Return a key's value as the server has it."""
        bucket = self._buckets.get(naming.bucket(group))
        found = bucket.values.get(key) if bucket is not None else None
        return found[0] if found is not None else None

    def has_bucket(self, group: str) -> bool:
        """Whether the group's bucket is there."""
        return naming.bucket(group) in self._buckets

    def put(self, group: str, key: str, value: bytes | None) -> None:
        """Write a key of an existing bucket as somebody else would, whatever its revision."""
        self._put(group, self._buckets[naming.bucket(group)], key, value, None)

    def _letters_of(self, group: str) -> MemoryLetters:
        return self._letters.setdefault(group, MemoryLetters())

    def touch(self, group: str, key: str) -> None:
        """Write a key's own value again: everybody's revision of it is old now."""
        value = self.value(group, key)
        if value is not None:
            self.put(group, key, value)

    def tick_if_due(self) -> None:
        """Tick, whichever port asks first in its time."""
        if self.now() >= self._tick_at:
            self._tick_at = self.now() + TICK_S
            self.tick()

    def tick(self) -> None:
        """Do what is due by the clock: expiries, redeliveries, idle heartbeats, silent watches."""
        now = self.now()
        for name, bucket in self._buckets.items():
            group = name.removeprefix("MILLSTREAM_")
            for key, (value, _, ends_at) in list(bucket.values.items()):
                if value is not None and ends_at is not None and now >= ends_at:
                    self._put(group, bucket, key, None, None)
        for stream in self.streams.values():
            stream.tick(now)
        for client in list(self._clients.values()):
            if now >= client.silent_at:
                client.watched = None
                client.silent_at = float("inf")
                client.send(BucketGone())

    # ---- clients ----

    def attach(self, client: "MemoryClient") -> None:
        """Take a client in; it answers probes from now on."""
        self._clients[client.settings.instance] = client

    def detach(self, client: "MemoryClient") -> None:
        """Drop a client with its watch and pulls; whose heartbeats it hears it keeps to itself."""
        self._clients.pop(client.settings.instance, None)
        client.watched = None
        client.silent_at = float("inf")
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                if consumer.pull is not None and consumer.pull.owner is client:
                    consumer.pull = None

    def execute(self, client: "MemoryClient", command: Command) -> None:
        """Carry out a command of a client that is attached."""
        match command:
            case ReadKey() | WriteKey() | DeleteKey() | ListKeys() | Prepare() | Watch():
                self._execute_on_bucket(client, command)
            case StoreLetter() | ReadLetters() | FindParked() | DeleteLetter():
                letters = self._letters_of(client.settings.group)
                reply = letters.execute(command, client.settings.config.partitions)
                if isinstance(command, StoreLetter):
                    self._observer.stored(client, command, reply, letters.all())
                client.send(reply)
            case Announce():
                self._announce(client, command)
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
        heard = Heard(
            member=me.member,
            instance=me.instance,
            sent_at=command.sent_at,
            deaf_s=command.deaf_s,
            epoch=command.epoch,
        )
        for other in list(self._clients.values()):
            if other.settings.group != me.group:
                continue
            if other is client or other.hears in ("*", me.member):
                other.send(heard)

    def _announce(self, client: "MemoryClient", command: Announce) -> None:
        self._observer.announced(client, command.value)
        for other in list(self._clients.values()):
            if other.settings.group == client.settings.group and other.hears == "*":
                other.send(Announced(value=command.value))

    def _probe(self, client: "MemoryClient", command: Probe) -> None:
        for other in list(self._clients.values()):
            is_meant = other.settings.member == command.member
            if is_meant and other.settings.group == client.settings.group:
                other.probed(client, command.id)
                return
        client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))

    # ---- buckets ----

    def _execute_on_bucket(
        self,
        client: "MemoryClient",
        command: ReadKey | WriteKey | DeleteKey | ListKeys | Prepare | Watch,
    ) -> None:
        name = naming.bucket(client.settings.group)
        if isinstance(command, Prepare):
            if name not in self._buckets:
                # Revisions grow from one bucket to the next, as the adapter has it: an old one
                # must never hit by chance.
                last = int(self.now() * 1e6)
                self._buckets[name] = _Bucket(begins_at=last + 1, revision=last)
            client.bucket = self._buckets[name]
            client.send(
                Prepared(
                    id=command.id,
                    begins_at=client.bucket.begins_at,
                    has_key_ttl=self._has_key_ttl,
                    may_overlap=self._may_overlap(client),
                )
            )
            return
        bucket = self._buckets.get(name)
        if isinstance(command, Watch):
            self._watch(client, bucket)
            return
        if bucket is None:
            client.send(Failed(id=command.id, reason=Failure.BUCKET_GONE))
            return
        match command:
            case ReadKey():
                value, revision, _ = bucket.values.get(command.key, (None, 0, None))
                self._observer.read(client, command.key, value)
                client.send(KeyRead(id=command.id, value=value, revision=revision))
            case ListKeys():
                keys = [
                    key
                    for key, (value, _, _) in bucket.values.items()
                    if value is not None and key.startswith(command.prefix)
                ]
                client.send(KeyNames(id=command.id, keys=tuple(keys)))
            case WriteKey() | DeleteKey():
                self._write(client, bucket, command)

    def _watch(self, client: "MemoryClient", bucket: _Bucket | None) -> None:
        client.watched = None
        client.num_watches += 1
        client.silent_at = float("inf")
        if bucket is None or (client.bucket is not None and client.bucket is not bucket):
            client.send(BucketGone())
            return
        client.watched = bucket
        for key, (value, revision, _) in list(bucket.values.items()):
            if _is_watched(key):
                client.send(KeyChanged(key=key, value=value, revision=revision))
        client.send(WatchCaughtUp())

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
        ends_at = self.now() + ttl_s if ttl_s is not None and self._has_key_ttl else None
        bucket.values[key] = (value, bucket.revision, ends_at)
        if _is_watched(key):
            changed = KeyChanged(key=key, value=value, revision=bucket.revision)
            for client in list(self._clients.values()):
                if client.watched is bucket:
                    client.send(changed)
        return bucket.revision

    # ---- streams ----

    def _may_overlap(self, client: "MemoryClient") -> bool:
        stream = (client.settings.config.stream or "").replace("{partition}", "0")
        return stream in self.streams and self.streams[stream].retention is Retention.LIMITS

    def _stream_of(self, client: "MemoryClient", command: Command) -> MemoryStream | None:
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
        return self.streams.get(config.stream.replace("{partition}", str(number)))

    def _execute_on_stream(self, client: "MemoryClient", command: Command) -> None:
        if isinstance(command, ListConsumers):
            self._list_consumers(client, command)
            return
        if isinstance(command, ClosePull):
            self._close_pull(client, command)
            return
        if isinstance(command, Acks):
            for message in command.messages:
                self._execute_on_stream(client, Ack(message=message))
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

    def _list_consumers(self, client: "MemoryClient", command: ListConsumers) -> None:
        pattern = client.settings.config.stream or ""
        numbers = range(client.settings.config.partitions if "{partition}" in pattern else 1)
        names: list[str] = []
        for number in numbers:
            stream = self.streams.get(pattern.replace("{partition}", str(number)))
            if stream is None:
                self._refuse(client, command)
                return
            names += stream.consumers
        client.send(ConsumerNames(id=command.id, names=tuple(names)))

    def _close_pull(self, client: "MemoryClient", command: ClosePull) -> None:
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                pull = consumer.pull
                if pull is not None and pull.owner is client and pull.number == command.pull:
                    consumer.pull = None

    def _refuse(self, client: "MemoryClient", command: Command) -> None:
        """Answer a command for a stream that is not there."""
        if isinstance(command, OpenPull):
            client.send(PullEnded(pull=command.pull, reason="503"))
        elif isinstance(command, DoubleAck):
            client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))
        elif not isinstance(command, Ack):
            id_: int = getattr(command, "id")  # noqa: B009 - all the others have one
            client.send(Failed(id=id_, reason=Failure.STREAM_GONE, detail="stream not found"))

    def _create(
        self, client: "MemoryClient", stream: MemoryStream, command: CreateConsumer
    ) -> Reply:
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

    def _open_pull(self, client: "MemoryClient", stream: MemoryStream, command: OpenPull) -> None:
        consumer = stream.consumers.get(command.name)
        if consumer is None:
            client.send(PullEnded(pull=command.pull, reason="503"))
            return
        self._observer.pulls(client, command.name)
        consumer.pull = StandingPull(client, command.pull, command.epoch, client.send)
        stream.deliver(consumer, self.now())

    def _ack(self, client: "MemoryClient", stream: MemoryStream, command: Ack | DoubleAck) -> None:
        name, _, seq = command.message.reply.partition(" ")
        consumer = stream.consumers.get(name)
        if isinstance(command, Ack) and command.is_progress:
            if consumer is not None:
                stream.progress(consumer, int(seq), self.now())
            return
        if consumer is not None and stream.ack(consumer, int(seq), self.now()):
            self._observer.acked(consumer.partition, int(seq))
        if isinstance(command, DoubleAck):
            is_there = consumer is not None
            client.send(
                Done(id=command.id)
                if is_there
                else Failed(id=command.id, reason=Failure.NO_RESPONDERS)
            )


def _is_watched(key: str) -> bool:
    return not key.startswith((naming.DONE_PREFIX, naming.EVENT_PREFIX))


def _books(consumer: MemoryConsumer | None, client: "MemoryClient", id_: int) -> ConsumerRead:
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


class MemoryClient:
    """One member's connection: ``send`` takes what the server has for it."""

    def __init__(self, settings: MemberSettings, rule: KeyRule | None, send: Send) -> None:
        self.settings = settings
        self.rule = rule
        self.send = send
        self.bucket: _Bucket | None = None
        """The bucket that was there when it prepared; another by the same name is another."""
        self.watched: _Bucket | None = None
        self.num_watches = 0
        """So many times it began to watch; what an earlier watch had under way it must drop."""
        self.silent_at = float("inf")
        """When it notices that what it watches is gone."""
        self.hears: str | None = None
        """Whose heartbeats: a member, ``*`` for everybody's, None for nobody's but its own."""

    def probed(self, asker: "MemoryClient", id_: int) -> None:
        """Answer a probe at once; a simulated member that is paused overrides this."""
        asker.send(Alive(id=id_, instance=self.settings.instance))

    def cut(self, duration_s: float) -> None:
        """Lose the connection for a while; who simulates connections overrides this."""


class _PortClient(MemoryClient):
    """A client whose connection is a `MemoryPort`."""

    port: "MemoryPort"

    def cut(self, duration_s: float) -> None:
        self.port.cut(duration_s)


class MemoryPort:
    """A `Port` on a `MemoryServer`, on the running loop and its clock."""

    def __init__(
        self, server: MemoryServer, settings: MemberSettings, rule: KeyRule | None
    ) -> None:
        self._server = server
        self._client = _PortClient(settings, rule, self._send)
        self._client.port = self
        self._is_open = False
        self._is_connected = False
        self._connection = 0
        self._listens: Listen | None = None
        """A subscription, which a client makes again when it is back."""
        self._num_watches = 0
        """So many times it asked to watch."""
        self._outstanding: set[int] = set()
        self._up_at = 0.0
        self._down_at = 0.0

    async def open(self, listener: Listener, spawn: Spawn) -> None:
        """Attach; raises StreamMissing."""
        config = self._client.settings.config
        for number in range(config.partitions if config.stream is not None else 0):
            name = (config.stream or "").replace("{partition}", str(number))
            if name not in self._server.streams:
                raise StreamMissing(name)
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._is_open = self._is_connected = True
        self._server.attach(self._client)
        spawn(self._keep_time(), "clock")

    def execute(self, command: Command) -> None:
        """Carry the command out with the loop's next round, or after a moment."""
        id_: int | None = getattr(command, "id", None)
        if isinstance(command, Listen):
            self._listens = command
        if not self._is_connected:
            if id_ is not None:
                failed = Failed(id=id_, reason=Failure.DISCONNECTED)
                self._loop.call_soon(self._hand_over, failed, self._connection)
            return
        if id_ is not None:
            self._outstanding.add(id_)
        if isinstance(command, Watch):
            self._num_watches += 1
        self._up_at = self._arrange(self._up_at, self._execute, command)

    async def close(self) -> None:
        """Detach."""
        self._is_open = False
        self._server.detach(self._client)

    def cut(self, duration_s: float) -> None:
        """Lose the connection and what is under way; it is back after ``duration_s``."""
        if not self._is_connected or not self._is_open:
            return
        self._is_connected = False
        self._connection += 1
        self._num_watches = self._client.num_watches
        self._server.detach(self._client)
        failed, self._outstanding = sorted(self._outstanding), set()
        self._loop.call_soon(self._hand_over, Disconnected(), self._connection)
        for id_ in failed:
            lost = Failed(id=id_, reason=Failure.DISCONNECTED)
            self._loop.call_soon(self._hand_over, lost, self._connection)
        self._loop.call_later(duration_s, self._come_back)

    def _come_back(self) -> None:
        if self._is_open:
            self._is_connected = True
            self._server.attach(self._client)
            if self._listens is not None:
                self._server.execute(self._client, self._listens)
            self._hand_over(Reconnected(), self._connection)

    def _arrange(self, not_before: float, action: Callable[..., None], event: object) -> float:
        """Let something happen after the moment it is under way, in order; returns when."""
        delay_s = self._server.delay_s()
        if delay_s is None:
            self._loop.call_soon(action, event, self._connection)
            return not_before
        at = max(not_before, self._loop.time() + delay_s)
        self._loop.call_at(at, action, event, self._connection)
        return at

    def _execute(self, command: Command, connection: int) -> None:
        if self._is_open and self._is_connected and connection == self._connection:
            self._server.execute(self._client, command)

    def _send(self, event: Happening | Reply) -> None:
        action: Callable[..., None] = self._hand_over
        if isinstance(event, KeyChanged | WatchCaughtUp):
            action = partial(self._hand_over_watched, self._client.num_watches)
        self._down_at = self._arrange(self._down_at, action, event)

    def _hand_over_watched(
        self, watch: int, event: KeyChanged | WatchCaughtUp, connection: int
    ) -> None:
        if watch == self._num_watches:
            self._hand_over(event, connection)

    def _hand_over(self, event: Happening | Reply, connection: int) -> None:
        if self._is_open and connection == self._connection:
            self._outstanding.discard(getattr(event, "id", 0))
            self._listener(event)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._server.tick_if_due()
