"""A disk without room: publishes are refused, nothing acknowledged is lost, room brings it back.

The limit is the operating system's own on the size of a file (RLIMIT_FSIZE): a write that would go
past it is cut short or fails, exactly as on a full disk, and the server cannot tell the difference.
"""

import sys
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import APIError

from tests.helpers.servers import EMBEDDED, Server

LIMIT_BYTES = 200_000

CRAMPED = f"""
import resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, hard))
from millstream.__main__ import main
sys.argv[0] = "millstream"
sys.exit(main())
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE on Windows")


class CrampedServer(Server):
    """The broker, able to write files of at most ``LIMIT_BYTES``."""

    def command(self) -> list[str]:
        _, _, _, *arguments = super().command()
        return [sys.executable, "-c", CRAMPED, *arguments]


async def publish_until_refused(jetstream: JetStreamContext) -> tuple[int, APIError]:
    """How many messages were acknowledged, and what the next one was told."""
    for number in range(1000):
        try:
            await jetstream.publish("s", b"%d " % number + b"x" * 1000, timeout=5)
        except APIError as error:
            return number, error
    pytest.fail("the disk never was full")


async def test_a_full_disk_refuses_publishes_and_keeps_what_was_acknowledged(
    tmp_path: Path,
) -> None:
    with CrampedServer(EMBEDDED, tmp_path) as server:
        client = await nats.connect(server.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name="S", subjects=["s"], storage=StorageType.FILE))

        acked, refusal = await publish_until_refused(jetstream)
        state = (await jetstream.stream_info("S")).state
        with pytest.raises(APIError):
            await jetstream.publish("s", b"x" * 1000, timeout=5)
        server.kill()
        server.reopen()
        await client.close()
        client = await nats.connect(server.url)
        jetstream = client.jetstream()
        kept = (await jetstream.stream_info("S")).state
        last = await jetstream.get_msg("S", acked)
        await jetstream.purge_stream("S")
        ack = await jetstream.publish("s", b"room again", timeout=5)
        await client.close()

    assert 150 < acked < 200
    assert refusal.code == 503
    assert (state.messages, state.last_seq) == (acked, acked)
    assert (kept.messages, kept.last_seq) == (acked, acked)
    assert (last.data or b"").startswith(b"%d " % (acked - 1))
    assert ack.seq == acked + 1
