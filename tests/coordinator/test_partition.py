"""Partition functions against what their originals answered, and against librdkafka itself."""

import ctypes
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from hypothesis import given, strategies as st

from millstream_coordinator.partitioning.partition import (
    PARTITION_FUNCTIONS,
    Partitioner,
    crc32,
    fnv1a_32,
    kafka,
    murmur2,
    murmur3,
    nats,
    partition_for,
)

VECTORS: dict[str, Any] = json.loads(
    Path(__file__).with_name("partition_vectors.json").read_text(encoding="utf-8")
)
PARTITION_COUNTS = st.integers(1, 2**31 - 1)


@cache
def librdkafka(name: str) -> Callable[[bytes, int], int]:
    """One of librdkafka's own partitioners; they look at nothing but the key and the count."""
    package = Path(confluent_kafka.__file__).parent
    places = [*package.parent.glob("confluent_kafka.libs/librdkafka*")]
    places += package.glob(".dylibs/librdkafka*")
    if not places:
        pytest.skip("confluent-kafka brings no librdkafka of its own here")
    function = getattr(ctypes.CDLL(str(places[0])), f"rd_kafka_msg_partitioner_{name}")
    function.restype = ctypes.c_int32
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    return lambda key, partitions: int(function(None, key, len(key), partitions, None, None))


@pytest.mark.parametrize(("key", "value", "expected"), VECTORS["nats"], ids=lambda it: str(it)[:20])
def test_nats_is_the_servers_partition_of_one_token(
    key: str, value: int, expected: list[int]
) -> None:
    assert fnv1a_32(key.encode()) == value
    assert [nats(key.encode(), modulus) for modulus in VECTORS["nats_moduli"]] == expected


@pytest.mark.parametrize(("subject", "expected"), VECTORS["nats_tokens"])
def test_nats_of_several_tokens_joins_them_by_nothing(subject: str, expected: list[int]) -> None:
    first, second = subject.split(".")[1:]

    keys = [first, second, first + second, second + first, subject]

    assert [nats(key.encode(), 10) for key in keys] == expected


@pytest.mark.parametrize(("key", "value", "expected"), VECTORS["kafka"])
def test_kafka_is_the_java_clients_murmur2(key: str, value: int, expected: list[int]) -> None:
    data = bytes.fromhex(key)

    assert murmur2(data) == value % 2**32
    assert [kafka(data, modulus) for modulus in VECTORS["kafka_moduli"]] == expected


@pytest.mark.parametrize(("key", "value", "expected"), VECTORS["murmur3"])
def test_murmur3_is_pulsars(key: str, value: int, expected: int) -> None:
    data = bytes.fromhex(key)

    assert murmur3(data, 2**31) == value
    assert murmur3(data, 10) == expected


@given(st.binary(max_size=200), PARTITION_COUNTS)
def test_crc32_is_what_librdkafka_computes(key: bytes, partitions: int) -> None:
    # librdkafka keeps the result in a signed 32-bit number; no cluster has so many partitions.
    assert crc32(key, partitions) == librdkafka("consistent")(key, partitions)


@given(st.binary(max_size=200), PARTITION_COUNTS)
def test_kafka_is_what_librdkafka_calls_murmur2(key: bytes, partitions: int) -> None:
    assert kafka(key, partitions) == librdkafka("murmur2")(key, partitions)


@pytest.mark.parametrize(
    ("setting", "partitioner"),
    [
        ("consistent", Partitioner.CRC32),
        ("consistent_random", Partitioner.CRC32),
        ("murmur2", Partitioner.KAFKA),
    ],
)
def test_a_librdkafka_producer_puts_keys_where_we_say(
    setting: str, partitioner: Partitioner
) -> None:
    keys = [b"N14228", b"N24211", b"alice", "zürich".encode(), b"\x00\xff", b"x" * 300, b"1"]
    keys += [f"customer-{number}".encode() for number in range(100)]
    placed: dict[bytes, int] = {}

    def on_delivery(error: object, message: confluent_kafka.Message) -> None:
        assert error is None
        key, partition = message.key(), message.partition()
        assert isinstance(key, bytes)
        assert partition is not None
        placed[key] = partition

    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "partitioner": setting})
    partitions = len(producer.list_topics("keys", timeout=10).topics["keys"].partitions)
    for key in keys:
        producer.produce("keys", value=b"", key=key, on_delivery=on_delivery)
    left = producer.flush(10)

    assert left == 0
    assert partitions > 1
    assert placed == {key: partition_for(partitioner, key, partitions) for key in keys}


@given(st.sampled_from(Partitioner), st.binary(), PARTITION_COUNTS)
def test_every_function_stays_inside_the_partitions(
    partitioner: Partitioner, key: bytes, partitions: int
) -> None:
    assert 0 <= PARTITION_FUNCTIONS[partitioner](key, partitions) < partitions


@pytest.mark.parametrize("partitioner", Partitioner)
def test_the_null_key_has_no_partition(partitioner: Partitioner) -> None:
    assert partition_for(partitioner, None, 12) is None


def test_the_empty_key_has_no_partition_in_librdkafkas_default() -> None:
    assert partition_for(Partitioner.CRC32, b"", 12) is None


@pytest.mark.parametrize("partitioner", [Partitioner.KAFKA, Partitioner.NATS, Partitioner.MURMUR3])
def test_the_empty_key_has_a_partition_elsewhere(partitioner: Partitioner) -> None:
    assert partition_for(partitioner, b"", 12) == PARTITION_FUNCTIONS[partitioner](b"", 12)
