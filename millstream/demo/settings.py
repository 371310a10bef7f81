"""What one run of the demo is told, and the names it uses on the servers."""

from dataclasses import dataclass
from pathlib import Path

RECORDS_DEFAULT = 10_452
WORKERS_DEFAULT = 5
PARTITIONS_DEFAULT = 10
WORK_MS_DEFAULT = 120
MAX_LANES = 16
"""Handler calls at once in one worker: with ``work`` this is how fast a worker can be."""
AHEAD = 0.07
"""How far the producer runs ahead of the workers, as a share of all records."""
RECORDS_PER_PARTITION_MIN = 60
"""With fewer, a fault could not meet a backlog in every partition."""


class DemoError(Exception):
    """The demo cannot go on. ``code`` is the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """The options of ``millstream demo``. None for ``nats`` and ``kafka``: start embedded ones."""

    records: int = RECORDS_DEFAULT
    workers: int = WORKERS_DEFAULT
    partitions: int = PARTITIONS_DEFAULT
    seed: int = 0
    work_ms: int = WORK_MS_DEFAULT
    nats: str | None = None
    kafka: str | None = None
    flights: Path | None = None
    report: Path | None = None
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What the run calls its things. On servers that others use too, a suffix keeps them apart."""

    suffix: str = ""

    @property
    def topic(self) -> str:
        """The Kafka topic, and the first token of all subjects."""
        return f"flights{self.suffix}"

    @property
    def stream(self) -> str:
        """The JetStream stream."""
        return f"FLIGHTS{self.suffix.upper()}"

    @property
    def subject(self) -> str:
        """The bridge's subject template."""
        return f"{self.topic}.{{partition}}.{{key}}"

    @property
    def key_rule(self) -> str:
        """The group's key rule: the same subject, read."""
        return f"{self.topic}.*.{{key}}"

    @property
    def group(self) -> str:
        """The group of workers."""
        return f"tracks{self.suffix}"

    @property
    def bucket(self) -> str:
        """The key-value bucket the effects go to."""
        return f"aircraft{self.suffix}"

    @property
    def streams(self) -> list[str]:
        """Every stream the run leaves on a server, buckets' streams included."""
        return [self.stream, f"KV_{self.bucket}", f"KV_MILLSTREAM_{self.group}"]
