"""A member dies, and all are restarted one by one: how long do partitions stand still?

    python -m tests.benchmarks.takeover [--only TEXT]

The same for a Kafka group on real Apache Kafka (classic and KIP-848 protocol) and for ours on
nats-server, each with its default timeouts: three members, six partitions, a steady stream into
each. **Takeover**: from SIGKILL of one member to the first message that another one handles, for
each partition of the dead one. **Rolling restart**: static members, each stopped by SIGTERM and
started again when the one before serves; the longest silence of each partition.
"""

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import nats
from confluent_kafka import Producer

from tests.helpers import require
from tests.helpers.kafka import real_kafka
from tests.helpers.servers import REAL, Server

MEMBERS = 3
PARTITIONS = 6
PUBLISH_EVERY_S = 0.02
"""One message into every partition this often: the resolution of what is measured."""
PATIENCE_S = 120.0


class System(Protocol):
    """A kind of group: how its members are started, and how a message gets into each partition."""

    name: str
    prefix: str
    """What its groups' names begin with."""

    def command(self, group: str, number: int, *, is_static: bool) -> list[str]:
        """The command line of a member."""

    def publish(self) -> None:
        """One message into every partition."""

    def close(self) -> None:
        """Nothing more will be published."""


class KafkaGroup:
    """A consumer group of real Apache Kafka."""

    def __init__(self, bootstrap: str, protocol: str) -> None:
        self.name, self.prefix = f"Kafka group, {protocol} protocol", protocol
        self._bootstrap, self._protocol = bootstrap, protocol
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})

    def command(self, group: str, number: int, *, is_static: bool) -> list[str]:
        instance = f"member-{number}" if is_static else "-"
        program = [sys.executable, "-m", "tests.benchmarks.kafka_member"]
        return [*program, self._bootstrap, "flights", group, self._protocol, instance]

    def publish(self) -> None:
        for partition in range(PARTITIONS):
            self._producer.produce("flights", b"x", partition=partition)
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(5)


class OurGroup:
    """A group on nats-server."""

    name, prefix = "millstream group", "ours"

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(nats.connect(url))
        made = self._client.jetstream().add_stream(name="FLIGHTS", subjects=["flights.>"])
        self._loop.run_until_complete(made)

    def command(self, group: str, number: int, *, is_static: bool) -> list[str]:
        program = [sys.executable, "-m", "tests.benchmarks.group_member", self._url, group]
        return [*program, str(PARTITIONS), *([f"member-{number}"] if is_static else [])]

    def publish(self) -> None:
        self._loop.run_until_complete(self._publish())

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    async def _publish(self) -> None:
        for partition in range(PARTITIONS):
            await self._client.publish(f"flights.{partition}.k", b"x")
        await self._client.flush()


class Member:
    """A member's process and what it has handled: (monotonic clock, partition)."""

    def __init__(self, command: list[str], handled: list[tuple[float, int, "Member"]]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        self._handled = handled
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):  # what SIGKILL cut short does not count
                _, at, partition = line.split()
                self._handled.append((float(at), int(partition), self))

    def end(self, how: signal.Signals) -> float:
        """Send a signal, wait for the end and return when it was sent."""
        at = time.monotonic()
        os.kill(self.process.pid, how)
        self.process.wait(PATIENCE_S)
        return at


