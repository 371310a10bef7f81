"""Records that come from no Kafka: a source of one's own under the bridge and the proof."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from millstream_bridge import (
    Bridge,
    ConfigurationError,
    Polled,
    Positions,
    Record,
    Route,
    TimestampType,
    Watermarks,
    verify,
)
from tests.bridge.moves import a_route, stored_records
from tests.docs.pages import OTHER_SOURCES, blocks
from tests.helpers.servers import Server

PARTITIONS = 2
COUNT = 3_000
MODES = {
    "chain": a_route("archive"),
    "shared": a_route("archive", shared=True),
    "dense": a_route("archive", mode="dense", stream="ARCHIVE-{partition}"),
}


def some_records(count: int = COUNT) -> list[Record]:
    """In partitions one after the other, with a null here and there."""
    return [
        Record(
            n % PARTITIONS,
            n // PARTITIONS,
            1_700_000_000_000 + n,
            TimestampType.CREATE,
            None if n % 7 == 0 else b"key %d" % (n % 5),
            None if n % 11 == 0 else b"value %d" % n,
            (("n", b"%d" % n),),
        )
        for n in range(count)
    ]


class Archive:
    """A `Source`: a list of records. ``before_poll`` is told the next place, and may say no."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        identity: str | None = None,
        before_poll: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._records = records
        self._identity = identity
        self._before_poll = before_poll
        self._next: dict[int, int] = {}
        self._place = 0
        self.is_closed = False

    @property
    def place(self) -> tuple[str, str]:
        return "the archive", "here"

    async def watermarks(self) -> dict[int, Watermarks]:
        counts = [0] * PARTITIONS
        for record in self._records:
            counts[record.kafka_partition] += 1
        return {p: Watermarks(0, count) for p, count in enumerate(counts)}

    async def topic_id(self) -> str | None:
        return self._identity

    async def partition_count(self) -> int:
        return PARTITIONS

    async def known_ends(self, partitions: Sequence[int]) -> dict[int, int]:
        return {}

    async def assign(self, positions: Positions, partitions: Sequence[int]) -> None:
        self._next = {p: positions.get(p, 0) for p in partitions}
        self._place = 0

    async def poll(self, records_max: int, wait_s: float) -> Polled:
        found: list[Record] = []
        if self._before_poll(self._place):
            while len(found) < min(records_max, 100) and self._place < len(self._records):
                record = self._records[self._place]
                self._place += 1
                if record.offset >= self._next.get(record.kafka_partition, 1 << 62):
                    found.append(record)
        if not found:
            await asyncio.sleep(wait_s)
        return Polled(found, {})

    async def close(self) -> None:
        self.is_closed = True


async def move_and_cut_off(nats: str, route: Route, records: Sequence[Record]) -> int:
    """Run a bridge until half is read and some is stored, and end it there; how many were."""

    def before_poll(place: int) -> bool:
        if place < len(records) // 2:
            return True
        if bridge.progress.positions:
            run.cancel()
        return False

    source = Archive(records, before_poll=before_poll)
    bridge = Bridge(source=source, nats=nats, route=route)
    run = asyncio.create_task(bridge.run())
    with pytest.raises(asyncio.CancelledError):
        await run
    assert source.is_closed
    return sum(bridge.progress.positions.values())


@pytest.mark.parametrize("mode", MODES)
async def test_records_of_another_source_arrive_once_though_the_run_is_cut_off_midway(
    nats_server: Server, mode: str
) -> None:
    route, records = MODES[mode], some_records()

    first = await move_and_cut_off(nats_server.url, route, records)
    report = await Bridge(source=Archive(records), nats=nats_server.url, route=route).run(
        stop_at_end=True
    )

    assert 0 < first < COUNT
    assert 0 < report.records <= COUNT - first
    stored = await stored_records(nats_server.url, route, dense_partitions=PARTITIONS)
    assert stored == {p: records[p::PARTITIONS] for p in range(PARTITIONS)}
    assert (await verify(source=Archive(records), nats=nats_server.url, route=route)).equal


async def test_verify_finds_where_another_source_differs(nats_server: Server) -> None:
    route, records = MODES["chain"], some_records(200)
    await Bridge(source=Archive(records), nats=nats_server.url, route=route).run(stop_at_end=True)
    source = Archive([*records[:77], records[77]._replace(value=b"other"), *records[78:]])

    proof = await verify(source=source, nats=nats_server.url, route=route)

    assert not proof.equal
    assert proof.difference is not None
    assert (proof.difference.kafka_partition, proof.difference.offset) == (1, 38)
    assert source.is_closed


async def test_a_stream_is_not_continued_from_a_source_with_another_id(nats_server: Server) -> None:
    route, records = MODES["chain"], some_records(20)
    one, other = Archive(records[:10], identity="one"), Archive(records, identity="other")
    await Bridge(source=one, nats=nats_server.url, route=route).run(stop_at_end=True)

    with pytest.raises(ConfigurationError, match="its id is other"):
        await Bridge(source=other, nats=nats_server.url, route=route).run(stop_at_end=True)


@pytest.mark.parametrize(
    ("kafka", "source"), [(None, None), ("127.0.0.1:1", Archive([]))], ids=["none", "both"]
)
async def test_a_bridge_has_one_source(kafka: str | None, source: Archive | None) -> None:
    bridge = Bridge(kafka=kafka, source=source, nats="nats://127.0.0.1:1", route=MODES["chain"])

    with pytest.raises(ConfigurationError, match="one of kafka and source"):
        await bridge.run()


KILLED_MIDWAY = """
import asyncio, os, signal
from pathlib import Path
from lines import NATS, ROUTE, Lines
from millstream_bridge import Bridge, Polled

class Deadly(Lines):
    async def poll(self, records_max, wait_s):
        if self._file.tell() < self._path.stat().st_size // 2:
            return await super().poll(100, wait_s)
        if bridge.progress.positions:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.01)
        return Polled([], {})

bridge = Bridge(source=Deadly(Path("readings.txt")), nats=NATS, route=ROUTE)
asyncio.run(bridge.run())
"""


async def test_the_program_on_the_page_goes_on_where_it_was_killed(
    nats_server: Server, tmp_path: Path
) -> None:
    [program] = [it.text for it in blocks(OTHER_SOURCES) if it.file == "lines.py"]
    (tmp_path / "lines.py").write_text(program, encoding="utf-8")
    lines = [f"key{n % 9} {n}" for n in range(3_000)]
    (tmp_path / "readings.txt").write_text("".join(f"{it}\n" for it in lines), encoding="utf-8")

    async def run(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            cwd=tmp_path,
            env={**os.environ, "NATS_URL": nats_server.url},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    killed, _ = await run("-c", KILLED_MIDWAY)
    code, output = await run("lines.py", "readings.txt")

    assert (killed, code) == (-signal.SIGKILL, 0)
    moved, _, proven = output.partition(" moved; the same ")
    assert 0 < int(moved) < len(lines)
    assert proven == f"{len(lines)} on both sides: True\n"
    route = Route(topic="readings", stream="READINGS", subject="readings.{partition}.{key}")
    [stored] = (await stored_records(nats_server.url, route)).values()
    assert [f"{(it.key or b'').decode()} {(it.value or b'').decode()}" for it in stored] == lines
