"""What the Kafka side does with the answers of a cluster in motion."""

import ctypes

import pytest
from confluent_kafka import KafkaError

from millstream_bridge.errors import Unreachable
from millstream_bridge.kafka.mock import MockKafka
from millstream_bridge.kafka.source import KafkaSource

LIST_OFFSETS = ctypes.c_int16(2)


def inject(kafka: MockKafka, code: int, times: int) -> None:
    """The next answers to ListOffsets carry this error."""
    errors = [ctypes.c_int(code)] * times
    push = kafka._library.rd_kafka_mock_push_request_errors
    push(ctypes.c_void_p(kafka._cluster), LIST_OFFSETS, ctypes.c_size_t(times), *errors)


async def test_a_leader_on_the_move_is_asked_again() -> None:
    with MockKafka({"t": 1}) as kafka:
        source = KafkaSource(kafka.bootstrap, "t")
        inject(kafka, KafkaError.NOT_LEADER_FOR_PARTITION, 6)
        try:
            marks = await source.watermarks()
        finally:
            await source.close()

    assert (marks[0].low, marks[0].high) == (0, 0)


async def test_a_topic_without_a_leader_yet_is_waited_for_not_refused() -> None:
    with MockKafka({"t": 1}) as kafka:
        kafka._library.rd_kafka_mock_topic_set_error(
            ctypes.c_void_p(kafka._cluster), b"t", ctypes.c_int(KafkaError.LEADER_NOT_AVAILABLE)
        )
        source = KafkaSource(kafka.bootstrap, "t")
        try:
            with pytest.raises(Unreachable, match="topic t"):
                await source.watermarks()
        finally:
            await source.close()
