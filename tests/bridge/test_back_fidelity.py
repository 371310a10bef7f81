"""Kafka → NATS → Kafka: whatever a record was, it is again, byte for byte."""

import asyncio
import itertools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from millstream_bridge import Record
from millstream_bridge.back.runner import BackBridge
from tests.bridge.moves import KEYS, STRANGE_HEADERS, a_route, move_all
from tests.bridge.topics import all_records, await_readable
from tests.helpers.kafka import Kafka
from tests.helpers.servers import Server

PARTITIONS = 3
_numbers = itertools.count()

# Kafka's C client ends a header's name at a NUL, on both sides.
names = st.one_of(
    st.text(max_size=12).map(lambda text: text.replace("\x00", "")),
    st.sampled_from([name for name, _ in STRANGE_HEADERS]),
    st.sampled_from(["a", "A", "Millstream-Source", "Millstream-Origin", "Status", "a:b"]),
)
values = st.one_of(st.none(), st.binary(max_size=40), st.sampled_from([b"", b" ", b"\r\n", b"v"]))
records = st.fixed_dictionaries(
    {
        "partition": st.integers(0, PARTITIONS - 1),
        "key": st.one_of(st.none(), st.binary(max_size=200), st.sampled_from(KEYS)),
        "value": st.one_of(st.none(), st.binary(max_size=300)),
        "timestamp": st.one_of(st.just(-1), st.integers(1, 1_700_000_000_000)),
        "headers": st.lists(st.tuples(names, values), max_size=6),
    }
)


def without_offsets(found: list[Record]) -> list[Record]:
    """The records in order; an offset is a place, and the copy's are other ones."""
    return [record._replace(offset=0) for record in found]


@settings(
    max_examples=3,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # an example is two moves: shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(records, min_size=1, max_size=60))
def test_any_record_comes_back_as_it_was(
    nats_server: Server, kafka: Kafka, produced: list[dict[str, Any]]
) -> None:
    number = next(_numbers)
    topic, copy = f"round-{os.getpid()}-{number}", f"copy-{os.getpid()}-{number}"
    for name in (topic, copy):
        kafka.create_topic(name, PARTITIONS, {"retention.ms": "-1"})  # they look very old
    kafka.produce(topic, produced)
    route = a_route(topic, stream=f"ROUND{number}", subject=f"round{number}.{{partition}}.{{key}}")

    async def there_and_back() -> None:
        await move_all(kafka.bootstrap, nats_server.url, route)
        bridge = BackBridge(
            kafka=kafka.bootstrap,
            nats=nats_server.url,
            route=route,
            topic=copy,
            everything=True,
        )
        await bridge.run(stop_at_end=True)

    asyncio.run(there_and_back())

    await_readable(kafka, copy)
    assert without_offsets(all_records(kafka, copy)) == without_offsets(all_records(kafka, topic))


@pytest.mark.parametrize("large", ["chunks", "object-store"])
async def test_a_large_record_is_put_together_again(
    nats_server: Server, mock: Kafka, topic: str, large: str
) -> None:
    copy = f"{topic}-copy"
    mock.create_topic(copy, 1)
    mock.create_topic(topic, 1)
    value = bytes(range(256)) * 6_000
    mock.produce(
        topic,
        [
            {"partition": 0, "key": b"k", "value": b"before", "timestamp": 1_357_034_400_000},
            {"partition": 0, "key": b"k", "value": value, "timestamp": 1_357_034_400_001},
            {"partition": 0, "key": b"k", "value": b"after", "timestamp": 1_357_034_400_002},
        ],
    )
    route = a_route(topic, large=large)
    await move_all(mock.bootstrap, nats_server.url, route)

    bridge = BackBridge(
        kafka=mock.bootstrap, nats=nats_server.url, route=route, topic=copy, everything=True
    )
    await bridge.run(stop_at_end=True)

    assert without_offsets(all_records(mock, copy)) == without_offsets(all_records(mock, topic))
