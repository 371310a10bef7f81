"""The scene: flights flow from Kafka to workers on NATS while processes are killed.

Everything that happens is decided by the seed (who is hit, and after how many handled flights) and
by the progress of the work, never by the clock alone: a fault strikes when enough is handled *and*
a backlog is there, since a system that has nothing to do cannot lose anything.

The faults, in this order:

1. three of five workers are killed at once; the others take over all partitions,
2. two new workers start and get their share,
3. a worker is stopped while it is inside handler calls, for longer than the heartbeat timeout;
   others take its partitions over and redo these calls; then it wakes, and what it was about to
   write is refused,
4. the bridge is killed with records on the way and started again,
5. the broker is killed and started again on the same store and port; no partition moves (left out
   on a server the demo did not start).

The backlog is kept by the producer: it runs ahead of the workers by a fixed number of records, so
the rate of the whole is that of the workers (lanes ÷ time of a handler call). It does not pass the
moment of the next fault before this one is over, or nothing would be left for the next to meet.
Only when a fault still waits for its backlog there (on a busy machine a look at the board can come
after the workers have handled all there was), it goes on: nothing else could end the wait.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from millstream_coordinator import GroupError, read_view

from . import ledger
from .board import Board, Happening, Shares, WorkerLine
from .flights import Flight
from .processes import Child, ChildFailed, Family
from .producer import FlightProducer, ProducerError
from .servers import (
    Servers,
    clean_up,
    connect,
    port_of,
    server_version,
    start_broker,
    start_servers,
    without_credentials,
)
from .settings import AHEAD, MAX_LANES, DemoError, DemoSettings, Names
from .sink import SinkContent, read_sink
from .worker import WorkerSpec

HEARTBEAT_TIMEOUT_S = 1.0
"""The group's default, after which a silent member is dead."""
STEP_S = 30.0
"""How long one step of the scene may take before the run is given up."""
STALL_S = 20.0
"""Without a handled record for so long the rest is lost."""
QUIET_S = 3.0
"""How long after a restart of the broker a move of a partition would have shown."""
PUMP_S, LOOK_S = 0.01, 0.05
FED_AT_ONCE = 100
MOMENTS = {"kill": 0.14, "start": 0.27, "stop": 0.42, "bridge": 0.62, "broker": 0.78}
"""At which share of handled records each fault is due; the seed shifts each a little."""
SHIFT = 0.03
BURST = 0.05
"""What is produced at once just before the bridge is killed."""


@dataclass(slots=True)
class Takeover:
    """One partition that changed hands: from the fault to the first handler call elsewhere."""

    partition: int
    owner_before: str
    owner_after: str
    epoch: int
    seconds: float


@dataclass(slots=True)
class Fault:
    """One fault and what came of it. Times count from the start of the run."""

    name: str
    at_s: float
    victims: list[str]
    backlog: int
    backlog_by_partition: dict[int, int]
    shares_before: Shares
    shares_between: Shares = field(default_factory=dict)
    """While a stopped worker's partitions are with others."""
    shares_after: Shares = field(default_factory=dict)
    takeovers: list[Takeover] = field(default_factory=list)
    moved_partitions: list[int] = field(default_factory=list)
    calls_under_way: int = 0
    stale_refused: int = 0
    recovered_s: float | None = None
    note: str = ""


@dataclass(slots=True)
class Outcome:
    """Everything a report is made of."""

    servers: Servers
    board: Board
    faults: list[Fault]
    places: dict[int, tuple[int, int]]
    sink: SinkContent
    seconds: float
    work_seconds: float
    stalled: bool


