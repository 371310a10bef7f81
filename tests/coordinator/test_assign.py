"""Assignment: balanced, deterministic, and never one move more than the minimum."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from millstream_coordinator.machine.assign import Candidate, assign, moved_partitions, shares

Case = tuple[dict[str, int], int, dict[int, str]]


@st.composite
def cases(draw: st.DrawFn, members_max: int = 8, partitions_max: int = 40) -> Case:
    """Capacities, a partition count, and current owners, some of whom are gone."""
    names = [f"m{number}" for number in range(draw(st.integers(1, members_max)))]
    capacities = {name: draw(st.integers(1, 5)) for name in names}
    if draw(st.booleans()):
        capacities = dict.fromkeys(names, draw(st.integers(1, 5)))
    partitions = draw(st.integers(0, partitions_max))
    owner = st.sampled_from([*names, "gone", None])
    drawn = {number: draw(owner) for number in range(partitions)}
    return capacities, partitions, {number: it for number, it in drawn.items() if it}


def assigned(case: Case) -> dict[int, str]:
    capacities, partitions, owners = case
    candidates = [Candidate(member=name, capacity=it) for name, it in capacities.items()]
    return assign(candidates, partitions, owners)


def is_balanced(counts: Counter[str], capacities: dict[str, int], partitions: int) -> bool:
    """Largest remainders, checked from their definition instead of computed."""
    due = {
        name: Fraction(partitions * it, sum(capacities.values())) for name, it in capacities.items()
    }
    extra = {name: counts[name] - it.numerator // it.denominator for name, it in due.items()}
    remainder = {name: it % 1 for name, it in due.items()}
    if counts.total() != partitions or any(it not in (0, 1) for it in extra.values()):
        return False
    with_one = [remainder[name] for name in extra if extra[name] == 1]
    without = [remainder[name] for name in extra if extra[name] == 0]
    return not with_one or not without or min(with_one) >= max(without)


def moves_min_by_search(case: Case) -> int:
    """The fewest moves of any balanced assignment, by trying every assignment."""
    capacities, partitions, owners = case
    present = {number: name for number, name in owners.items() if name in capacities}
    fewest: dict[tuple[int, ...], int] = {}
    for choice in itertools.product(capacities, repeat=partitions):
        counts = tuple(map(choice.count, capacities))
        made = sum(choice[number] != name for number, name in present.items())
        fewest[counts] = min(made, fewest.get(counts, made))
    return min(
        made
        for counts, made in fewest.items()
        if is_balanced(Counter(dict(zip(capacities, counts, strict=True))), capacities, partitions)
    )


def moves_min_by_reason(case: Case) -> int:
    """The fewest moves, from what each member can keep at best.

    Everyone keeps up to the rounded-down share. One more is kept by members that have one more,
    are sure of a left-over partition, or win one of those that equal remainders leave open.
    """
    capacities, partitions, owners = case
    total = sum(capacities.values())
    held = Counter(name for name in owners.values() if name in capacities)
    floors = {name: partitions * it // total for name, it in capacities.items()}
    remainders = {name: partitions * it % total for name, it in capacities.items()}
    left_over = partitions - sum(floors.values())
    ranked = sorted(remainders.values(), reverse=True)
    cut = ranked[left_over - 1] if left_over else total
    sure = [name for name in capacities if remainders[name] > cut]
    open_ones = [name for name in capacities if remainders[name] == cut]
    kept = sum(min(held[name], floors[name]) for name in capacities)
    kept += sum(held[name] > floors[name] for name in sure)
    kept += min(left_over - len(sure), sum(held[name] > floors[name] for name in open_ones))
    return held.total() - kept


def moves(case: Case) -> int:
    capacities, _, owners = case
    present = {number: name for number, name in owners.items() if name in capacities}
    return len(moved_partitions(present, assigned(case)))


@given(cases())
def test_every_partition_has_one_present_owner(case: Case) -> None:
    capacities, partitions, _ = case

    result = assigned(case)

    assert list(result) == list(range(partitions))
    assert set(result.values()) <= capacities.keys()


@given(cases())
def test_shares_are_largest_remainders(case: Case) -> None:
    capacities, partitions, _ = case

    assert is_balanced(Counter(assigned(case).values()), capacities, partitions)


@given(cases())
def test_equal_capacities_differ_by_at_most_one(case: Case) -> None:
    capacities, partitions, owners = case
    equal = dict.fromkeys(capacities, 3)

    counts = Counter(assigned((equal, partitions, owners)).values())

    numbers = [counts[name] for name in equal]
    assert max(numbers) - min(numbers) <= 1


@settings(max_examples=100)
@given(cases(members_max=4, partitions_max=5))
def test_no_balanced_assignment_moves_less(case: Case) -> None:
    assert moves(case) == moves_min_by_search(case)


@settings(max_examples=50)
@given(cases(members_max=4, partitions_max=5))
def test_the_reasoned_minimum_is_the_searched_one(case: Case) -> None:
    assert moves_min_by_reason(case) == moves_min_by_search(case)


def test_moves_are_the_minimum_in_ten_thousand_random_cases() -> None:
    chance = random.Random(20130101)
    moved = 0
    for _ in range(10_000):
        names = [f"m{number}" for number in range(chance.randint(1, 12))]
        heaviest = chance.choice([1, 1, 4, 100])
        capacities = {name: chance.randint(1, heaviest) for name in names}
        partitions = chance.randint(0, 60)
        pool = [*names, *["gone"] * chance.randint(0, 3)][chance.randint(0, 2) :] or names
        owners = {it: chance.choice(pool) for it in range(partitions) if chance.random() < 0.9}
        case = (capacities, partitions, owners)

        made = moves(case)

        assert made == moves_min_by_reason(case), case
        moved += made
    assert moved > 10_000


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(case: Case, chance: random.Random) -> None:
    capacities, partitions, owners = case
    shuffled = list(capacities.items())
    chance.shuffle(shuffled)
    turned = dict(reversed(owners.items()))

    assert assigned((dict(shuffled), partitions, turned)) == assigned(case)


@given(cases())
def test_assigning_again_moves_nothing(case: Case) -> None:
    capacities, partitions, _ = case
    first = assigned(case)

    assert assigned((capacities, partitions, first)) == first


def test_ten_partitions_on_five_members_are_two_each() -> None:
    result = assigned(({f"w{number}": 1 for number in range(5)}, 10, {}))

    assert set(Counter(result.values()).values()) == {2}


def test_only_a_dead_members_partitions_move() -> None:
    before = assigned(({f"w{number}": 1 for number in range(5)}, 10, {}))

    after = assigned(({"w0": 1, "w1": 1}, 10, before))

    stayed = [number for number, owner in before.items() if owner in {"w0", "w1"}]
    assert all(after[number] == before[number] for number in stayed)
    assert Counter(after.values()) == {"w0": 5, "w1": 5}


def test_a_new_member_takes_exactly_its_share() -> None:
    before = assigned(({"w0": 1, "w1": 1}, 10, {}))

    after = assigned(({"w0": 1, "w1": 1, "w2": 1}, 10, before))

    assert len(moved_partitions(before, after)) == 3
    assert Counter(after.values())["w2"] == 3


def test_a_member_gives_up_its_highest_partitions_and_a_new_one_takes_them_in_order() -> None:
    before = dict.fromkeys(range(6), "a")

    after = assigned(({"a": 1, "b": 1, "c": 1}, 6, before))

    assert after == {0: "a", 1: "a", 2: "b", 3: "b", 4: "c", 5: "c"}


def test_free_partitions_go_lowest_first_whatever_freed_them() -> None:
    before = {0: "gone", 1: "a", 2: "a", 3: "a", 4: "a", 5: "gone"}

    after = assigned(({"a": 1, "b": 1, "c": 1}, 6, before))

    assert after == {0: "b", 1: "a", 2: "a", 3: "b", 4: "c", 5: "c"}


def test_the_left_over_partition_stays_where_it_is() -> None:
    before = {0: "b", 1: "b", 2: "a"}

    assert assigned(({"a": 1, "b": 1}, 3, before)) == before


def test_capacity_weighs() -> None:
    assert shares({"big": 3, "small": 1}, 8, {}) == {"big": 6, "small": 2}


def test_capacity_zero_takes_nothing() -> None:
    candidates = [Candidate(member="a", capacity=0), Candidate(member="b")]

    assert assign(candidates, 2, {0: "a", 1: "b"}) == {0: "b", 1: "b"}


def test_labels_choose_the_members() -> None:
    candidates = [Candidate(member="a", labels={"zone": "1"}), Candidate(member="b")]

    assert assign(candidates, 2, {}, required_labels={"zone": "1"}) == {0: "a", 1: "a"}


def test_nobody_to_take_partitions_leaves_them_free() -> None:
    assert assign([Candidate(member="a", capacity=0)], 3, {0: "a"}) == {}


def test_owners_of_partitions_that_are_no_more_are_forgotten() -> None:
    assert assign([Candidate(member="a")], 1, {0: "a", 5: "a"}) == {0: "a"}


def test_the_same_member_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is there twice"):
        assign([Candidate(member="a"), Candidate(member="a")], 1, {})


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="negative capacity"):
        Candidate(member="a", capacity=-1)
