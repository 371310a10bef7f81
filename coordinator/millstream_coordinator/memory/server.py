"""`MemoryServer`: what the members of groups share, and what can be done to them."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from ..model import NO_HEADERS, MemberSettings, Retention
from ..partitioning.key import KeyRule
from ..ports import (
    Announce,
    Announced,
    Beat,
    BucketGone,
    Command,
    DeleteKey,
    DeleteLetter,
    Failed,
    Failure,
    FindParked,
    Heard,
    Listen,
    ListKeys,
    Prepare,
    Prepared,
    Probe,
    ReadKey,
    ReadLetters,
    StoreLetter,
    Watch,
    WriteKey,
)
from ..virtual import VirtualLoop
from .buckets import MemoryBuckets
from .client import MemoryClient, Observer
from .consumers import MemoryConsumers
from .letters import MemoryLetter, MemoryLetters
from .port import TICK_S, MemoryPort
from .stream import MemoryStream

POLL_S = 0.01
POLL_MAX_S = 0.25
DELAY_S = 0.002
"""Mean of what takes a moment, with a ``seed``."""


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
        self._clients: dict[str, MemoryClient] = {}
        self._observer = observer or Observer()
        self._clock = clock
        self._has_key_ttl = has_key_ttl
        self._buckets = MemoryBuckets(
            self._clients, self._observer, self.now, has_key_ttl=has_key_ttl
        )
        self._consumers = MemoryConsumers(self.streams, self._observer, self.now)
        self._letters: dict[str, MemoryLetters] = {}
        self._seed = seed
        self._tick_at = 0.0
        self._random = random.Random(seed or 0)  # noqa: S311 - not for secrets: to be repeated

    # ---- what `Group` asks of its connection ----

    def port(self, settings: MemberSettings, rule: KeyRule | None) -> MemoryPort:
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
        self._buckets.delete(group)

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
        bucket = self._buckets.get(group)
        return None if bucket is None else bucket.value(key)

    def keys(self, group: str, prefix: str) -> list[str]:
        """Return the keys of the group's bucket, in the order of their first writes."""
        bucket = self._buckets.get(group)
        return [] if bucket is None else bucket.keys(prefix)

    def has_bucket(self, group: str) -> bool:
        """Whether the group's bucket is there."""
        return self._buckets.get(group) is not None

    def put(self, group: str, key: str, value: bytes | None) -> None:
        """Write a key as somebody else would, whatever its revision; KeyError: no bucket."""
        bucket = self._buckets.get(group)
        if bucket is None:
            raise KeyError(group)
        self._buckets.put(bucket, key, value)

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
        self._buckets.tick(now)
        for stream in self.streams.values():
            stream.tick(now)
        for client in list(self._clients.values()):
            if now >= client.silent_at:
                client.watched = None
                client.silent_at = float("inf")
                client.send(BucketGone())

    # ---- clients ----

    def attach(self, client: MemoryClient) -> None:
        """Take a client in; it answers probes from now on."""
        self._clients[client.settings.instance] = client

    def detach(self, client: MemoryClient) -> None:
        """Drop a client with its watch and pulls; whose heartbeats it hears it keeps to itself."""
        self._clients.pop(client.settings.instance, None)
        client.watched = None
        client.silent_at = float("inf")
        self._consumers.drop_pulls(client)

    def execute(self, client: MemoryClient, command: Command) -> None:
        """Carry out a command of a client that is attached."""
        match command:
            case ReadKey() | WriteKey() | DeleteKey() | ListKeys() | Watch():
                self._buckets.execute(client, command)
            case Prepare():
                self._prepare(client, command)
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
                self._consumers.execute(client, command)

    def _prepare(self, client: MemoryClient, command: Prepare) -> None:
        bucket = self._buckets.make(client.settings.group)
        client.bucket = bucket
        client.send(
            Prepared(
                id=command.id,
                begins_at=bucket.begins_at,
                has_key_ttl=self._has_key_ttl,
                may_overlap=self._consumers.may_overlap(client),
            )
        )

    def _beat(self, client: MemoryClient, command: Beat) -> None:
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

    def _announce(self, client: MemoryClient, command: Announce) -> None:
        self._observer.announced(client, command.value)
        for other in list(self._clients.values()):
            if other.settings.group == client.settings.group and other.hears == "*":
                other.send(Announced(value=command.value))

    def _probe(self, client: MemoryClient, command: Probe) -> None:
        for other in list(self._clients.values()):
            is_meant = other.settings.member == command.member
            if is_meant and other.settings.group == client.settings.group:
                other.probed(client, command.id)
                return
        client.send(Failed(id=command.id, reason=Failure.NO_RESPONDERS))
