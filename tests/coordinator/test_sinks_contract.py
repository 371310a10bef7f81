"""The public contract of sinks: a right one keeps it in any test framework, wrong ones do not."""

import asyncio
import io
import unittest
from dataclasses import replace

import pytest

from millstream_coordinator.sinks.contract import StaleEpoch, Update, ValueSink
from millstream_coordinator.sinks.mark import Entry, Fenced, Mark, Verdict, entry_key
from millstream_coordinator.sinks.memory import MemorySink
from millstream_coordinator.sinks.testing import (
    Delivery,
    SinkContract,
    ValueSinkContract,
    ValueTrial,
    broken_promises,
)


class Contract(ValueSinkContract):
    """The contract on a kind of memory sink."""

    def __init__(self, kind: type[MemorySink] = MemorySink, *, fences: bool = False) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        self.fences_partitions = fences

    async def open_sink(self) -> ValueSink:
        sink = self.kind()
        sink.entries = self.entries
        return sink


class TestMemorySink(ValueSinkContract):
    """The contract on the sink of tests and simulations."""

    @pytest.fixture(autouse=True)
    def _entries(self) -> None:
        self.entries: dict[str, Entry] = {}

    async def open_sink(self) -> MemorySink:
        sink = MemorySink()
        sink.entries = self.entries
        return sink


async def test_a_right_sink_breaks_no_promise() -> None:
    assert await broken_promises(Contract) == {}


class ForgetsEpochs(MemorySink):
    """It lets a replaced owner's effects through."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        delivery = Delivery(
            key=message.key, partition=message.partition, mark=message.mark, seq=message.seq
        )
        return super().apply_now(replace(delivery, epoch=2), update)


class ForgetsRepeats(MemorySink):
    """It applies a message again."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        where = entry_key(message)
        entry = self.entries.get(where, Entry())
        marks = {number: Mark(mark.epoch, 0) for number, mark in entry.marks.items()}
        self.entries[where] = replace(entry, marks=marks)
        return super().apply_now(message, update)


class HidesStaleEffects(MemorySink):
    """It tells a replaced owner that all is done."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        try:
            return super().apply_now(message, update)
        except StaleEpoch:
            return Verdict.REPEAT


class OneMarkForAll(MemorySink):
    """All keys share one mark."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        newest = {
            number: mark for entry in self.entries.values() for number, mark in entry.marks.items()
        }
        where = entry_key(message)
        self.entries[where] = replace(self.entries.get(where, Entry()), marks=newest)
        return super().apply_now(message, update)


class MarksByPartition(MemorySink):
    """It looks at the partition where the mark is meant."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        delivery = Delivery(
            key=message.key, partition=message.partition, epoch=message.epoch, seq=message.seq
        )
        return super().apply_now(delivery, update)


class FencesByMark(MemorySink):
    """It takes the fence of one half of a partition for the other's."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        epochs = [
            entry.marks[message.mark].epoch
            for entry in self.entries.values()
            if message.mark in entry.marks
        ]
        if message.epoch < max(epochs, default=0):
            self.counters.attempts += 1
            self.counters.refused_stale += 1
            raise StaleEpoch(message.partition, message.epoch, max(epochs))
        return super().apply_now(message, update)