class Scene:
    """One run. ``board`` may be shown while `run` is under way."""

    def __init__(
        self, settings: DemoSettings, names: Names, flights: Sequence[Flight], family: Family
    ) -> None:
        self._settings = settings
        self._names = names
        self._flights = flights
        self._family = family
        self._directory: Path = family.directory
        self._random = random.Random(settings.seed)  # noqa: S311  a script, no secret
        self._calls = ledger.calls(self._directory)
        self._effects = ledger.effects(self._directory)
        self._faults: list[Fault] = []
        self._workers: dict[str, Child] = {}
        self._next_worker = 1
        self._ahead = round(settings.records * AHEAD)
        self._moments = {
            name: round(settings.records * (share + self._random.uniform(-SHIFT, SHIFT)))
            for name, share in MOMENTS.items()
        }
        self._produced_max = self._moments["kill"]
        self._wants_backlog = False
        self._started = time.monotonic()
        self.board = Board.for_run(settings.records, settings.partitions)
        self.changed = asyncio.Event()

    async def run(self) -> Outcome:
        """Play it to the end. Raises DemoError."""
        servers = await start_servers(self._settings, self._names, self._family)
        self._servers = servers
        client = await connect(servers.nats)
        self._client = client
        servers.nats_version = server_version(client)
        whose = "" if servers.broker is None else "embedded "
        kafkas = "" if servers.mock is None else "embedded "
        self._tell(
            f"{whose}NATS {servers.nats_version} at {without_credentials(servers.nats)}, "
            f"{kafkas}Kafka at {servers.kafka}"
        )
        producer = FlightProducer(servers.kafka, self._names.topic, self._flights)
        try:
            return await self._play(servers, client, producer)
        except ChildFailed as error:
            raise DemoError(str(error), 3) from None
        except ProducerError as error:
            raise DemoError(str(error), 3) from None
        finally:
            producer.close()
            with contextlib.suppress(nats.errors.Error):
                await clean_up(client, servers, self._names)
            await client.close()

    async def _play(self, servers: Servers, client: Client, producer: FlightProducer) -> Outcome:
        bridge = await self._start_bridge()
        self._tell("the bridge is up: Kafka topic → JetStream stream")
        async with _background(self._pump(producer), self._look(client)) as check:
            self._check = check
            await self._start_workers(self._settings.workers)
            self._tell(
                f"{self._settings.workers} workers share {self._settings.partitions} partitions"
            )
            work_started = time.monotonic()
            await self._kill_workers()
            await self._start_two_workers()
            await self._stop_worker()
            bridge = await self._kill_bridge(bridge, producer)
            await self._kill_broker(servers)
            self._produced_max = self._settings.records
            self.board.phase = "no more faults: working off the rest"
            stalled = not await self._finish()
            work_seconds = time.monotonic() - work_started
            self.board.phase = "reading the result"
        await self._end_children([*self._workers.values(), bridge])
        self._collect()
        sink = await read_sink(client, self._names.bucket)
        return Outcome(
            servers=servers,
            board=self.board,
            faults=self._faults,
            places=producer.places,
            sink=sink,
            seconds=self._now_s(),
            work_seconds=work_seconds,
            stalled=stalled,
        )

    # ---- the faults ------------------------------------------------------------------------------

    async def _kill_workers(self) -> None:
        await self._due("kill", "the first fault is coming: workers will be killed")
        living = sorted(self._workers)
        count = max(1, round(len(living) * 0.6))
        victims = sorted(self._random.sample(living, count))
        before = self.board.shares()
        owned = {p: victim for victim in victims for p in before.get(victim, [])}
        with self._wanting_backlog():
            await self._until(
                lambda: all(self.board.partitions[p].lag > 0 for p in owned),
                "a backlog to kill into",
            )
        fault = self._strike("kill workers", victims, owned)
        killed_ns = {victim: self._workers[victim].kill() for victim in victims}
        for victim in victims:
            self._bury(victim)
        self._tell(f"SIGKILL: {', '.join(victims)}, all at once", is_fault=True)
        await self._await_takeovers(fault, owned, killed_ns, victims)
        await self._settle_shares(fault)
        times = [takeover.seconds for takeover in fault.takeovers]
        self._tell(
            f"{_and(sorted(self._workers))} took over {len(owned)} partitions, "
            f"{min(times, default=0) * 1000:.0f} to {max(times, default=0) * 1000:.0f} ms after"
            " the kill"
        )

    async def _start_two_workers(self) -> None:
        await self._due("start", "two new workers will start")
        fault = self._strike("start workers", [], self.board.partitions)
        names = await self._start_workers(2, fault)
        fault.victims = names
        shares = _and([str(len(fault.shares_after.get(name, []))) for name in names])
        self._tell(f"{_and(names)} started and got their share: {shares} partitions")

    async def _stop_worker(self) -> None:
        await self._due("stop", "a worker will be stopped in the middle of its work")
        victim = self._random.choice(
            sorted(name for name, share in self.board.shares().items() if share)
        )
        child = self._workers[victim]
        with self._wanting_backlog():
            fault, stopped_ns = await self._stop_inside_handler(victim, child)
        under_way = self.board.unfinished(victim)
        owned = dict.fromkeys(fault.shares_before.get(victim, []), victim)
        fault.calls_under_way = len(under_way)
        self.board.workers[victim].state = "stopped"
        self._tell(f"SIGSTOP: {victim}, inside {len(under_way)} handler calls", is_fault=True)
        await self._await_takeovers(
            fault, owned, dict.fromkeys(owned.values(), stopped_ns), [victim]
        )
        fault.shares_between = self.board.shares()
        # Only what a new owner has done again can be refused when the old one wakes.
        redone = {(call.kafka_partition, call.offset) for call in under_way}
        await self._until(
            lambda: redone.issubset(
                (effect.kafka_partition, effect.offset)
                for effect in self.board.effects
                if effect.worker != victim
            ),
            "the work under way to be done by others",
        )
        stopped_s = (time.monotonic_ns() - stopped_ns) / 1e9
        await asyncio.sleep(max(0.0, HEARTBEAT_TIMEOUT_S * 1.5 - stopped_s))
        refused_before = self.board.stale_refused
        child.resume()
        self.board.workers[victim].state = "running"
        stopped_s = (time.monotonic_ns() - stopped_ns) / 1e9
        self._tell(
            f"SIGCONT: {victim} wakes after {stopped_s:.1f} s and believes it is still the owner"
        )
        await self._until(
            lambda: (
                not {call.seq for call in under_way}
                & {call.seq for call in self.board.unfinished(victim)}
            ),
            "the late calls to end",
        )
        fault.stale_refused = self.board.stale_refused - refused_before
        self._tell(f"{fault.stale_refused} late effects of {victim} refused by the sink")
        await self._settle_shares(fault)

    async def _stop_inside_handler(self, victim: str, child: Child) -> tuple[Fault, int]:
        """Stop it at a moment when it is inside handler calls; try again if it was not."""
        deadline = time.monotonic() + STEP_S
        while time.monotonic() < deadline:
            before = self.board.shares()
            stopped_ns = child.stop()
            self._collect()
            if self.board.unfinished(victim) and all(
                self.board.partitions[p].lag > 0 for p in before.get(victim, [])
            ):
                fault = self._strike("stop a worker", [victim], before.get(victim, []))
                return fault, stopped_ns
            child.resume()
            self._check()
            await asyncio.sleep(PUMP_S)
        raise DemoError(f"{victim} was never inside a handler with a backlog: {self._where()}", 1)

    async def _kill_bridge(self, bridge: Child, producer: FlightProducer) -> Child:
        await self._due("bridge", "the bridge will be killed")
        # The bridge is never far behind, so it is killed in the middle of a burst.
        before = len(producer.places)
        burst = round(self._settings.records * BURST)
        producer.feed(burst)

        def is_on_its_way() -> bool:
            producer.feed(0)
            return len(producer.places) > before + burst // 8 or producer.is_done

        await self._until(is_on_its_way, "records to be on their way", every_s=0)
        fault = self._strike("kill the bridge", ["bridge"], self.board.partitions)
        bridge.kill()
        self._family.dismiss(bridge)
        await bridge.gone()
        await self._count_moved(self._client)
        on_the_way = len(producer.places) - self.board.moved
        fault.note = f"{on_the_way} records were in Kafka and not yet in the stream"
        self._tell(f"SIGKILL: bridge, with {on_the_way} records on the way", is_fault=True)
        at = time.monotonic()
        moved = self.board.moved
        producer.feed(burst)  # so that the new one has something to do in any case
        bridge = await self._start_bridge()
        await self._until(lambda: self.board.moved > moved, "the bridge to move records again")
        fault.recovered_s = time.monotonic() - at
        fault.shares_after = self.board.shares()
        self._tell(
            "a new bridge read its place from the stream: "
            f"moving again after {fault.recovered_s:.2f} s"
        )
        return bridge

    async def _kill_broker(self, servers: Servers) -> None:
        if servers.broker is None:
            self._tell("the NATS server is not the demo's own: it is not killed")
            return
        await self._due("broker", "the broker will be killed")
        await self._settle_shares(None)
        epochs = {number: line.epoch for number, line in self.board.partitions.items()}
        fault = self._strike("kill the broker", ["broker"], self.board.partitions)
        servers.broker.kill()
        self._family.dismiss(servers.broker)
        self._tell("SIGKILL: broker", is_fault=True)
        await servers.broker.gone()
        at = time.monotonic()
        settled = len(self.board.settled)
        servers.broker = start_broker(self._family, port_of(servers.nats))
        await servers.broker.ready()
        await self._until(lambda: len(self.board.settled) > settled + MAX_LANES, "work to go on")
        fault.recovered_s = time.monotonic() - at
        await self._until(lambda: time.monotonic() - at > QUIET_S, "moves that would show")
        fault.shares_after = self.board.shares()
        fault.moved_partitions = sorted(
            number for number, line in self.board.partitions.items() if line.epoch != epochs[number]
        )
        self._tell(
            f"the broker is back on its store: working again after {fault.recovered_s:.2f} s, "
            f"{len(fault.moved_partitions)} partitions moved"
        )

    # ---- steps -----------------------------------------------------------------------------------

    async def _due(self, moment: str, phase: str) -> None:
        """Wait until so much is handled that the fault is due, and a backlog is there."""
        self.board.phase = phase
        handled = self._moments.pop(moment)
        self._produced_max = min(self._moments.values(), default=self._settings.records)
        with self._wanting_backlog():
            await self._until(
                lambda: (
                    len(self.board.settled) >= handled and self.board.backlog >= self._ahead // 2
                ),
                f"{handled} records to be handled and a backlog",
                seconds=2 * STEP_S,
            )

    @contextlib.contextmanager
    def _wanting_backlog(self) -> Iterator[None]:
        self._wants_backlog = True
        try:
            yield
        finally:
            self._wants_backlog = False

    def _strike(self, name: str, victims: list[str], partitions: Iterable[int]) -> Fault:
        self._collect()
        fault = Fault(
            name=name,
            at_s=self._now_s(),
            victims=victims,
            backlog=self.board.backlog,
            backlog_by_partition={p: self.board.partitions[p].lag for p in sorted(partitions)},
            shares_before=self.board.shares(),
        )
        self._faults.append(fault)
        return fault

    async def _await_takeovers(
        self,
        fault: Fault,
        owned: dict[int, str],
        since_ns: dict[str, int],
        not_by: Sequence[str],
    ) -> None:
        """Wait for the first handler call of each partition elsewhere; note how long it took."""

        def all_taken() -> bool:
            return all(
                self.board.first_call_after(since_ns[victim], partition, not_by)
                and self.board.partitions[partition].owner not in not_by
                for partition, victim in owned.items()
            )

        await self._until(all_taken, "the others to take over")
        for partition, victim in sorted(owned.items()):
            call = self.board.first_call_after(since_ns[victim], partition, not_by)
            if call is not None:
                seconds = (call.time - since_ns[victim]) / 1e9
                fault.takeovers.append(
                    Takeover(partition, victim, call.worker, call.epoch, seconds)
                )
        fault.moved_partitions = sorted(owned)

    async def _settle_shares(self, fault: Fault | None) -> None:
        """Wait until the living share the partitions evenly, and note who has what."""

        def is_even() -> bool:
            shares = self.board.shares()
            sizes = [len(share) for share in shares.values()]
            return (
                shares.keys() == self._workers.keys()
                and sum(sizes) == self._settings.partitions
                and max(sizes) - min(sizes) <= 1
            )

        await self._until(is_even, "the partitions to be shared evenly")
        if fault is not None:
            fault.shares_after = self.board.shares()

    async def _start_workers(self, count: int, fault: Fault | None = None) -> list[str]:
        names = [f"worker-{self._next_worker + number}" for number in range(count)]
        self._next_worker += count
        for name in names:
            self.board.workers[name] = WorkerLine()
            spec = WorkerSpec(
                name=name,
                nats=self._servers.nats,
                stream=self._names.stream,
                group=self._names.group,
                bucket=self._names.bucket,
                key_rule=self._names.key_rule,
                partitions=self._settings.partitions,
                max_lanes=MAX_LANES,
                work_s=self._settings.work_ms / 1000,
                directory=str(self._directory),
                ready_file=str(self._directory / f"{name}.ready"),
            )
            self._workers[name] = self._family.start(
                name, "millstream.demo.worker", msgspec.json.encode(spec).decode()
            )
        for name in names:
            await self._workers[name].ready()
            self.board.workers[name].state = "running"
        await self._settle_shares(fault)
        return names

    def _bury(self, worker: str) -> None:
        self.board.workers[worker].state = "killed"
        self._family.dismiss(self._workers.pop(worker))

    async def _start_bridge(self) -> Child:
        bridge = self._family.start(
            "bridge",
            *("millstream", "bridge", "run"),
            *("--kafka", self._servers.kafka, "--nats", self._servers.nats),
            *("--topic", self._names.topic, "--stream", self._names.stream),
            *("--subject", self._names.subject),
            *("--ready-file", str(self._directory / "bridge.ready"), "--end-with-stdin"),
        )
        await bridge.ready()
        return bridge

    async def _finish(self) -> bool:
        """Wait until everything is handled; False when nothing moves any more."""
        last, since = -1, time.monotonic()
        while len(self.board.settled) < self._settings.records:
            if len(self.board.settled) > last:
                last, since = len(self.board.settled), time.monotonic()
            if time.monotonic() - since > STALL_S:
                self._tell(f"nothing was handled for {STALL_S:.0f} s: the run is ended")
                return False
            self._check()
            self._family.check()
            await asyncio.sleep(LOOK_S)
        await self._count_moved(self._client)  # the last look may have been before the last records
        return True

    async def _end_children(self, children: Iterable[Child]) -> None:
        """Let them finish what they have under way, all at the same time."""
        async with asyncio.TaskGroup() as ending:
            for child in children:
                self._family.dismiss(child)
                ending.create_task(child.terminate(), name=f"end {child.name}")

    async def _until(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        seconds: float = STEP_S,
        every_s: float = PUMP_S,
    ) -> None:
        """Wait for a condition on the board. Raises DemoError when it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DemoError(f"waited {seconds:.0f} s in vain for {what}: {self._where()}", 1)
            self._check()
            self._family.check()
            await asyncio.sleep(every_s)

    def _where(self) -> str:
        """How far the run is, for an error that has one line."""
        board = self.board
        lags = {number: line.lag for number, line in board.partitions.items() if line.lag}
        return (
            f"{board.produced} produced, {board.moved} moved, {len(board.settled)} handled, "
            f"behind by partition {lags}, owners {board.shares()}"
        )

    # ---- what goes on all the time ---------------------------------------------------------------

    async def _pump(self, producer: FlightProducer) -> None:
        """Keep Kafka so many records ahead of the workers."""
        while True:
            self._feed(producer)
            self.board.note_produced(producer.acknowledged)
            self._collect()
            await asyncio.sleep(PUMP_S)

    def _feed(self, producer: FlightProducer) -> None:
        fed = self.board.produced + producer.in_flight
        is_short = self.board.backlog + producer.in_flight < self._ahead // 2
        if self._wants_backlog and is_short and fed >= self._produced_max:
            self._produced_max = fed + self._ahead
        room = self._ahead - (self.board.backlog + producer.in_flight)
        producer.feed(max(0, min(room, self._produced_max - fed, FED_AT_ONCE)))

    async def _look(self, client: Client) -> None:
        """Ask the group who owns what, and the stream how much it has."""
        while True:
            if client.is_connected:
                with contextlib.suppress(
                    GroupError, nats.errors.Error, nats.js.errors.Error, TimeoutError
                ):
                    await self._count_moved(client)
                    view = await read_view(client, self._names.group)
                    for number, record in view.partitions.items():
                        self.board.note_owner(number, record.owner, record.epoch)
            self.board.elapsed_s = self._now_s()
            self.changed.set()
            await asyncio.sleep(LOOK_S)

    async def _count_moved(self, client: Client) -> None:
        info = await client.jetstream().stream_info(self._names.stream)
        self.board.moved = info.state.messages

    def _collect(self) -> None:
        """Take in what the workers wrote down."""
        self.board.note_calls(self._calls.new())
        self.board.note_effects(self._effects.new())
        self.board.elapsed_s = self._now_s()

    def _now_s(self) -> float:
        return time.monotonic() - self._started

    def _tell(self, text: str, *, is_fault: bool = False) -> None:
        self.board.happenings.append(Happening(self._now_s(), text, is_fault))
        self.changed.set()


@contextlib.asynccontextmanager
async def _background(*work: Coroutine[None, None, None]) -> AsyncIterator[Callable[[], None]]:
    """Run coroutines beside the block. Yields a function that raises what one of them raised."""
    tasks = [asyncio.create_task(one, name="demo background") for one in work]

    def check() -> None:
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    try:
        yield check
    finally:
        # More than once: a client's wait_for may take a cancellation for a reply that came at the
        # same moment (Python 3.11), and its caller goes on as if nothing had been asked of it.
        pending = set(tasks)
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=LOOK_S)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
