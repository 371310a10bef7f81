"""A signal ends every group of its process, however many there are and were."""

import subprocess
import sys

import pytest

TWO_GROUPS = """
import asyncio
import signal
from millstream_coordinator import Group, MemoryServer


async def main():
    server = MemoryServer()
    server.add_stream("S")
    groups = [Group(server, stream="S", name=name, partitions=1) for name in ("one", "two")]
    for group in groups:

        @group.handler(key="s.{partition}.{key}")
        async def handle(message):
            pass

    runs = [asyncio.create_task(group.run()) for group in groups]
    await server.until(lambda: all(group.partitions for group in groups))
    FIRST
    signal.raise_signal(signal.SIGTERM)
    await asyncio.gather(*runs)
    print(signal.getsignal(signal.SIGTERM).name)


asyncio.run(main())
"""


@pytest.mark.parametrize(
    "first", ["pass", "await groups[1].stop()"], ids=["both", "the other left"]
)
def test_a_signal_ends_all_groups_of_a_process(first: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TWO_GROUPS.replace("FIRST", first)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "SIG_DFL\n", "")