class CountsRefusalsTwice(MemorySink):
    """A refusal counts as two attempts."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        verdict = super().apply_now(message, update)
        self.counters.attempts += verdict is Verdict.REPEAT
        return verdict


class SwallowsErrors(MemorySink):
    """An effect that raises is taken for done."""

    def apply_now(self, message: Fenced, update: Update) -> Verdict:
        def safe(value: bytes | None) -> bytes | None:
            try:
                return update(value)
            except Exception:  # noqa: BLE001 - the bug
                return value

        return super().apply_now(message, safe)


class JudgesWhatWasRead(MemorySink):
    """It writes by what it read before, whatever was written in between."""

    async def apply(self, message: Fenced, update: Update, /) -> Verdict:
        read = self.entries.get(entry_key(message), Entry())
        await asyncio.sleep(0)
        self.entries[entry_key(message)] = read
        return self.apply_now(message, update)


class WritesInTwoSteps(MemorySink):
    """The value first, and a moment later the mark."""

    async def apply(self, message: Fenced, update: Update, /) -> Verdict:
        where = entry_key(message)
        before = self.entries.get(where, Entry())
        verdict = self.apply_now(message, update)
        after = self.entries[where]
        self.entries[where] = replace(after, marks=before.marks)
        await asyncio.sleep(0)
        self.entries[where] = replace(self.entries[where], marks=after.marks)
        return verdict


CAUGHT: list[tuple[type[MemorySink], str]] = [
    (ForgetsEpochs, "test_a_stale_effect_is_refused_with_the_epoch_that_was_seen"),
    (ForgetsRepeats, "test_a_repeat_is_refused"),
    (HidesStaleEffects, "test_a_stale_repeat_is_stale"),
    (OneMarkForAll, "test_keys_have_marks_of_their_own"),
    (MarksByPartition, "test_a_mark_outlives_a_resize"),
    (FencesByMark, "test_halves_of_a_partition_have_epochs_of_their_own"),
    (CountsRefusalsTwice, "test_every_attempt_is_counted"),
    (SwallowsErrors, "test_an_effect_that_raises_leaves_everything_as_it_was"),
    (JudgesWhatWasRead, "test_many_keys_at_once_lose_nothing"),
    (WritesInTwoSteps, "test_a_call_that_is_cancelled_leaves_effect_and_mark_together"),
]


@pytest.mark.parametrize(("kind", "test"), CAUGHT)
async def test_a_sink_that_is_wrong_breaks_the_promise_it_forgot(
    kind: type[MemorySink], test: str
) -> None:
    broken = await broken_promises(lambda: Contract(kind))

    assert test in broken


async def test_a_sink_without_a_fence_is_no_fenced_one() -> None:
    broken = await broken_promises(lambda: Contract(fences=True))

    assert list(broken) == [
        "test_an_owner_at_work_is_fenced_by_its_successors_first_effect",
        "test_an_untouched_keys_next_effect_by_the_old_owner_is_fenced_or_lands_once",
    ]


class Missing(SinkContract):
    """A sink that cannot be opened."""

    async def open(self) -> ValueTrial:
        raise OSError("no such sink")


async def test_a_sink_that_does_not_open_breaks_every_promise() -> None:
    broken = await broken_promises(Missing)

    assert set(broken.values()) == {"OSError: no such sink"}


@pytest.mark.parametrize(
    ("contract", "method"), [(SinkContract, "open"), (ValueSinkContract, "open_sink")]
)
def test_a_contract_of_no_sink_cannot_be_run(contract: type[SinkContract], method: str) -> None:
    with pytest.raises(TypeError, match=f"abstract method '?{method}'?"):
        contract()


def unittest_result(kind: type[MemorySink]) -> unittest.TestResult:
    """Run the contract as a unittest case."""

    class Case(ValueSinkContract, unittest.IsolatedAsyncioTestCase):
        def setUp(self) -> None:
            self.entries: dict[str, Entry] = {}

        async def open_sink(self) -> MemorySink:
            sink = kind()
            sink.entries = self.entries
            return sink

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Case)
    return unittest.TextTestRunner(stream=io.StringIO()).run(suite)


@pytest.mark.parametrize(
    ("kind", "is_right"),
    [(MemorySink, True), (ForgetsRepeats, False)],
)
def test_unittest_runs_the_contract_as_it_is(kind: type[MemorySink], is_right: bool) -> None:
    result = unittest_result(kind)

    assert result.testsRun > 20
    assert result.wasSuccessful() is is_right


def test_a_delivery_without_a_mark_has_its_partitions() -> None:
    assert Delivery(partition=7).mark == 7
    assert Delivery(partition=7, mark=3).mark == 3
