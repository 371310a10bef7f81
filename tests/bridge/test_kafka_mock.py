"""The mock cluster runs on the library the client itself uses."""

import os
import signal

import pytest
from confluent_kafka import Consumer

from millstream_bridge import ConfigurationError, MockKafka
from millstream_bridge.kafka.mock import library_path


def test_the_library_is_the_one_the_client_has_mapped() -> None:
    path = library_path()

    assert "librdkafka" in path.name
    assert path.is_file()


def test_topics_have_the_partitions_asked_for_and_others_do_not_appear() -> None:
    with MockKafka({"flights": 7, "other": 1}) as mock:
        consumer = Consumer({"bootstrap.servers": mock.bootstrap, "group.id": str(os.getpid())})
        topics = consumer.list_topics(timeout=10).topics
        consumer.close()

    assert {name: len(topic.partitions) for name, topic in topics.items()} == {
        "flights": 7,
        "other": 1,
    }


def test_two_clusters_in_one_process_keep_apart() -> None:
    with MockKafka({"a": 1}) as one, MockKafka({"b": 1}) as other:
        assert one.bootstrap != other.bootstrap


def test_it_lives_on_when_a_signal_comes_that_no_other_thread_takes() -> None:
    """As a child's end does while another is started, when the main thread has all blocked."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with MockKafka({"flights": 1}) as mock:
            consumer = Consumer({"bootstrap.servers": mock.bootstrap, "group.id": str(os.getpid())})
            consumer.list_topics(timeout=10)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            for _ in range(20):  # one of them surely while the cluster waits for requests
                os.kill(os.getpid(), signal.SIGUSR1)
                consumer.poll(0.01)
            topics = consumer.list_topics(timeout=10).topics
            consumer.close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)

    assert "flights" in topics


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_without_partitions_is_refused(partitions: int) -> None:
    with MockKafka() as mock, pytest.raises(ConfigurationError, match="partitions"):
        mock.create_topic("flights", partitions)


def test_a_topic_is_made_once() -> None:
    with MockKafka({"flights": 1}) as mock, pytest.raises(ConfigurationError, match="flights"):
        mock.create_topic("flights", 1)


def test_closing_twice_is_closing_once() -> None:
    mock = MockKafka()

    mock.close()
    mock.close()
