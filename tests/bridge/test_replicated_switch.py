"""A group that takes over from Kafka on three nodes: its records are on as many as the stream."""

from pathlib import Path

import nats
import pytest

from millstream_bridge import cut_over
from tests.bridge.moves import a_route, move_all
from tests.bridge.test_cutover import commit
from tests.helpers.cluster import NatsCluster
from tests.helpers.kafka import Kafka
from tests.helpers.require import need

pytestmark = [pytest.mark.slow, pytest.mark.real_server]


async def test_a_group_that_is_cut_over_has_the_replicas_of_its_stream(
    mock: Kafka, topic: str, tmp_path: Path
) -> None:
    """As one that its member makes; with one replica it would stand when that node goes."""
    need("nats")
    mock.create_topic(topic, 1)
    mock.produce(topic, [{"partition": 0, "key": b"k", "value": b"v"}] * 2)
    commit(mock, topic, topic, {0: 1})
    with NatsCluster(tmp_path) as cluster:
        client = await nats.connect(cluster.urls)
        try:
            await cluster.until_ready(client)
            url, route = ",".join(cluster.urls), a_route(topic, replicas=3)
            await move_all(mock.bootstrap, url, route)
            cut = await cut_over(
                kafka=mock.bootstrap,
                nats=url,
                route=route,
                kafka_group=topic,
                group=topic,
                is_stopped=True,
                apply=True,
            )
            bucket = await client.jetstream().stream_info(f"KV_MILLSTREAM_{topic}")
        finally:
            await client.close()

    assert cut.applied, cut.problems
    assert bucket.config.num_replicas == 3