class Scene:
    """Members at work under a steady stream of messages."""

    def __init__(self, system: System, group: str, *, is_static: bool) -> None:
        self._system, self._group, self._is_static = system, group, is_static
        self.handled: list[tuple[float, int, Member]] = []
        self._is_over = threading.Event()
        self._publisher = threading.Thread(target=self._publish, daemon=True)
        self._publisher.start()
        self.members = [self.start(number) for number in range(MEMBERS)]

    def _publish(self) -> None:
        while not self._is_over.wait(PUBLISH_EVERY_S):
            self._system.publish()

    def start(self, number: int) -> Member:
        """Start a member's process."""
        command = self._system.command(self._group, number, is_static=self._is_static)
        return Member(command, self.handled)

    def owners(self, since: float) -> dict[int, Member]:
        """Who handled each partition's newest message since then."""
        return {partition: member for at, partition, member in self.handled[:] if at > since}

    def settle(self) -> None:
        """Wait until every member serves its share and nothing changed hands for two seconds."""

        def is_settled() -> bool:
            now = time.monotonic()
            recent = [(p, m) for at, p, m in self.handled[:] if at > now - 2]
            shares: dict[Member, set[int]] = {}
            for partition, member in recent:
                shares.setdefault(member, set()).add(partition)
            is_fair = all(len(share) == PARTITIONS // MEMBERS for share in shares.values())
            return (
                shares.keys() == set(self.members) and is_fair and (len(set(recent)) == PARTITIONS)
            )

        _await(is_settled)

    def close(self) -> None:
        """End everything."""
        self._is_over.set()
        self._publisher.join()
        for member in self.members:
            if member.process.poll() is None:
                member.end(signal.SIGKILL)
            for pipe in (member.process.stdin, member.process.stdout):
                if pipe is not None:
                    pipe.close()


def takeover(system: System) -> list[float]:
    """Seconds from SIGKILL to the first message elsewhere, per partition of the dead member."""
    scene = Scene(system, f"{system.prefix}-takeover", is_static=False)
    try:
        scene.settle()
        victim = scene.members[1]
        lost = {p for p, member in scene.owners(time.monotonic() - 1).items() if member is victim}
        killed_at = victim.end(signal.SIGKILL)

        def first_elsewhere() -> dict[int, float]:
            found: dict[int, float] = {}
            for at, partition, member in scene.handled[:]:
                if at > killed_at and member is not victim and partition in lost:
                    found.setdefault(partition, at - killed_at)
            return found

        _await(lambda: len(first_elsewhere()) == len(lost))
        return sorted(first_elsewhere().values())
    finally:
        scene.close()


def rolling_restart(system: System) -> list[float]:
    """The longest silence of each partition while static members are restarted one by one."""
    scene = Scene(system, f"{system.prefix}-rolling", is_static=True)
    try:
        scene.settle()
        began_at = time.monotonic()
        for number in range(MEMBERS):
            scene.members[number].end(signal.SIGTERM)
            scene.members[number] = scene.start(number)
            scene.settle()
        return sorted(_longest_silences(scene.handled[:], began_at))
    finally:
        scene.close()


def _longest_silences(handled: list[tuple[float, int, Member]], since: float) -> Iterator[float]:
    for partition in range(PARTITIONS):
        times = sorted(at for at, number, _ in handled if number == partition and at > since - 1)
        yield max(later - earlier for earlier, later in itertools.pairwise(times))


def _await(is_true: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {PATIENCE_S:g} s")
        pause.wait(0.05)


@contextmanager
def systems(only: str) -> Iterator[list[Callable[[], System]]]:
    """Whatever can run here, made when it is its turn."""
    with ExitStack() as stack:
        made: list[Callable[[], System]] = []
        if only in ("", "kafka"):
            if reason := require.missing("kafka"):
                sys.stderr.write(f"Kafka not run: {reason}\n")
            else:
                node = stack.enter_context(real_kafka())
                node.create_topic("flights", PARTITIONS)
                made += [
                    lambda: KafkaGroup(node.bootstrap, "classic"),
                    lambda: KafkaGroup(node.bootstrap, "consumer"),
                ]
        if only in ("", "millstream"):
            store = stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-bench-"))
            server = stack.enter_context(Server(REAL, store))
            made.append(lambda: OurGroup(server.url))
        yield made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.takeover")
    parser.add_argument("--only", default="", choices=("", "kafka", "millstream"))
    options = parser.parse_args()
    with systems(options.only) as makers:
        for make in makers:
            system = make()
            for what, measure in (("takeover", takeover), ("rolling restart", rolling_restart)):
                seconds = measure(system)
                sys.stdout.write(
                    f"{system.name:<32} {what:<16} median {statistics.median(seconds):7.3f} s"
                    f"  max {max(seconds):7.3f} s  ({len(seconds)} partitions)\n"
                )
                sys.stdout.flush()
            system.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
