"""The contract of fenced sinks as tests, to be run against any sink, with any test framework.

`SinkContract` is a class of ``async def test_…`` methods without a framework: give it ``open``, the
sink opened once more as another process would, in a `Trial` that says what "the effect *text*" is
there and how to read effects back. With pytest and pytest-asyncio::

    class TestFileSink(SinkContract):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.folder = tmp_path

        async def open(self) -> Trial:
            return FileTrial(FileSink(self.folder))

With unittest, ``class TestFileSink(SinkContract, unittest.IsolatedAsyncioTestCase)``. Without
either, `broken_promises` runs them all and returns what failed. A sink of one value per key needs
no Trial of its own: `ValueSinkContract` takes the sink.

Each test starts with an empty sink. Two Trials never share an object: they are a replaced owner and
its successor. What is shown is that *this* sink keeps the promises of `mark` wherever the tests
look: repeats, stale owners, races, effects that fail, and a caller that is cancelled at any moment.
"""

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, final

from .contract import SinkCounters, StaleEpoch, Update, ValueSink
from .mark import Fenced, Verdict


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One delivery of a message, as far as a sink looks at it; ``mark`` -1 is the partition."""

    key: bytes | None = b"N14228"
    partition: int = 3
    mark: int = -1
    epoch: int = 1
    seq: int = 1

    def __post_init__(self) -> None:
        if self.mark < 0:
            object.__setattr__(self, "mark", self.partition)


class EffectFailed(Exception):
    """What a Trial's effect raises when it is told to fail."""


class BrokenPromise(AssertionError):
    """The sink did something else than the contract says."""


class Trial(Protocol):
    """One opened sink, with effects that show order and repetition."""

    @property
    def counters(self) -> SinkCounters:
        """The sink's."""

    async def apply(self, message: Fenced, text: str, *, fails: bool = False) -> Verdict:
        """Apply the effect "``text`` comes after what was there" for the message's key.

        With ``fails`` the effect does what it can, and raises `EffectFailed` then.
        """

    async def texts(self, key: bytes) -> list[str]:
        """The effects that are there for the key, in order."""

    async def close(self) -> None:
        """Give back what `open` took; the sink's content stays."""


