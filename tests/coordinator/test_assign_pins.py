"""Assignment with pins and homes: obeyed, still balanced, still the minimum of moves."""

import itertools
import random
from collections import Counter
from collections.abc import Collection
from fractions import Fraction

from hypothesis import given, settings, strategies as st

from millstream_coordinator.machine.assign import Candidate, assign, moved_partitions

Case = tuple[dict[str, int], int, dict[int, str], dict[int, str]]
"""Capacities, how many partitions, owners, pins."""


def draw_case(chance: random.Random, members_max: int, partitions_max: int) -> Case:
    names = [f"m{number}" for number in range(chance.randint(1, members_max))]
    heaviest = chance.choice([1, 1, 3, 20])
    capacities = {name: chance.randint(1, heaviest) for name in names}
    partitions = chance.randint(0, partitions_max)
    owners = {
        it: chance.choice([*names, "gone"]) for it in range(partitions) if chance.random() < 0.9
    }
    favourites = chance.sample(names, chance.randint(1, len(names)))
    rate = chance.choice([0.1, 0.4, 0.9])
    pins = {
        it: chance.choice([*favourites, "gone"])
        for it in range(partitions)
        if chance.random() < rate
    }
    return capacities, partitions, owners, pins


@st.composite
def cases(draw: st.DrawFn, members_max: int = 4, partitions_max: int = 5) -> Case:
    return draw_case(draw(st.randoms(use_true_random=False)), members_max, partitions_max)


def assigned(case: Case) -> dict[int, str]:
    capacities, partitions, owners, pins = case
    candidates = [Candidate(member=name, capacity=it) for name, it in capacities.items()]
    return assign(candidates, partitions, owners, pins=pins)


def fixed_by_subsets(case: Case) -> dict[str, int]:
    """Who has exactly its pins, by trying every set of members.

    The set is right if everybody in it has more pins than its share beside those outside, and
    everybody outside has room for its pins.
    """
    capacities, partitions, _, pins = case
    counts = Counter(it for it in pins.values() if it in capacities)

    def has_room(name: str, fixed: Collection[str]) -> bool:
        left = partitions - sum(counts[other] for other in fixed if other != name)
        total = sum(it for other, it in capacities.items() if other == name or other not in fixed)
        return counts[name] <= left * capacities[name] // total

    for size in range(len(capacities) + 1):
        for fixed in itertools.combinations(capacities, size):
            if all(has_room(name, fixed) is (name not in fixed) for name in capacities):
                return {name: counts[name] for name in fixed}
    raise AssertionError(case)


def is_balanced(counts: Counter[str], case: Case) -> bool:
    """Largest remainders among those that are not fixed, checked from their definition."""
    capacities, partitions, _, _ = case
    fixed = fixed_by_subsets(case)
    if counts.total() != partitions or any(counts[name] != it for name, it in fixed.items()):
        return False
    rest = {name: it for name, it in capacities.items() if name not in fixed}
    left = partitions - sum(fixed.values())
    due = {name: Fraction(left * it, sum(rest.values())) for name, it in rest.items()}
    extra = {name: counts[name] - it.__floor__() for name, it in due.items()}
    with_one = [due[name] % 1 for name in rest if extra[name] == 1]
    without = [due[name] % 1 for name in rest if extra[name] == 0]
    if len(with_one) + len(without) != len(rest):
        return False
    return not with_one or not without or min(with_one) >= max(without)


def moves(case: Case, result: dict[int, str]) -> int:
    present = {number: name for number, name in case[2].items() if name in case[0]}
    return len(moved_partitions(present, result))


def moves_min_by_search(case: Case) -> int:
    """The fewest moves of any balanced assignment that obeys the pins, by trying them all."""
    capacities, partitions, _, pins = case
    choices = [
        [pins[number]] if pins.get(number) in capacities else list(capacities)
        for number in range(partitions)
    ]
    return min(
        moves(case, dict(enumerate(choice)))
        for choice in itertools.product(*choices)
        if is_balanced(Counter(choice), case)
    )


