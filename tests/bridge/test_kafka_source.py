"""What the Kafka side does with the answers of a cluster in motion."""

import asyncio
import ctypes
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from millstream_bridge.errors import BridgeError, OffsetGone, RecordError, Unreachable
from millstream_bridge.kafka.admin import KafkaAdmin
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


async def test_a_partition_without_a_leader_is_waited_for() -> None:
    with MockKafka({"t": 2}) as kafka:
        kafka.set_leader("t", 1, -1)
        source, hasty = (KafkaSource(kafka.bootstrap, "t", leader_wait_s=it) for it in (60, 0))
        try:
            with pytest.raises(Unreachable, match="topic t partition 1 has no leader"):
                await hasty.watermarks()
            asking = asyncio.create_task(source.watermarks())
            await asyncio.sleep(0.2)
            kafka.set_leader("t", 1, 1)
            marks = await asking
        finally:
            await source.close()
            await hasty.close()

    assert sorted(marks) == [0, 1]


class Silent:
    """A client whose first questions for a partition's ends bring no answer in time."""

    def __init__(self, client: Any, times: int) -> None:
        self._client, self._times = client, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> Any:
        self._times -= 1
        if self._times >= 0:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer"))
        return self._client.get_watermark_offsets(place, timeout=timeout)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_leader_that_does_not_answer_is_looked_for_once_more(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """One that was just killed takes all of a question's time; by then another one may lead."""
    with MockKafka({"t": 1}) as kafka:
        source = KafkaSource(kafka.bootstrap, "t")
        try:
            await source.watermarks()
            silent = Silent(source._client(), times)
            monkeypatch.setattr(source, "_client", lambda: silent)
            if times == 1:
                assert (await source.watermarks())[0].high == 0
            else:
                with pytest.raises(Unreachable, match="no answer"):
                    await source.watermarks()
        finally:
            await source.close()


async def test_that_kafka_is_still_asked_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream_bridge.kafka.clients.FIRST_S", 0.2)
    nowhere = "127.0.0.1:2"
    admin, source = KafkaAdmin(nowhere, timeout_s=0.4), KafkaSource(nowhere, "t", timeout_s=0.4)
    with caplog.at_level("INFO"):
        for ask in (admin.topics, admin.topics, source.watermarks):
            with pytest.raises(Unreachable):
                await ask()
    await admin.close()
    await source.close()

    told = [it.message for it in caplog.records if "has not answered yet" in it.message]
    assert [it.partition(" (")[0] for it in told] == [f"Kafka at {nowhere} has not answered yet"]


class Coming:
    """An admin client of a group whose coordinator is not there yet for the first questions.

    ``in_part``: of the partitions it says so, and the answer as a whole is good.
    """

    def __init__(self, code: int, times: int, *, in_part: bool = False) -> None:
        self._errors = [KafkaError(code, "ConsumerGroupDescribe: ")] * times
        self._in_part = in_part

    def describe_consumer_groups(self, names: list[str], **_: object) -> dict[str, Future[object]]:
        return {
            names[0]: self._answer(SimpleNamespace(state=SimpleNamespace(name="DEAD"), members=[]))
        }

    def list_consumer_group_offsets(self, *_: object, **__: object) -> dict[str, Future[object]]:
        return {"g": self._answer(SimpleNamespace(topic_partitions=[]))}

    def alter_consumer_group_offsets(self, *_: object, **__: object) -> dict[str, Future[object]]:
        return {"g": self._answer(SimpleNamespace(topic_partitions=[]))}

    def _answer(self, good: object) -> Future[object]:
        answer: Future[object] = Future()
        if self._errors and self._in_part:
            place = SimpleNamespace(topic="t", partition=0, error=self._errors.pop())
            answer.set_result(SimpleNamespace(topic_partitions=[place]))
        elif self._errors:
            answer.set_exception(KafkaException(self._errors.pop()))
        else:
            answer.set_result(good)
        return answer


@pytest.mark.parametrize(
    "code", [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS]
)
async def test_a_groups_coordinator_that_is_only_just_coming_is_asked_again(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Apache Kafka 4.3 says of a group just after its start."""
    admin = KafkaAdmin("127.0.0.1:1")
    admin._client = cast(Any, Coming(code, 3))
    try:
        found = await admin.group("g", [("t", 0)])
        monkeypatch.setattr("millstream_bridge.kafka.admin.COORDINATOR_S", 0.0)
        admin._client = cast(Any, Coming(code, 1_000))
        with pytest.raises(Unreachable, match=f"Describe on group g: {KafkaError(code).name()}"):
            await admin.group("g", [("t", 0)])
    finally:
        await admin.close()

    assert (found.state, found.positions) == ("Dead", {})


async def test_a_state_that_the_client_has_no_word_for_is_a_rebalance() -> None:
    """What librdkafka 2.16 says of a group of the new protocol whose members come or go."""

    class Assigning(Coming):
        def describe_consumer_groups(
            self, names: list[str], **_: object
        ) -> dict[str, Future[object]]:
            state = SimpleNamespace(name="UNKNOWN")
            return {names[0]: self._answer(SimpleNamespace(state=state, members=["m"] * 2))}

    admin = KafkaAdmin("127.0.0.1:1")
    admin._client = cast(Any, Assigning(0, 0))
    try:
        found = await admin.group("g", [("t", 0)])
    finally:
        await admin.close()

    assert (found.state, found.members, found.is_empty) == ("Rebalancing", 2, False)


async def test_so_it_is_where_the_answer_says_it_of_partitions_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Apache Kafka 4.3 says to who sets a group's offsets just after its start."""
    code = KafkaError.NOT_COORDINATOR
    admin = KafkaAdmin("127.0.0.1:1")
    admin._client = cast(Any, coming := Coming(code, 3, in_part=True))
    try:
        await admin.set_positions("g", "t", {0: 1})
        monkeypatch.setattr("millstream_bridge.kafka.admin.COORDINATOR_S", 0.0)
        admin._client = cast(Any, Coming(code, 1_000, in_part=True))
        with pytest.raises(Unreachable, match="Read on group g and topic t: NOT_COORDINATOR"):
            await admin.set_positions("g", "t", {0: 1})
    finally:
        await admin.close()

    assert not coming._errors


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


class Answering:
    """A client at offset 150 of partition 3, whose log begins at 7, that is given one error."""

    def __init__(self, text: str) -> None:
        self._error = KafkaError(KafkaError._AUTO_OFFSET_RESET, text)

    def consume(self, *_: object) -> list["Answering"]:
        return [self]

    def error(self) -> KafkaError:
        return self._error

    def partition(self) -> int:
        return 3

    def offset(self) -> None:
        return None

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(it.topic, it.partition, 150) for it in places]

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        return 7, 300

    def close(self) -> None:
        """Nothing."""


async def told(text: str) -> BridgeError | None:
    """What the source makes of it."""
    source = KafkaSource("127.0.0.1:1", "t")
    source._consumer = cast(Any, Answering(text))
    try:
        return (await source.poll(1, 0)).error
    finally:
        await source.close()


async def test_a_log_that_was_cut_off_is_told_from_one_that_begins_later() -> None:
    """The text is the client's own, as seen with Apache Kafka 4.3 after an unclean election."""
    cut = await told(
        "Partition log truncation detected at offset 150 (leader epoch 0): broker end offset is 50"
        " (offset leader epoch 0). Reset to INVALID.: Local: Partition log truncation detected"
    )
    gone = await told("fetch failed due to requested offset not available on the broker")

    assert type(cut) is RecordError  # on_gap decides of OffsetGone only
    assert "topic t partition 3 offset 150: Kafka has lost records" in str(cut)
    assert type(gone) is OffsetGone
    assert "topic t partition 3 offset 150" in str(gone)
    assert "its log begins at 7" in str(gone)