class SinkContract(ABC):
    """What any fenced sink must do."""

    fences_partitions = False
    """The sink refuses an epoch below the highest it saw in the partition, whatever the key."""
    effects_can_fail = True
    """An effect is code that the sink runs, so that it can raise; else it is plain data."""

    @abstractmethod
    async def open(self) -> Trial:
        """Open the sink once more; the first time in a test it is empty."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Trial]:
        """`open`, and close at the end."""
        trial = await self.open()
        try:
            yield trial
        finally:
            await trial.close()

    @contextlib.asynccontextmanager
    async def two(self) -> AsyncIterator[tuple[Trial, Trial]]:
        """An old owner's sink and a new one's."""
        async with self.opened() as old, self.opened() as new:
            yield old, new

    async def test_effects_follow_one_another(self) -> None:
        async with self.opened() as sink:
            verdicts = [await sink.apply(Delivery(seq=it), str(it)) for it in (1, 4, 9)]

            expect("verdicts", verdicts, [Verdict.APPLY] * 3)
            expect("effects", await sink.texts(b"N14228"), ["1", "4", "9"])

    async def test_a_repeat_is_refused(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(seq=5), "first")

            verdict = await sink.apply(Delivery(seq=5), "again")

            expect("verdict", verdict, Verdict.REPEAT)
            expect("effects", await sink.texts(b"N14228"), ["first"])

    async def test_a_lower_seq_is_a_repeat(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(seq=5), "5")

            expect("verdict", await sink.apply(Delivery(seq=4), "4"), Verdict.REPEAT)
            expect("effects", await sink.texts(b"N14228"), ["5"])

    async def test_a_repeat_under_a_new_epoch_is_refused(self) -> None:
        async with self.two() as (old, new):
            await old.apply(Delivery(seq=5, epoch=1), "old owner")

            verdict = await new.apply(Delivery(seq=5, epoch=2), "new owner")

            expect("verdict", verdict, Verdict.REPEAT)
            expect("effects", await new.texts(b"N14228"), ["old owner"])

    async def test_a_stale_effect_is_refused_with_the_epoch_that_was_seen(self) -> None:
        async with self.two() as (old, new):
            await old.apply(Delivery(seq=5, epoch=7), "5 by old")
            await new.apply(Delivery(seq=6, epoch=9), "6 by new")

            refused = await stale(old.apply(Delivery(seq=7, epoch=7), "7 by old"))

            expect("epoch seen", refused.seen_epoch, 9)
            expect("effects", await new.texts(b"N14228"), ["5 by old", "6 by new"])

    async def test_a_stale_repeat_is_stale(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(seq=6, epoch=9), "new")

            await stale(sink.apply(Delivery(seq=6, epoch=7), "old"))

    async def test_an_untouched_keys_next_effect_by_the_old_owner_is_fenced_or_lands_once(
        self,
    ) -> None:
        # What a key's mark cannot know: that the partition moved. The effect is the right one.
        async with self.two() as (old, new):
            await new.apply(Delivery(key=b"other", seq=9, epoch=2), "other")

            if self.fences_partitions:
                refused = await stale(old.apply(Delivery(seq=6, epoch=1), "6 by old"))
                expect("epoch seen", refused.seen_epoch, 2)
                wanted = [Verdict.APPLY, Verdict.APPLY]
            else:
                late = await old.apply(Delivery(seq=6, epoch=1), "6 by old")
                expect("the old owner's verdict", late, Verdict.APPLY)
                wanted = [Verdict.REPEAT, Verdict.APPLY]
            verdicts = [await new.apply(Delivery(seq=it, epoch=2), str(it)) for it in (6, 8)]

            expect("the new owner's verdicts", verdicts, wanted)
            texts = await new.texts(b"N14228")
            expect("effects", [text.split()[0] for text in texts], ["6", "8"])

    async def test_an_owner_at_work_is_fenced_by_its_successors_first_effect(self) -> None:
        if not self.fences_partitions:
            return
        async with self.two() as (old, new):
            await old.apply(Delivery(seq=5, epoch=1), "5")
            await new.apply(Delivery(key=b"other", seq=9, epoch=2), "other")

            refused = await stale(old.apply(Delivery(seq=6, epoch=1), "6 by old"))

            expect("epoch seen", refused.seen_epoch, 2)
            expect("effects", await new.texts(b"N14228"), ["5"])

    async def test_an_old_owner_never_comes_after_the_new_one_however_they_race(self) -> None:
        async with self.two() as (old, new):
            sequences = range(1, 13)

            async def late_effects() -> None:
                with contextlib.suppress(StaleEpoch):
                    for seq in sequences:
                        await old.apply(Delivery(seq=seq, epoch=1), f"{seq} by old")

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(late_effects())
                for seq in sequences:
                    await new.apply(Delivery(seq=seq, epoch=2), f"{seq} by new")

            texts = await new.texts(b"N14228")
            owners = [text.split()[-1] for text in texts]
            expect("sequences", [int(text.split()[0]) for text in texts], list(sequences))
            expect("owners, the old one first", owners, sorted(owners, reverse=True))

    async def test_many_keys_at_once_lose_nothing(self) -> None:
        async with self.two() as both:
            async with asyncio.TaskGroup() as tasks:
                for number in range(24):
                    delivery = Delivery(key=f"k{number % 12}".encode(), partition=number // 12)
                    tasks.create_task(both[number % 2].apply(delivery, str(number)))

            for number in range(12):
                found = sorted(await both[0].texts(f"k{number}".encode()), key=int)
                expect(f"effects of key k{number}", found, [str(number), str(number + 12)])

    async def test_keys_have_marks_of_their_own(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(key=b"a", seq=9, epoch=9), "a")

            verdict = await sink.apply(Delivery(key=b"b", seq=1, epoch=9), "b")

            expect("verdict", verdict, Verdict.APPLY)
            expect("effects", await sink.texts(b"b"), ["b"])

    async def test_a_key_in_two_partitions_has_a_mark_for_each(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(partition=0, seq=90, epoch=9), "0:90")

            first = await sink.apply(Delivery(partition=1, seq=2, epoch=1), "1:2")
            repeat = await sink.apply(Delivery(partition=0, seq=90, epoch=9), "again")

            expect("verdicts", [first, repeat], [Verdict.APPLY, Verdict.REPEAT])
            expect("effects", await sink.texts(b"N14228"), ["0:90", "1:2"])

    async def test_a_mark_outlives_a_resize(self) -> None:
        async with self.two() as (before, after):
            await before.apply(Delivery(partition=3, seq=7, epoch=4), "7")

            repeat = await after.apply(Delivery(partition=15, mark=3, seq=7, epoch=6), "again")
            following = await after.apply(Delivery(partition=15, mark=3, seq=8, epoch=6), "8")
            await stale(before.apply(Delivery(partition=3, seq=9, epoch=4), "9 by old"))

            expect("verdicts", [repeat, following], [Verdict.REPEAT, Verdict.APPLY])
            expect("effects", await after.texts(b"N14228"), ["7", "8"])

    async def test_halves_of_a_partition_have_epochs_of_their_own(self) -> None:
        async with self.two() as (one, other):
            await one.apply(Delivery(key=b"a", partition=15, mark=3, seq=7, epoch=9), "7")

            verdict = await other.apply(Delivery(key=b"b", partition=3, seq=8, epoch=6), "8")

            expect("verdict", verdict, Verdict.APPLY)

    async def test_keyless_messages_have_no_order(self) -> None:
        async with self.opened() as sink:
            verdicts = [await sink.apply(Delivery(key=None, seq=it), str(it)) for it in (5, 4, 3)]

            expect("verdicts", verdicts, [Verdict.APPLY] * 3)

    async def test_a_keyless_repeat_is_refused_under_any_epoch(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(key=None, seq=5, epoch=2), "5")

            for epoch in (2, 3) if self.fences_partitions else (1, 2, 3):
                verdict = await sink.apply(Delivery(key=None, seq=5, epoch=epoch), "again")
                expect(f"verdict under epoch {epoch}", verdict, Verdict.REPEAT)

    async def test_any_bytes_are_a_key(self) -> None:
        keys = (b"", b"a.b", b"a", b"A", b"*", b">", b"\xff\x00 %", b"%", b"'\"`?:s;--", b"=none")
        async with self.opened() as sink:
            for key in (*keys, b"k" * 300, b"k" * 299 + b"l"):
                verdict = await sink.apply(Delivery(key=key), "1")
                repeat = await sink.apply(Delivery(key=key), "again")

                expect(f"verdicts for {key!r}", [verdict, repeat], [Verdict.APPLY, Verdict.REPEAT])
                expect(f"effects of {key!r}", await sink.texts(key), ["1"])

    async def test_large_epochs_and_sequences_are_kept(self) -> None:
        async with self.two() as (old, new):
            await old.apply(Delivery(epoch=2**40, seq=2**53 + 1), "1")

            repeat = await new.apply(Delivery(epoch=2**40, seq=2**53 + 1), "again")
            following = await new.apply(Delivery(epoch=2**40, seq=2**53 + 2), "2")

            expect("verdicts", [repeat, following], [Verdict.REPEAT, Verdict.APPLY])

    async def test_an_effect_that_raises_leaves_everything_as_it_was(self) -> None:
        if not self.effects_can_fail:
            return
        async with self.opened() as sink:
            try:
                await sink.apply(Delivery(seq=1), "broken", fails=True)
            except EffectFailed:
                pass
            else:
                raise BrokenPromise("what the effect raised did not reach the caller")

            expect("effects", await sink.texts(b"N14228"), [])
            expect("verdict", await sink.apply(Delivery(seq=1), "1"), Verdict.APPLY)
            expect("effects", await sink.texts(b"N14228"), ["1"])

    async def test_a_call_that_is_cancelled_leaves_effect_and_mark_together(self) -> None:
        async with self.two() as (cut, next_owner):
            moments = [*range(12), *(2**it for it in range(4, 14))]
            for seq, moment in enumerate(moments, 1):
                task = asyncio.create_task(cut.apply(Delivery(seq=seq), str(seq)))
                for _ in range(moment):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

                await next_owner.apply(Delivery(seq=seq, epoch=1), str(seq))

                texts = await next_owner.texts(b"N14228")
                wanted = [str(it) for it in range(1, seq + 1)]
                expect(f"effects, cut off at moment {moment}", texts, wanted)

    async def test_every_attempt_is_counted(self) -> None:
        async with self.opened() as sink:
            await sink.apply(Delivery(seq=1, epoch=2), "1")
            await sink.apply(Delivery(seq=1, epoch=2), "1")
            await stale(sink.apply(Delivery(seq=2, epoch=1), "2"))

            seen = sink.counters
            counted = (seen.attempts, seen.applied, seen.refused_repeat, seen.refused_stale)
            expect("attempts, applied, refused repeats, refused stale", counted, (3, 1, 1, 1))


class ValueSinkContract(SinkContract):
    """The contract of a `ValueSink`: give it ``open_sink``; effects are JSON lists in the value."""

    @abstractmethod
    async def open_sink(self) -> ValueSink:
        """Open the sink once more; the first time in a test it is empty."""

    @final
    async def open(self) -> "ValueTrial":
        """See `SinkContract`."""
        return ValueTrial(await self.open_sink())

    async def test_an_empty_value_is_a_value(self) -> None:
        first, second = await self.open_sink(), await self.open_sink()
        await first.apply(Delivery(seq=1), lambda _: b"")

        await second.apply(Delivery(seq=2), lambda value: repr(value).encode())

        expect("value", await second.value(b"N14228"), b"b''")

    async def test_a_deleted_value_keeps_its_mark(self) -> None:
        first, second = await self.open_sink(), await self.open_sink()
        await first.apply(Delivery(seq=1), appended("1"))
        await first.apply(Delivery(seq=2), lambda _: None)

        expect("value", await second.value(b"N14228"), None)
        repeat = await second.apply(Delivery(seq=2), appended("again"))
        await second.apply(Delivery(seq=3), appended("3"))

        expect("verdict", repeat, Verdict.REPEAT)
        expect("value", await second.value(b"N14228"), b'["3"]')


class ValueTrial:
    """The trial of a `ValueSink`."""

    def __init__(self, sink: ValueSink) -> None:
        self.sink = sink

    @property
    def counters(self) -> SinkCounters:
        """See `Trial`."""
        return self.sink.counters

    async def apply(self, message: Fenced, text: str, *, fails: bool = False) -> Verdict:
        """See `Trial`."""
        return await self.sink.apply(message, _failing if fails else appended(text))

    async def texts(self, key: bytes) -> list[str]:
        """See `Trial`."""
        value = await self.sink.value(key)
        return list(json.loads(value)) if value else []

    async def close(self) -> None:
        """See `Trial`; a value sink holds nothing but its caller's connection."""


