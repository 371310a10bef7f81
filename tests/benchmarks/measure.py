"""How things are measured here: pairs of runs, and ratios of processor time.

Wall-clock rates on a shared machine drift; the ratio of processor time spent by two servers on the
same load does so much less. A scenario is therefore run in pairs, once on each server, in turn and
in changing order, and what is reported is the median of the pairs' ratios.

The load runs in a process of its own (``tests.benchmarks.load``), so that the processor time read
from the system is the server's alone. Linux only: its scheduler counts nanoseconds per thread.

Another part adds a module with a list of ``Scenario`` and names it in ``__main__``.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.servers import EMBEDDED, REAL, Server

LOAD_TIMEOUT_S = 600
ENOUGH_CPU_S = 1.0
"""A run in which the server worked less than this says little: raise its messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one scenario on one server. ``extra`` holds figures such as latencies (µs)."""

    messages: int
    wall_s: float
    cpu_s: float
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def cpu_us(self) -> float:
        """Processor time of the server per message, in microseconds."""
        return self.cpu_s / self.messages * 1e6

    @property
    def rate(self) -> float:
        """Messages per second of wall clock."""
        return self.messages / self.wall_s

    @property
    def has_enough_cpu(self) -> bool:
        return self.cpu_s >= ENOUGH_CPU_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named load; ``arguments`` go to ``tests.benchmarks.load`` after the name of the load."""

    name: str
    load: str
    messages: int
    arguments: Mapping[str, object] = field(default_factory=dict)

    def shortened(self, divisor: int = 50) -> "Scenario":
        """The same with fewer messages: shows that it works, measures nothing."""
        return Scenario(
            name=self.name,
            load=self.load,
            messages=max(200, self.messages // divisor),
            arguments=self.arguments,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All pairs of one scenario: (embedded, real) samples."""

    scenario: Scenario
    pairs: Sequence[tuple[Sample, Sample]]

    @property
    def ratio(self) -> float:
        """Median of embedded / real processor time per message; below 1 the embedded is cheaper."""
        return statistics.median(one.cpu_us / other.cpu_us for one, other in self.pairs)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio of the pairs."""
        ratios = [one.cpu_us / other.cpu_us for one, other in self.pairs]
        return min(ratios), max(ratios)

    @property
    def has_enough_cpu(self) -> bool:
        return all(sample.has_enough_cpu for pair in self.pairs for sample in pair)

    def median(self, which: int, figure: Callable[[Sample], float]) -> float:
        """Median of a figure over the runs of embedded (0) or real (1)."""
        return statistics.median(figure(pair[which]) for pair in self.pairs)

    def document(self) -> dict[str, object]:
        """The shape of one entry of ``--json``."""
        return {
            "scenario": self.scenario.name,
            "messages": self.scenario.messages,
            "pairs": len(self.pairs),
            "cpu_ratio": round(self.ratio, 3),
            "cpu_ratio_range": [round(value, 3) for value in self.spread],
            "cpu_us": [round(self.median(i, lambda s: s.cpu_us), 4) for i in (0, 1)],
            "per_s": [round(self.median(i, lambda s: s.rate)) for i in (0, 1)],
            "enough_cpu": self.has_enough_cpu,
            "extra": {
                key: [round(self.median(i, _extra(key)), 1) for i in (0, 1)]
                for key in self.pairs[0][0].extra
            },
        }


def _extra(key: str) -> Callable[[Sample], float]:
    return lambda sample: sample.extra[key]


def cpu_seconds(pid: int) -> float:
    """Processor time all threads of the process have had. Raises OSError where /proc has none."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # the thread ended between the two looks
    return total_ns / 1e9


def can_measure() -> bool:
    """Whether this system tells processor time per thread."""
    return Path("/proc/self/schedstat").exists()


def run_load(scenario: Scenario, server: Server) -> Sample:
    """One run of the scenario against the server, in a process of its own."""
    options = {"messages": scenario.messages, "port": server.port, "pid": server.pid}
    command = [sys.executable, "-m", "tests.benchmarks.load", scenario.load]
    for key, value in {**options, **scenario.arguments}.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=LOAD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{scenario.name} on the {server.kind} server: {done.stderr[-2000:]}")
    return Sample(**json.loads(done.stdout))


def compare(
    scenarios: Sequence[Scenario], pairs: int, *, kinds: tuple[str, str] = (EMBEDDED, REAL)
) -> Iterator[Comparison]:
    """Each scenario on two fresh servers, ``pairs`` times on each, the order changing each time."""
    for scenario in scenarios:
        with ExitStack() as stack:
            servers = []
            for kind in kinds:
                store = stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-bench-"))
                servers.append(stack.enter_context(Server(kind, store)))
            samples: list[tuple[Sample, Sample]] = []
            for number in range(pairs):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                found = {which: run_load(scenario, servers[which]) for which in order}
                samples.append((found[0], found[1]))
        yield Comparison(scenario=scenario, pairs=samples)
