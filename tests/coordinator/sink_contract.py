"""What any fenced sink must do, as tests: subclass `SinkContract` with an ``opened`` fixture.

``opened`` returns a function that opens the same sink once more, as another process would: a
replaced owner and its successor never share one object.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from millstream_coordinator.sinks.sinks import Sink, StaleEpoch, Update, Verdict

Open = Callable[[], Awaitable[Sink]]


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One delivery of a message, as far as a sink looks at it."""

    key: bytes | None = b"N14228"
    partition: int = 3
    epoch: int = 1
    seq: int = 1


def appended(text: str) -> Update:
    """An effect that shows order and repetition: the value is the list of what was applied."""

    def update(value: bytes | None) -> bytes:
        before = json.loads(value) if value else []
        return json.dumps([*before, text]).encode()

    return update


async def content(sink: Sink, key: bytes = b"N14228") -> list[str]:
    """What `appended` left."""
    value = await sink.value(key)
    return list(json.loads(value)) if value else []


class SinkContract:
    """The contract of `Sink`."""

    async def test_effects_follow_one_another(self, opened: Open) -> None:
        sink = await opened()

        verdicts = [await sink.apply(Delivery(seq=it), appended(str(it))) for it in (1, 4, 9)]

        assert verdicts == [Verdict.APPLY] * 3
        assert await content(sink) == ["1", "4", "9"]

    async def test_a_repeat_is_refused(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(seq=5), appended("first"))

        verdict = await sink.apply(Delivery(seq=5), appended("again"))

        assert verdict is Verdict.REPEAT
        assert await content(sink) == ["first"]

    async def test_a_lower_seq_is_a_repeat(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(seq=5), appended("5"))

        assert await sink.apply(Delivery(seq=4), appended("4")) is Verdict.REPEAT

    async def test_a_repeat_under_a_new_epoch_is_refused(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(seq=5, epoch=1), appended("old owner"))

        verdict = await sink.apply(Delivery(seq=5, epoch=2), appended("new owner"))

        assert verdict is Verdict.REPEAT
        assert await content(sink) == ["old owner"]

    async def test_a_repeat_is_refused_by_another_object(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        await first.apply(Delivery(seq=5), appended("first"))

        assert await second.apply(Delivery(seq=5), appended("second")) is Verdict.REPEAT

    async def test_a_stale_effect_is_refused_with_the_epoch_that_was_seen(
        self, opened: Open
    ) -> None:
        old, new = await opened(), await opened()
        await old.apply(Delivery(seq=5, epoch=7), appended("5 by old"))
        await new.apply(Delivery(seq=6, epoch=9), appended("6 by new"))

        with pytest.raises(StaleEpoch) as refused:
            await old.apply(Delivery(seq=7, epoch=7), appended("7 by old"))

        assert refused.value.seen_epoch == 9
        assert await content(new) == ["5 by old", "6 by new"]

    async def test_a_stale_repeat_is_stale(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(seq=6, epoch=9), appended("new"))

        with pytest.raises(StaleEpoch):
            await sink.apply(Delivery(seq=6, epoch=7), appended("old"))

    async def test_the_next_effect_of_an_untouched_key_is_taken_from_the_old_owner_once(
        self, opened: Open
    ) -> None:
        # What the mark cannot know: that the partition moved. The effect is the right one.
        old, new = await opened(), await opened()
        await new.apply(Delivery(key=b"other", seq=9, epoch=2), appended("other"))

        late = await old.apply(Delivery(seq=6, epoch=1), appended("6"))
        again = await new.apply(Delivery(seq=6, epoch=2), appended("6"))
        following = await new.apply(Delivery(seq=8, epoch=2), appended("8"))

        assert (late, again, following) == (Verdict.APPLY, Verdict.REPEAT, Verdict.APPLY)
        assert await content(new) == ["6", "8"]

    async def test_an_old_owner_never_comes_after_the_new_one_however_they_race(
        self, opened: Open
    ) -> None:
        old, new = await opened(), await opened()
        sequences = range(1, 13)

        async def late_effects() -> None:
            for seq in sequences:
                try:
                    await old.apply(Delivery(seq=seq, epoch=1), appended(f"{seq} by old"))
                except StaleEpoch:
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(late_effects())
            for seq in sequences:
                await new.apply(Delivery(seq=seq, epoch=2), appended(f"{seq} by new"))

        applied = await content(new)
        owners = [text.split()[-1] for text in applied]
        assert [int(text.split()[0]) for text in applied] == list(sequences)
        assert owners == sorted(owners, reverse=True)

    async def test_keys_have_marks_of_their_own(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(key=b"a", seq=9, epoch=9), appended("a"))

        verdict = await sink.apply(Delivery(key=b"b", seq=1, epoch=1), appended("b"))

        assert verdict is Verdict.APPLY
        assert await content(sink, b"b") == ["b"]

    async def test_a_key_in_two_partitions_has_a_mark_for_each(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(partition=0, seq=90, epoch=9), appended("0:90"))

        first = await sink.apply(Delivery(partition=1, seq=2, epoch=1), appended("1:2"))
        repeat = await sink.apply(Delivery(partition=0, seq=90, epoch=9), appended("again"))

        assert (first, repeat) == (Verdict.APPLY, Verdict.REPEAT)
        assert await content(sink) == ["0:90", "1:2"]

    async def test_keyless_messages_have_no_order(self, opened: Open) -> None:
        sink = await opened()

        verdicts = [
            await sink.apply(Delivery(key=None, seq=seq, epoch=epoch), appended(str(seq)))
            for seq, epoch in ((5, 2), (4, 2), (3, 1))
        ]

        assert verdicts == [Verdict.APPLY] * 3

    async def test_a_keyless_repeat_is_refused_under_any_epoch(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(key=None, seq=5, epoch=2), appended("5"))

        verdicts = [
            await sink.apply(Delivery(key=None, seq=5, epoch=epoch), appended("again"))
            for epoch in (1, 2, 3)
        ]

        assert verdicts == [Verdict.REPEAT] * 3

    @pytest.mark.parametrize("key", [b"", b"a.b", b"*", b"\xff\x00 %", b"k" * 300, b"=none"])
    async def test_any_bytes_are_a_key(self, opened: Open, key: bytes) -> None:
        sink = await opened()
        await sink.apply(Delivery(key=key, seq=1), appended("1"))

        repeat = await sink.apply(Delivery(key=key, seq=1), appended("again"))

        assert repeat is Verdict.REPEAT
        assert await content(sink, key) == ["1"]

    async def test_an_empty_value_is_a_value(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        await first.apply(Delivery(seq=1), lambda _: b"")

        await second.apply(Delivery(seq=2), lambda value: repr(value).encode())

        assert await second.value(b"N14228") == b"b''"

    async def test_a_deleted_value_keeps_its_mark(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        await first.apply(Delivery(seq=1), appended("1"))
        await first.apply(Delivery(seq=2), lambda _: None)

        deleted = await second.value(b"N14228")
        repeat = await second.apply(Delivery(seq=2), appended("again"))
        await second.apply(Delivery(seq=3), appended("3"))

        assert deleted is None
        assert repeat is Verdict.REPEAT
        assert await content(second) == ["3"]

    async def test_an_update_that_raises_leaves_everything_as_it_was(self, opened: Open) -> None:
        sink = await opened()

        def broken(_: bytes | None) -> bytes:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await sink.apply(Delivery(seq=1), broken)

        assert await sink.apply(Delivery(seq=1), appended("1")) is Verdict.APPLY

    async def test_every_attempt_is_counted(self, opened: Open) -> None:
        sink = await opened()
        await sink.apply(Delivery(seq=1, epoch=2), appended("1"))
        await sink.apply(Delivery(seq=1, epoch=2), appended("1"))
        with pytest.raises(StaleEpoch):
            await sink.apply(Delivery(seq=2, epoch=1), appended("2"))

        counters = sink.counters

        assert (counters.attempts, counters.applied) == (3, 1)
        assert (counters.refused_repeat, counters.refused_stale) == (1, 1)
