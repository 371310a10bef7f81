"""A Kafka without Java: the mock cluster inside the librdkafka that confluent-kafka carries.

It listens on 127.0.0.1 with real TCP, starts in a millisecond and serves other processes, for tests
and demos. It keeps, per partition, 5 MiB or 100,000 records and drops the oldest beyond that; it
has no transactions to abort, no compaction, no timestamp lookup and no topic administration.

The functions are called with `ctypes` on the shared object that the client module has already
mapped: a second copy of the library would have its own state. Its path comes from the process's own
memory map (Linux) or from the dynamic linker (macOS).
"""

import ctypes
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType

import confluent_kafka

from ..errors import ConfigurationError

_ERROR_BYTES = 512
_PRODUCER = 0
_SETTLE_S = 0.002
"""The library's thread answers a call and then throws its wake-ups away, that of a next call too,
which it would hear of a second later: so long after an answer no other call is made."""


class MockKafka:
    """A mock cluster of this process; `bootstrap` is its address. Ends with `close` or the process.

    ConfigurationError: librdkafka cannot be found or refuses.
    """

    def __init__(self, topics: dict[str, int] | None = None, *, brokers: int = 1) -> None:
        self._library = _load()
        self._pause = threading.Event()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        config = self._library.rd_kafka_conf_new()
        for name, value in ((b"bootstrap.servers", b"127.0.0.1:1"), (b"log_level", b"0")):
            # The instance only owns the cluster; without servers it would complain on stderr.
            self._library.rd_kafka_conf_set(config, name, value, error, _ERROR_BYTES)
        self._handle = self._library.rd_kafka_new(_PRODUCER, config, error, _ERROR_BYTES)
        if not self._handle:
            raise ConfigurationError(f"librdkafka: {error.value.decode(errors='replace')}")
        # Its thread inherits the mask, and would take a signal for the end of the cluster.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, brokers)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not self._cluster:
            raise ConfigurationError(f"no mock cluster of {brokers} brokers can be made")
        text: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        self.bootstrap = text.decode()
        for topic, partitions in (topics or {}).items():
            self.create_topic(topic, partitions)

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make a topic; ConfigurationError if it is there already or has no partitions."""
        if partitions < 1:
            # The library would end the process.
            raise ConfigurationError(f"mock topic {topic!r}: {partitions} partitions are none")
        code = self._library.rd_kafka_mock_topic_create(
            self._cluster, topic.encode(), partitions, 1
        )
        self._pause.wait(_SETTLE_S)
        if code:
            raise ConfigurationError(
                f"mock topic {topic!r} with {partitions} partitions: error {code}"
            )

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        """Let a broker (from 1 on) lead a partition; ConfigurationError if one is not there."""
        code = self._library.rd_kafka_mock_partition_set_leader(
            self._cluster, topic.encode(), partition, broker
        )
        self._pause.wait(_SETTLE_S)
        if code:
            raise ConfigurationError(f"mock topic {topic!r} partition {partition}: error {code}")

    def close(self) -> None:
        """Stop the cluster; its records are gone."""
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._handle)
            self._cluster = None

    def __enter__(self) -> "MockKafka":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def library_path() -> Path:
    """The shared object of librdkafka that confluent-kafka has mapped into this process."""
    for name in _mapped_objects():
        if "librdkafka" in Path(name).name:
            return Path(name)
    raise ConfigurationError(
        f"confluent-kafka {confluent_kafka.__version__} on {sys.platform} has no librdkafka mapped"
    )


def _mapped_objects() -> list[str]:
    if sys.platform == "darwin":
        linker = ctypes.CDLL(None)
        linker._dyld_get_image_name.restype = ctypes.c_char_p
        count = linker._dyld_image_count()
        return [linker._dyld_get_image_name(place).decode() for place in range(count)]
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) > 5]


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (number, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_partition_set_leader": (number, [pointer, text, ctypes.c_int32, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
