"""Worker processes of one group, what they said, and waiting for it.

Each worker may be reached through a `Proxy` of its own, so that it can be cut off alone.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.js.api import RetentionPolicy

from millstream_coordinator import GroupView, read_view
from millstream_coordinator.errors import GroupError
from tests.helpers.proxy import Proxy

ROOT = Path(__file__).parents[2]
STREAM = "FLIGHTS"
RULE = "flights.{partition}.{key}"
KEYS = 50
START_TIMEOUT_S = 60.0
STORY_MAX = 400
TEXT_MAX = 3000
_BATCH = 500


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
    effects: list[tuple[float, str, int, int, int]] = field(default_factory=list)
    """(when, applied/repeat/stale/failed, partition, epoch, seq) of each call that ended."""
    running: dict[tuple[int, int, int], float] = field(default_factory=dict)
    """(partition, epoch, seq) of each call that did not end yet, and since when it runs."""
    proxy: Proxy | None = None
    is_meant_to_end: bool = False
    """Killed, or asked to leave."""
    reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None


class Cluster:
    """A stream, a group, and its workers.

    ``url`` may be several, separated by commas. ``arguments`` go to every worker.
    """

    def __init__(
        self,
        url: str,
        name: str,
        partitions: int,
        *arguments: str,
        module: str = "tests.chaos.group_worker",
        rule: str = RULE,
        stream: str = STREAM,
        is_proxied: bool = False,
    ) -> None:
        self.url = url
        self.name = name
        self.partitions = partitions
        self._arguments = arguments
        self._module = module
        self._rule = rule
        self._stream = stream
        self._is_proxied = is_proxied
        self.workers: list[Worker] = []
        self.coordinators: list[Worker] = []
        self.entered: defaultdict[int, set[int]] = defaultdict(set)
        """Partition (at the first level) → sequences a handler was called for."""
        self.done: defaultdict[int, set[int]] = defaultdict(set)
        """Partition → sequences whose effect is there."""
        self._news = asyncio.Event()
        self._started = 0
        self.client: Client | None = None

    async def connect(self) -> Client:
        """The cluster's own connection, around all proxies."""
        self.client = await nats.connect(
            self.url.split(","),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            connect_timeout=1,
            error_cb=_ignore,
        )
        return self.client

    async def open(
        self,
        *,
        replicas: int = 1,
        retention: RetentionPolicy = RetentionPolicy.LIMITS,
    ) -> None:
        """Connect, and make the stream."""
        client = self.client or await self.connect()
        await client.jetstream(timeout=30).add_stream(
            name=self._stream,
            subjects=[re.sub(r"\{[^}]*\}", "*", self._rule)],
            num_replicas=replicas,
            retention=retention,
            max_consumers=max(1000, 2 * self.partitions + 100),
        )

    async def close(self) -> None:
        everybody = [*self.workers, *self.coordinators]
        for worker in everybody:
            if worker.is_running:
                os.kill(worker.pid, signal.SIGKILL)
                await worker.process.wait()
        for worker in everybody:
            if worker.reading is not None:
                await worker.reading
            if worker.proxy is not None:
                await worker.proxy.__aexit__(None, None, None)
        if self.client is not None:
            await self.client.close()

    def backlogs(self, published: int) -> list[int]:
        """Messages of each partition that no handler was called for, of ``published`` numbers."""
        left = [-len(self.entered[partition]) for partition in range(self.partitions)]
        for number in range(published):
            left[number % KEYS % self.partitions] += 1
        return left

    async def publish(self, first: int, count: int) -> None:
        """Messages number ``first`` … of key number mod KEYS; the key decides the partition."""
        assert self.client is not None
        jetstream = self.client.jetstream(timeout=10)
        for start in range(first, first + count, _BATCH):
            numbers = range(start, min(start + _BATCH, first + count))
            await asyncio.gather(
                *(
                    jetstream.publish(
                        f"flights.{number % KEYS % self.partitions}.k{number % KEYS}",
                        b"%d" % number,
                    )
                    for number in numbers
                )
            )

    async def start(self, member: str | None = None) -> Worker:
        """Start a worker; it is not a member yet when this returns."""
        self._started += 1
        member = member or f"w{self._started}"
        proxy = None
        url = self.url.split(",")[self._started % len(self.url.split(","))]
        if self._is_proxied:
            proxy = Proxy(self.url.split(","))
            await proxy.__aenter__()
            url = proxy.url
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self._module, url),
            *("--stream", self._stream, "--name", self.name, "--partitions", str(self.partitions)),
            *("--member", member, "--key-rule", self._rule),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        worker = Worker(member, process, proxy=proxy)
        worker.reading = asyncio.create_task(self._read(worker))
        self.workers.append(worker)
        return worker

    async def start_coordinator(self) -> Worker:
        """Start ``millstream coordinator run``: a member that leads and owns nothing.

        It ends by itself when the server does not answer at its start, and is then started again.
        """
        self._started += 1
        member = f"c{self._started}"
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "millstream", "coordinator", "run", self.name, "--end-with-stdin"),
                    *("--nats", self.url, "--member", member, "--stream", self._stream),
                    *("--partitions", str(self.partitions), "--key", self._rule),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    cwd=ROOT,
                )
                assert process.stdout is not None
                if await process.stdout.readline():  # else it ended before it was ready
                    break
                await process.wait()
        coordinator = Worker(member, process)
        coordinator.reading = asyncio.create_task(_drain(process.stdout))
        self.coordinators.append(coordinator)
        return coordinator

    async def _read(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        async for raw in worker.process.stdout:
            if not raw.endswith(b"\n"):  # killed in the middle of it
                break
            kind, at, *facts = raw.decode().split()
            match kind:
                case "handle":
                    partition, epoch, seq = (int(fact) for fact in facts)
                    worker.calls.append((float(at), partition, epoch, seq))
                    worker.running[partition, epoch, seq] = float(at)
                    self.entered[partition % self.partitions].add(seq)
                case "applied" | "repeat" | "stale" | "failed":
                    partition, epoch, seq = (int(fact) for fact in facts[:3])
                    worker.effects.append((float(at), kind, partition, epoch, seq))
                    worker.running.pop((partition, epoch, seq), None)
                    if kind in ("applied", "repeat"):
                        self.done[partition % self.partitions].add(seq)
                case _:
                    worker.lines.append(Line(kind, float(at), tuple(facts)))
            self._news.set()
        await worker.process.wait()
        self._news.set()

    async def kill(self, worker: Worker) -> float:
        """SIGKILL; returns when kill(2) had returned."""
        worker.is_meant_to_end = True
        os.kill(worker.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await worker.process.wait()
        return killed_at

    async def hang(self, worker: Worker) -> float:
        """SIGSTOP; returns when kill(2) had returned, once the process stands still."""
        os.kill(worker.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13
            options = os.WSTOPPED | os.WEXITED | os.WNOWAIT
            await asyncio.to_thread(os.waitid, os.P_PID, worker.pid, options)
        return stopped_at

    def wake(self, worker: Worker) -> None:
        """SIGCONT."""
        os.kill(worker.pid, signal.SIGCONT)

    async def dismiss(self, worker: Worker, timeout_s: float) -> float:
        """SIGTERM, and wait until it has ended well; returns when kill(2) had returned."""
        worker.is_meant_to_end = True
        os.kill(worker.pid, signal.SIGTERM)
        asked_at = time.monotonic()
        async with asyncio.timeout(timeout_s):
            code = await worker.process.wait()
        if code != 0:
            raise AssertionError(f"{worker.member} was asked to end and ended with {code}")
        return asked_at

    def check_alive(self) -> None:
        """Raise AssertionError if a process ended that nobody wanted to end."""
        for one in (*self.workers, *self.coordinators):
            if not one.is_running and not one.is_meant_to_end:
                code = one.process.returncode
                raise AssertionError(f"{one.member} ended by itself with exit code {code}")

    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_running]

    def story(self, since: float) -> list[str]:
        """What the workers said since then that is not everyday, in order, a line each."""
        said = [
            (line.at, worker.member, line.kind, " ".join(line.facts))
            for worker in self.workers
            for line in worker.lines
            if line.at >= since
        ]
        said += [
            (at, worker.member, outcome, f"p{partition} e{epoch} #{seq}")
            for worker in self.workers
            for at, outcome, partition, epoch, seq in worker.effects
            if at >= since and outcome in ("stale", "failed")
        ]
        return [
            f"    {at - since:8.3f} {member}: {kind} {facts}"
            for at, member, kind, facts in sorted(said)[:STORY_MAX]
        ]

    async def view(self) -> GroupView:
        """What the bucket says; asked again where a cluster's node that was killed is missed."""
        return await self.until_view(lambda _: True, START_TIMEOUT_S, "the bucket can be read")

    async def _look(self) -> GroupView:
        assert self.client is not None
        return await read_view(self.client, self.name)

    async def until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until what the workers said makes ``is_so`` true."""
        try:
            async with asyncio.timeout(timeout_s):
                while not is_so():
                    self.check_alive()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            view: GroupView | GroupError
            try:
                view = await self._look()
            except GroupError as unread:
                view = unread
            raise AssertionError(f"not within {timeout_s} s: {what}; {view}"[:TEXT_MAX]) from error

    async def until_view(
        self, is_so: Callable[[GroupView], bool], timeout_s: float, what: str
    ) -> GroupView:
        """Poll the bucket until it says ``is_so``."""
        deadline = time.monotonic() + timeout_s
        view = None
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                view = await self._look()
                if is_so(view):
                    return view
            except GroupError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {what}; {view}"[:TEXT_MAX])

    async def until_balanced(self, timeout_s: float = 60.0) -> GroupView:
        """Until every running worker owns its share and nothing moves."""
        members = {worker.member for worker in self.running()}
        return await self.until_view(lambda view: is_balanced(view, members), timeout_s, "balanced")


def is_balanced(view: GroupView, members: Iterable[str]) -> bool:
    """Whether exactly these members own all partitions, within one of each other."""
    counts = dict.fromkeys(members, 0)
    is_resizing = view.config.resize_to is not None
    if is_resizing or len(view.partitions) != view.config.active or not counts:
        return False
    for record in view.partitions.values():
        if record.owner not in counts or record.next is not None:
            return False
        counts[record.owner] += 1
    return max(counts.values()) - min(counts.values()) <= 1


def entries_at(
    workers: Sequence[Worker], partitions: Iterable[int], epochs: dict[int, int], since: float
) -> dict[int, float]:
    """When each partition's handler was first called after ``since`` under a later epoch."""
    wanted = set(partitions)
    entered: dict[int, float] = {}
    for worker in workers:
        for at, partition, epoch, _ in reversed(worker.calls):
            if at < since:
                break
            if partition in wanted and epoch > epochs[partition]:
                entered[partition] = min(at, entered.get(partition, at))
    return entered


@asynccontextmanager
async def cluster(url: str, name: str, partitions: int, *arguments: str) -> AsyncIterator[Cluster]:
    """A cluster whose processes end with the block."""
    one = Cluster(url, name, partitions, *arguments)
    try:
        await one.open()
        yield one
    finally:
        await one.close()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


async def _ignore(_: Exception) -> None:
    """The server is killed on purpose: nats-py may keep its opinion."""