def moves_min_by_flow(case: Case) -> int:
    """The same for larger cases: the cheapest of all ways to give out the left-over partitions.

    Which of the tied members get one is tried member by member; what a member keeps is then known.
    """
    capacities, partitions, owners, pins = case
    pins = {number: name for number, name in pins.items() if name in capacities}
    fixed = fixed_by_subsets(case)
    counts = Counter(pins.values())
    loose = Counter(n for it, n in owners.items() if n in capacities and it not in pins)
    forced = sum(owners.get(it) != n and owners.get(it) in capacities for it, n in pins.items())
    rest = {name: it for name, it in capacities.items() if name not in fixed}
    left = partitions - sum(fixed.values())
    total = sum(rest.values())
    floors = {name: left * it // total for name, it in rest.items()}
    remainders = {name: left * it % total for name, it in rest.items()}
    left_over = left - sum(floors.values())
    cut = sorted(remainders.values(), reverse=True)[left_over - 1] if left_over else total + 1
    best = {0: forced + sum(loose[name] for name in fixed)}
    for name in rest:
        after: dict[int, int] = {}
        for used, cost in best.items():
            for extra in (0, 1):
                must, may = remainders[name] > cut, remainders[name] >= cut
                if extra < must or extra > may or used + extra > left_over:
                    continue
                lost = max(0, loose[name] - (floors[name] + extra - counts[name]))
                least = min(cost + lost, after.get(used + extra, cost + lost))
                after[used + extra] = least
        best = after
    return best[left_over]


@given(cases(members_max=8, partitions_max=40))
def test_a_pin_is_obeyed_while_its_member_can_take_partitions(case: Case) -> None:
    capacities, _, _, pins = case

    result = assigned(case)

    assert all(result[number] == name for number, name in pins.items() if name in capacities)


@settings(max_examples=100)
@given(cases())
def test_no_balanced_assignment_with_these_pins_moves_less(case: Case) -> None:
    result = assigned(case)

    assert is_balanced(Counter(result.values()), case)
    assert moves(case, result) == moves_min_by_search(case)


@settings(max_examples=50)
@given(cases())
def test_the_oracle_for_large_cases_is_the_search_on_small_ones(case: Case) -> None:
    assert moves_min_by_flow(case) == moves_min_by_search(case)


def test_moves_are_the_minimum_in_ten_thousand_random_cases_with_pins() -> None:
    chance = random.Random(20130102)
    moved = 0
    for _ in range(10_000):
        case = draw_case(chance, 7, 40)

        result = assigned(case)

        assert moves(case, result) == moves_min_by_flow(case), case
        moved += moves(case, result)
    assert moved > 10_000


def test_members_with_more_pins_than_their_share_have_just_those() -> None:
    result = assigned(({"a": 1, "b": 1, "c": 1}, 6, {}, {0: "a", 1: "a", 2: "a", 3: "a"}))

    assert Counter(result.values()) == {"a": 4, "b": 1, "c": 1}


def test_a_pin_on_a_member_without_capacity_is_not_obeyed() -> None:
    candidates = [Candidate(member="a", capacity=0), Candidate(member="b")]

    assert assign(candidates, 1, {}, pins={0: "a"}) == {0: "b"}


def racks(**members: str) -> list[Candidate]:
    return [Candidate(member=name, labels={"rack": rack}) for name, rack in members.items()]


def test_what_must_move_stays_in_its_rack_while_there_is_room() -> None:
    members = racks(a="1", b="2", c="1", d="2")
    owners = {0: "gone", 1: "gone", 2: "gone", 3: "gone"}
    homes = {0: "2", 1: "2", 2: "1", 3: "2"}

    result = assign(members, 4, owners, prefer_label="rack", homes=homes)

    assert result == {0: "b", 1: "d", 2: "a", 3: "c"}


def test_a_preference_costs_no_move() -> None:
    chance = random.Random(3)
    for _ in range(500):
        capacities, partitions, owners, pins = draw_case(chance, 8, 40)
        members = [
            Candidate(member=name, capacity=it, labels={"rack": chance.choice("12")})
            for name, it in capacities.items()
        ]
        homes = {number: chance.choice("123") for number in range(partitions)}

        case = (capacities, partitions, owners, pins)
        result = assign(members, partitions, owners, pins=pins, prefer_label="rack", homes=homes)

        assert moves(case, result) == moves(case, assigned(case))
        assert Counter(result.values()) == Counter(assigned(case).values())


def test_a_living_owners_rack_counts_and_not_what_is_remembered() -> None:
    members = racks(a="1", b="2", c="1")
    owners = dict.fromkeys(range(6), "a")

    result = assign(members, 6, owners, prefer_label="rack", homes=dict.fromkeys(range(6), "2"))

    assert result == {0: "a", 1: "a", 2: "c", 3: "c", 4: "b", 5: "b"}
