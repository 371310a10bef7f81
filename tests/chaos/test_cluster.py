"""Three nats-servers as one cluster: what is stored outlives the leader of its stream."""

from pathlib import Path

import nats
import pytest
from nats.errors import Error
from nats.js.errors import Error as JetStreamError

from tests.helpers import require
from tests.helpers.cluster import NatsCluster

pytestmark = [pytest.mark.slow, pytest.mark.real_server]


async def test_a_stream_goes_on_after_its_leader_was_killed_and_the_leader_comes_back(
    tmp_path: Path,
) -> None:
    require.need("nats")
    with NatsCluster(tmp_path) as cluster:
        client = await nats.connect(
            cluster.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
        )
        await cluster.until_ready(client)
        stream = client.jetstream()
        await stream.add_stream(name="ORDERS", subjects=["orders"], num_replicas=3)
        await stream.publish("orders", b"before")
        first = await cluster.leader_of(client, "ORDERS")

        first.kill()

        second = await cluster.leader_of(client, "ORDERS")
        assert second is not first
        assert not first.is_running
        while True:  # its new leader may not take messages at once
            try:
                await stream.publish("orders", b"after")
                break
            except (Error, JetStreamError):
                assert second.is_running
        await first.restart()
        await cluster.until_current(client, "ORDERS")
        assert (await stream.stream_info("ORDERS")).state.messages == 2
        await client.close()


async def _ignore(_: Exception) -> None:
    """A server is killed on purpose."""