def appended(text: str) -> Update:
    """An effect that shows order and repetition: the value is the list of what was applied."""

    def update(value: bytes | None) -> bytes:
        before = json.loads(value) if value else []
        return json.dumps([*before, text]).encode()

    return update


def expect(what: str, found: object, wanted: object) -> None:
    """Raise BrokenPromise unless the two are equal."""
    if found != wanted:
        raise BrokenPromise(f"{what}: found {found!r}, wanted {wanted!r}")


async def stale(attempt: Awaitable[Verdict]) -> StaleEpoch:
    """Return what the attempt was refused with. BrokenPromise: it was not."""
    try:
        verdict = await attempt
    except StaleEpoch as refused:
        return refused
    raise BrokenPromise(f"a stale effect was not refused: {verdict}")


async def broken_promises(make: Callable[[], SinkContract]) -> dict[str, str]:
    """Run every test of the contract that ``make`` returns; the failed ones with their reasons.

    ``make`` is called for each test, and the sinks it opens begin empty each time.
    """
    broken = {}
    for name in sorted(dir(make())):
        if name.startswith("test_"):
            try:
                await getattr(make(), name)()
            except Exception as error:  # noqa: BLE001 - a broken sink may raise anything
                broken[name] = f"{type(error).__name__}: {error}"
    return broken


def _failing(_: bytes | None) -> bytes:
    raise EffectFailed
