"""Partition functions against what their originals answered, and against the originals.

The vectors were made by them and run anywhere. Where the originals are at hand they are asked
again, about random keys: both servers, Kafka's own jars (with a JDK), librdkafka, its producer.
"""

import ctypes
import json
import random
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import confluent_kafka
import mmh3
import pytest
from hypothesis import given, strategies as st
from nats.aio.client import Client

from millstream_coordinator.jetstream.api import Api
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
from tests.helpers import kafka as kafka_helper, require

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


SEED = 20_140
TOKEN_LETTERS = "".join(
    chr(code) for code in range(0x21, 0x250) if chr(code) not in ".*>$%" and chr(code).isprintable()
)
SPLITS = {
    "{{partition(1,1)}}": (1, (0,)),
    "{{partition(2,1)}}": (2, (0,)),
    "{{partition(7,1)}}": (7, (0,)),
    "{{partition(1000,2)}}": (1000, (1,)),
    "{{partition(16,1,2)}}": (16, (0, 1)),
    "{{partition(16,2,1)}}": (16, (1, 0)),
    "{{partition(48,1,2)}}": (48, (0, 1)),
    "{{partition(2147483647,2,2)}}": (2**31 - 1, (1, 1)),
}


async def test_the_server_puts_random_tokens_where_we_say(client: Client, name: str) -> None:
    chance = random.Random(SEED)
    pairs = [
        [
            "".join(chance.choices(TOKEN_LETTERS, k=chance.choice([1, 2, 3, 5, 8, 16, 40])))
            for _ in range(2)
        ]
        for _ in range(250)
    ]
    transform = {"src": f"{name}.*.*", "dest": ".".join([f"to.{name}", *SPLITS])}
    config = {"name": name, "subjects": [f"{name}.*.*"], "subject_transform": transform}
    await Api(client, 5.0).call(f"STREAM.CREATE.{name}", config)

    for one, other in pairs:
        await client.jetstream().publish(f"{name}.{one}.{other}", b"")

    stored = [await client.jetstream().get_msg(name, seq + 1) for seq in range(len(pairs))]
    assert [str(it.subject).split(".")[2:] for it in stored] == [
        [
            str(nats("".join(pair[place] for place in places).encode(), modulus))
            for modulus, places in SPLITS.values()
        ]
        for pair in pairs
    ]


JAVA = """
import java.util.HexFormat;
import java.util.Scanner;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.utils.Utils;

public class Ask {
    public static void main(String[] none) {
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            String[] parts = lines.nextLine().split(" ", -1);
            byte[] key = HexFormat.of().parseHex(parts[0]);
            int partitions = Integer.parseInt(parts[1]);
            System.out.println(Integer.toUnsignedString(Utils.murmur2(key)) + " "
                + BuiltInPartitioner.partitionForKey(key, partitions));
        }
    }
}
"""


def test_kafkas_own_jars_put_random_keys_where_we_say(tmp_path: Path) -> None:
    require.need("kafka")
    try:
        jars = kafka_helper.class_path()
    except require.MissingError as error:
        pytest.skip(str(error))
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    chance = random.Random(SEED)
    asked = [
        (chance.randbytes(length % 70), chance.randint(1, 2**31 - 1)) for length in range(2000)
    ]
    asked += [(b"", 12), (b"N14228", 12), (b"\xff" * 5000, 12)]
    lines = "".join(f"{key.hex()} {partitions}\n" for key, partitions in asked)

    done = subprocess.run(
        ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", jars, str(source)],
        input=lines.encode(),
        capture_output=True,
        timeout=120,
        check=False,
    )

    if b"jdk.compiler" in done.stderr:
        pytest.skip("java here is no JDK: it cannot run a source file")
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-1000:]
    assert done.stdout.decode().splitlines() == [
        f"{murmur2(key)} {kafka(key, partitions)}" for key, partitions in asked
    ]


def test_murmur3_is_that_of_its_authors_test() -> None:
    # SMHasher's verification of MurmurHash3_x86_32: hashes of 256 keys, hashed.
    hashes = b"".join(
        mmh3.hash(bytes(range(length)), 256 - length, signed=False).to_bytes(4, "little")
        for length in range(256)
    )

    assert mmh3.hash(hashes, 0, signed=False) == 0xB0F57EE3


@given(st.binary(max_size=80), PARTITION_COUNTS)
def test_murmur3_is_the_hash_with_its_sign_cleared(key: bytes, partitions: int) -> None:
    assert murmur3(key, partitions) == (mmh3.hash(key) & 0x7FFFFFFF) % partitions


@given(
    st.sampled_from(Partitioner), st.binary(max_size=200), st.integers(1, 100), st.integers(1, 50)
)
def test_every_function_nests(
    partitioner: Partitioner, key: bytes, coarse: int, factor: int
) -> None:
    function = PARTITION_FUNCTIONS[partitioner]

    assert function(key, coarse * factor) % coarse == function(key, coarse)
