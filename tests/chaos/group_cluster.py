"""Worker processes of one group, what they said, and waiting for it."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
from nats.aio.client import Client

from millstream_coordinator import GroupView, read_view
from millstream_coordinator.errors import GroupError

ROOT = Path(__file__).parents[2]
STREAM = "FLIGHTS"
KEYS = 50


@dataclass(frozen=True, slots=True)
class Line:
    """Something a worker said: kind, machine-wide monotonic seconds, the rest."""

    kind: str
    at: float
    facts: tuple[str, ...]


@dataclass(slots=True)
class Worker:
    member: str
    process: asyncio.subprocess.Process
    lines: list[Line] = field(default_factory=list)
    calls: list[tuple[float, int, int, int]] = field(default_factory=list)
    """(when, partition, epoch, seq) of each handler call."""
    reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None


class Cluster:
    """A stream, a group, and its workers."""

    def __init__(self, url: str, name: str, partitions: int, *arguments: str) -> None:
        self.url = url
        self.name = name
        self.partitions = partitions
        self._arguments = arguments
        self.workers: list[Worker] = []
        self._news = asyncio.Event()
        self._started = 0
        self.client: Client | None = None

    async def open(self) -> None:
        self.client = await nats.connect(
            self.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
        )
        await self.client.jetstream().add_stream(name=STREAM, subjects=["flights.*.*"])

    async def close(self) -> None:
        for worker in self.workers:
            if worker.is_running:
                os.kill(worker.pid, signal.SIGKILL)
                await worker.process.wait()
        for worker in self.workers:
            if worker.reading is not None:
                await worker.reading
        if self.client is not None:
            await self.client.close()

    def backlogs(self, published: int) -> list[int]:
        """Messages of each partition that no handler was called for, of ``published`` numbers."""
        left = [0] * self.partitions
        for number in range(published):
            left[number % KEYS % self.partitions] += 1
        seen = {(one[1], one[3]) for worker in self.workers for one in worker.calls}
        for partition, _ in seen:
            left[partition] -= 1
        return left

    async def publish(self, first: int, count: int) -> None:
        """Messages number ``first`` … of key number mod KEYS; the key decides the partition."""
        assert self.client is not None
        for number in range(first, first + count):
            key = number % KEYS
            await self.client.publish(f"flights.{key % self.partitions}.k{key}", b"%d" % number)
            if number % 500 == 0:
                await self.client.flush()
        await self.client.flush()

    async def start(self, member: str | None = None) -> Worker:
        self._started += 1
        member = member or f"w{self._started}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.group_worker",
            self.url,
            *("--stream", STREAM, "--name", self.name, "--partitions", str(self.partitions)),
            *("--member", member),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        worker = Worker(member, process)
        worker.reading = asyncio.create_task(self._read(worker))
        self.workers.append(worker)
        return worker

    async def _read(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        async for raw in worker.process.stdout:
            kind, at, *facts = raw.decode().split()
            if kind == "handle":
                worker.calls.append((float(at), int(facts[0]), int(facts[1]), int(facts[2])))
            else:
                worker.lines.append(Line(kind, float(at), tuple(facts)))
            self._news.set()
        await worker.process.wait()
        self._news.set()

    async def kill(self, worker: Worker) -> float:
        """SIGKILL; returns when kill(2) had returned."""
        os.kill(worker.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await worker.process.wait()
        return killed_at

    async def hang(self, worker: Worker) -> float:
        """SIGSTOP; returns when kill(2) had returned."""
        os.kill(worker.pid, signal.SIGSTOP)
        return time.monotonic()

    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_running]

    async def view(self) -> GroupView:
        assert self.client is not None
        return await read_view(self.client, self.name)

    async def until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until what the workers said makes ``is_so`` true."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            view = await self.view()
            raise AssertionError(f"not within {timeout_s} s: {what}; {view}") from error

    async def until_view(
        self, is_so: Callable[[GroupView], bool], timeout_s: float, what: str
    ) -> GroupView:
        """Poll the bucket until it says ``is_so``."""
        deadline = time.monotonic() + timeout_s
        view = None
        while time.monotonic() < deadline:
            try:
                view = await self.view()
                if is_so(view):
                    return view
            except GroupError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {what}; {view}")

    async def until_balanced(self, timeout_s: float = 20.0) -> GroupView:
        """Until every running worker owns its share and nothing moves."""
        members = {worker.member for worker in self.running()}
        return await self.until_view(
            lambda view: is_balanced(view, self.partitions, members), timeout_s, "balanced"
        )


def is_balanced(view: GroupView, partitions: int, members: Iterable[str]) -> bool:
    """Whether exactly these members own all partitions, within one of each other."""
    counts = dict.fromkeys(members, 0)
    if len(view.partitions) != partitions or not counts:
        return False
    for record in view.partitions.values():
        if record.owner not in counts or record.next is not None:
            return False
        counts[record.owner] += 1
    return max(counts.values()) - min(counts.values()) <= 1


@asynccontextmanager
async def cluster(url: str, name: str, partitions: int, *arguments: str) -> AsyncIterator[Cluster]:
    """A cluster whose processes end with the block."""
    one = Cluster(url, name, partitions, *arguments)
    try:
        await one.open()
        yield one
    finally:
        await one.close()


async def _ignore(_: Exception) -> None:
    """The server is killed on purpose: nats-py may keep its opinion."""
