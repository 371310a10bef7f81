"""Partition functions: which of N partitions a key belongs to.

A producer and everybody who looks for its messages must agree on this number, so each function here
is somebody else's function, bit for bit, and the tests hold vectors made by the original:

========= ============================================== ==========================================
name      hash                                           whose
========= ============================================== ==========================================
nats      FNV-1a 32 bit, unsigned, mod N                 nats-server's ``{{partition(N,…)}}``
kafka     murmur2, seed 0x9747b28c, sign bit cleared,    Kafka's Java producer and what copies it
          mod N                                          (librdkafka's ``murmur2``)
murmur3   MurmurHash3 x86 32 bit, seed 0, sign bit       Apache Pulsar's ``Murmur3_32Hash``
          cleared, mod N
crc32     CRC-32 (zlib), unsigned, mod N                 librdkafka's default, so also
                                                         confluent-kafka for Python, Go and .NET
========= ============================================== ==========================================

What is hashed differs too. The three Kafka-side functions hash the key's own bytes, before any
escaping. ``nats`` is applied by the server to the subject it sees, so its key is the *token* as it
stands in the subject (``key.py``); of several tokens, their plain concatenation
in the order listed, without a separator. That makes ``ab.c`` and ``a.bc`` one bucket; it is what
the server does (2.15.1), so it is what we do.

A null key has no hash and so no partition of its own; librdkafka's default treats the empty key the
same way. `partition_for` says so with None, and the producer chooses (`Publisher` takes turns).
None of these is consistent hashing: with another N most keys move.
"""

import zlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType

import mmh3

PARTITIONS_MAX = 2**31 - 1
"""Kafka's partition numbers are signed 32 bit, and nats-server refuses more as well."""

_U32 = 0xFFFFFFFF
_POSITIVE = 0x7FFFFFFF


class Partitioner(StrEnum):
    """The name of a partition function, as settings and the command line spell it."""

    NATS = "nats"
    KAFKA = "kafka"
    MURMUR3 = "murmur3"
    CRC32 = "crc32"


def fnv1a_32(data: bytes) -> int:
    """FNV-1a of ``data``, unsigned 32 bit."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & _U32
    return value


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 of ``data``, unsigned 32 bit (the same bits are signed in Java)."""
    multiplier = 0x5BD1E995
    length = len(data)
    value = 0x9747B28C ^ length
    whole = length & ~3
    for place in range(0, whole, 4):
        block = int.from_bytes(data[place : place + 4], "little")
        block = (block * multiplier) & _U32
        block ^= block >> 24
        block = (block * multiplier) & _U32
        value = ((value * multiplier) & _U32) ^ block
    if length > whole:
        value ^= int.from_bytes(data[whole:], "little")
        value = (value * multiplier) & _U32
    value ^= value >> 13
    value = (value * multiplier) & _U32
    return value ^ (value >> 15)


def nats(key: bytes, partitions: int) -> int:
    """nats-server's own ``partition(N, …)`` of the chosen tokens' bytes, joined by nothing."""
    return fnv1a_32(key) % partitions


def kafka(key: bytes, partitions: int) -> int:
    """Kafka's Java producer's, for any key that is not null, the empty one included."""
    return (murmur2(key) & _POSITIVE) % partitions


def murmur3(key: bytes, partitions: int) -> int:
    """MurmurHash3 x86_32 with seed 0 and the sign bit cleared, as Apache Pulsar does."""
    return (mmh3.hash(key, 0, signed=False) & _POSITIVE) % partitions


def crc32(key: bytes, partitions: int) -> int:
    """Kafka's C library's ``consistent``: empty is 0 here, for its default see `partition_for`."""
    return zlib.crc32(key) % partitions


PARTITION_FUNCTIONS: Mapping[Partitioner, Callable[[bytes, int], int]] = MappingProxyType(
    {
        Partitioner.NATS: nats,
        Partitioner.KAFKA: kafka,
        Partitioner.MURMUR3: murmur3,
        Partitioner.CRC32: crc32,
    }
)
"""Each takes the key's bytes and the number of partitions, at least 1, and returns 0 … N-1."""


def partition_for(partitioner: Partitioner, key: bytes | None, partitions: int) -> int | None:
    """Return the key's partition, 0 … ``partitions``-1; None where the producer has to choose.

    That is the null key everywhere, and with ``crc32`` (librdkafka's ``consistent_random``) the
    empty key too.
    """
    if key is None or (not key and partitioner is Partitioner.CRC32):
        return None
    return PARTITION_FUNCTIONS[partitioner](key, partitions)
