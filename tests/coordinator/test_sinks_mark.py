"""The rule of fenced sinks: what a mark says, how it is written, where a key's entry is."""

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, strategies as st

from millstream_coordinator.sinks.mark import (
    Mark,
    Verdict,
    decode_marks,
    encode_marks,
    entry_key,
    judge,
    key_of_entry,
)
from millstream_coordinator.sinks.testing import Delivery

KEYS = st.one_of(st.binary(max_size=12), st.text("=%./_-aB0 ", max_size=6).map(str.encode))


@pytest.mark.parametrize(
    ("epoch", "seq", "verdict"),
    [
        (7, 100, Verdict.REPEAT),
        (7, 99, Verdict.REPEAT),
        (7, 101, Verdict.APPLY),
        (8, 101, Verdict.APPLY),
        (8, 100, Verdict.REPEAT),
        (8, 99, Verdict.REPEAT),
        (6, 101, Verdict.STALE),
        (6, 100, Verdict.STALE),
        (6, 99, Verdict.STALE),
    ],
)
def test_an_effect_is_judged_by_epoch_and_seq(epoch: int, seq: int, verdict: Verdict) -> None:
    assert judge(Mark(7, 100), epoch, seq) is verdict


def test_the_first_effect_of_a_key_is_applied() -> None:
    assert judge(None, 1, 1) is Verdict.APPLY


def without_epoch(mark: Mark | None, epoch: int, seq: int) -> Verdict:
    """What `judge` would be if it forgot epochs."""
    return Verdict.REPEAT if mark is not None and seq <= mark.seq else Verdict.APPLY


def without_seq(mark: Mark | None, epoch: int, seq: int) -> Verdict:
    """What `judge` would be if it forgot sequences."""
    return Verdict.STALE if mark is not None and epoch < mark.epoch else Verdict.APPLY


def wrongs(rule: Callable[[Mark | None, int, int], Verdict], seed: int) -> set[str]:
    """One key under three owners, the earlier ones still at it, in an order drawn from ``seed``.

    Each owner handles the messages in order, from the last one its predecessor is known to have
    finished. What is wrong with the effects in the end, by the three promises.
    """
    chance = random.Random(seed)
    messages = range(1, 13)
    at: dict[int, int] = {1: 0}
    effects: list[tuple[int, int]] = []
    mark: Mark | None = None
    while max(at) < 3 or at[max(at)] < len(messages):
        if chance.random() < 0.1 and max(at) < 3:
            at[max(at) + 1] = chance.randint(0, at[max(at)])
        epoch = chance.choice([it for it in at if at[it] < len(messages)] or [max(at)])
        if at[epoch] == len(messages):
            continue
        seq = messages[at[epoch]]
        at[epoch] += 1
        if rule(mark, epoch, seq) is Verdict.APPLY:
            mark = Mark(epoch, seq)
            effects.append((epoch, seq))
    found = set()
    sequences, epochs = [seq for _, seq in effects], [epoch for epoch, _ in effects]
    if sorted(sequences) != list(messages):
        found.add("not exactly once")
    if sequences != sorted(sequences):
        found.add("out of order")
    if epochs != sorted(epochs):
        found.add("stale")
    return found


def test_one_key_under_several_owners_is_applied_once_in_order_and_never_stale() -> None:
    assert [seed for seed in range(500) if wrongs(judge, seed)] == []


def test_without_the_epoch_stale_effects_come_through() -> None:
    assert set().union(*(wrongs(without_epoch, seed) for seed in range(500))) == {"stale"}


def test_without_the_seq_effects_are_repeated() -> None:
    assert "not exactly once" in set().union(*(wrongs(without_seq, it) for it in range(500)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8))))
def test_marks_never_go_back(deliveries: list[tuple[int, int]]) -> None:
    mark = Mark(0, 0)

    for epoch, seq in deliveries:
        before = mark
        if judge(mark, epoch, seq) is Verdict.APPLY:
            mark = Mark(epoch, seq)
        assert mark.epoch >= before.epoch
        assert mark.seq >= before.seq


@given(st.dictionaries(st.integers(0, 99), st.builds(Mark, st.integers(0), st.integers(1))))
def test_marks_come_back_from_their_header(marks: dict[int, Mark]) -> None:
    assert decode_marks(encode_marks(marks)) == marks


@given(KEYS, KEYS)
@example(b"a=2E", b"a.")
@example(b"=empty", b"")
@example(b"%empty", b"=empty")
def test_keys_have_legal_entries_of_their_own(one: bytes, other: bytes) -> None:
    entries = [entry_key(Delivery(key=key)) for key in (one, other)]

    assert (entries[0] == entries[1]) == (one == other)
    assert all(re.fullmatch(r"[-/_=a-zA-Z0-9]+", entry) for entry in entries)
    assert [key_of_entry(entry) for entry in entries] == [one, other]


def test_a_keyless_messages_entry_is_no_keys() -> None:
    entry = entry_key(Delivery(key=None, partition=3, seq=17))

    assert entry == "=none.3.17"
    assert key_of_entry(entry) is None
