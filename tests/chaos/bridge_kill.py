"""SIGKILL of the bridge and of the server at random moments of a backfill; then the proof.

    python -m tests.chaos.bridge_kill --kills 100 --server-kills 20 [--server real] [--shared]

A bridge (a process of its own) lives for a random while, always with a backlog before it, and is
killed; now and then the server is killed and restarted under it. A last bridge finishes, and the
whole stream is compared with the whole topic. A kill that met no backlog shows nothing: it is done
again, after half the life and with twice the backlog, and counted apart. Prints one JSON line; exit
code 1 if anything is lost, twice or out of order, or if a kill met no backlog however often it was
tried.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from millstream_bridge import Bridge, Route, verify
from millstream_bridge.jetstream.connection import Connection
from tests.helpers.kafka import Kafka, mock_kafka
from tests.helpers.servers import EMBEDDED, REAL, Server

PARTITIONS = 40
BACKLOG = {"bridge": 15_000, "server": 80_000}
"""Records to be moved before a life begins: more than most can move until their end."""
LIFE_S_MAX = 0.25
TRIES_MAX = 5
READY_S_MAX = 60.0


@dataclass(slots=True)
class Outcome:
    """What a run of kills came to."""

    kills: int = 0
    """Kills of a bridge that had more to store."""
    server_kills: int = 0
    kills_repeated: int = 0
    kills_without_backlog: int = 0
    kills_in_flight: int = 0
    """Kills of a bridge that had stored something and had more to store."""
    records: int = 0
    stored: int = 0
    is_exact: bool = False
    difference: str = ""


class Chaos:
    """One topic, one stream, and bridges that do not live long. ``seed`` chooses the moments."""

    def __init__(self, kafka: Kafka, server: Server, folder: Path, *, shared: bool, seed: int):
        self._kafka, self._server, self._folder = kafka, server, folder
        self._random = random.Random(seed)
        self.route = Route(
            topic="flights",
            stream="FLIGHTS",
            subject="flights.{partition}.{key}",
            shared=shared,
        )
        self.outcome = Outcome()
        self._lives = 0

    async def run(self, kills: int, server_kills: int) -> Outcome:
        """So many kills of each, then the end and the proof."""
        self._kafka.create_topic("flights", PARTITIONS)
        lives = ["bridge"] * kills + ["server"] * server_kills
        self._random.shuffle(lives)
        for victim in lives:
            for tries in range(TRIES_MAX):
                await self._keep_backlog(BACKLOG[victim] << tries)
                if await self._live(victim, LIFE_S_MAX / (1 << tries)):
                    break
                self.outcome.kills_repeated += 1
            else:
                self.outcome.kills_without_backlog += 1
        bridge = Bridge(kafka=self._kafka.bootstrap, nats=self._server.url, route=self.route)
        await bridge.run(stop_at_end=True)
        proof = await verify(kafka=self._kafka.bootstrap, nats=self._server.url, route=self.route)
        self.outcome.stored = sum(one.nats.count for one in proof.partitions.values())
        self.outcome.is_exact = proof.equal and proof.records == self.outcome.records
        self.outcome.difference = str(proof.difference or "")
        return self.outcome

    async def _live(self, victim: str, life_s_max: float) -> bool:
        """One bridge, from its start until it, or the server and then it, is killed.

        Whether it still had something to store then.
        """
        self._lives += 1
        ready = self._folder / f"ready{self._lives}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream_bridge", "run", "--kafka", self._kafka.bootstrap),
            *("--nats", self._server.url, "--topic", "flights", "--stream", "FLIGHTS"),
            *("--subject", "flights.{partition}.{key}", "--ready-file", str(ready)),
            *(["--shared"] if self.route.shared else []),
            "--end-with-stdin",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            await _until_there(ready)
            before = await self._last_seq()
            await asyncio.sleep(self._random.uniform(0, life_s_max))
            if victim == "server":
                self._server.kill()
                self.outcome.server_kills += 1
                await self._server.restart()
                await asyncio.sleep(self._random.uniform(0, 2 * life_s_max))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        stored = await self._last_seq()
        if stored >= self.outcome.records:
            return False
        self.outcome.kills += 1
        self.outcome.kills_in_flight += before < stored
        return True

    async def _keep_backlog(self, wanted: int) -> None:
        missing = wanted - (self.outcome.records - await self._last_seq())
        if missing > 0:
            first = self.outcome.records
            records = [
                {"partition": n % PARTITIONS, "key": b"N%d" % (n % 997), "value": b"%d" % n}
                for n in range(first, first + missing)
            ]
            await asyncio.to_thread(self._kafka.produce, "flights", records)
            self.outcome.records += missing

    async def _last_seq(self) -> int:
        """How much is stored, checkpoints included; 0 before the stream is there."""
        connection = await Connection.open(self._server.url, name="chaos")
        try:
            answer = await connection.request("$JS.API.STREAM.INFO.FLIGHTS")
            state = json.loads(answer.payload).get("state", {})
            return int(state.get("messages", 0))
        finally:
            await connection.close()


async def _until_there(path: Path) -> None:
    async with asyncio.timeout(READY_S_MAX):
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - bounded polling
            await asyncio.sleep(0.005)


async def chaos(
    kind: str, folder: Path, *, kills: int, server_kills: int, shared: bool, seed: int
) -> Outcome:
    """One run on a server of ``kind``, with a mock Kafka of its own."""
    with mock_kafka() as kafka, Server(kind, folder / "nats") as server:
        return await Chaos(kafka, server, folder, shared=shared, seed=seed).run(kills, server_kills)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--server-kills", type=int, default=20)
    parser.add_argument("--server", choices=[EMBEDDED, REAL], default=REAL)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millstream-chaos-") as folder:
        outcome = asyncio.run(
            chaos(
                args.server,
                Path(folder),
                kills=args.kills,
                server_kills=args.server_kills,
                shared=args.shared,
                seed=args.seed,
            )
        )
    print(
        json.dumps(
            {"schema": "millstream.chaos.bridge/1", "server": args.server, "seed": args.seed}
            | asdict(outcome)
        )
    )
    return 0 if outcome.is_exact and not outcome.kills_without_backlog else 1


if __name__ == "__main__":
    sys.exit(main())
