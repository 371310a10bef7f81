"""Who gets which partitions: a pure function from members and current owners to owners.

**Shares.** With N partitions and total capacity C, a member of capacity c is due N·c/C of them. It
gets that number rounded down; what is left over goes, one each, to the largest remainders. So
members of equal capacity differ by at most one, and any member by less than one from its due.

**Moves.** Where remainders tie (always, when capacities are equal) the left-over partitions go
first to tied members that already hold more than their rounded-down number: for them it is one move
less, and for the others it makes no difference. After that a member keeps as many of its partitions
as its share allows, so for the shares chosen no assignment can keep more; and no other choice of
shares among the permitted ones keeps more either. The number of partitions that leave a present
member is therefore exactly the minimum over all balanced assignments, in every case, not only on
average.

**Order.** Members are taken by id, partitions by number; input order does not matter and nothing is
drawn at random, so every member (or leader) that sees the same state computes the same answer. A
member that must give up partitions gives up its highest numbers; free ones go, lowest first, to the
members with room in order of their ids.

Rejected: consistent hashing (balanced only on average, and weights make it worse) and a general
minimum-cost flow (the same answer at a hundred times the price).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A member as far as assignment is concerned.

    ``capacity`` is a weight relative to the others', not a limit; 0 takes no partitions (a member
    that drains). ``labels`` are matched by `assign`'s ``required_labels``.
    """

    member: str
    capacity: int = 1
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)

    def __post_init__(self) -> None:
        if self.capacity < 0:
            raise ValueError(f"member {self.member!r} has a negative capacity: {self.capacity}")


def assign(
    candidates: Iterable[Candidate],
    partitions: int,
    owners: Mapping[int, str],
    *,
    required_labels: Mapping[str, str] = _NO_LABELS,
) -> dict[int, str]:
    """Return the owner of each partition 0 … ``partitions``-1, in that order.

    ``owners`` are the current ones; partitions beyond the range and owners that are not candidates
    count as free. Candidates that lack one of ``required_labels`` take none. Empty when nobody can
    take a partition. ValueError: two candidates have the same id.
    """
    capacities: dict[str, int] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.member):
        if candidate.member in capacities:
            raise ValueError(f"member {candidate.member!r} is there twice")
        is_fit = all(candidate.labels.get(name) == it for name, it in required_labels.items())
        capacities[candidate.member] = candidate.capacity if is_fit else 0
    capacities = {member: capacity for member, capacity in capacities.items() if capacity}
    if not capacities:
        return {}

    held: dict[str, list[int]] = {member: [] for member in capacities}
    free = []
    for partition in range(partitions):
        owner = owners.get(partition)
        if owner in held:
            held[owner].append(partition)
        else:
            free.append(partition)

    targets = shares(capacities, partitions, {member: len(own) for member, own in held.items()})
    result: dict[int, str] = {}
    for member, own in held.items():
        kept, surplus = own[: targets[member]], own[targets[member] :]
        result.update((partition, member) for partition in kept)
        free.extend(surplus)
    waiting = iter(sorted(free))
    for member, own in held.items():
        for _ in range(targets[member] - len(own)):
            result[next(waiting)] = member
    return dict(sorted(result.items()))


def shares(
    capacities: Mapping[str, int], partitions: int, held: Mapping[str, int]
) -> dict[str, int]:
    """Compute how many of ``partitions`` each member is due, by largest remainders.

    ``capacities`` are all above 0; ``held`` (what each has now) only decides between equal
    remainders, in favour of the member that has more than its rounded-down share, then by id.
    """
    total = sum(capacities.values())
    targets = {member: partitions * it // total for member, it in capacities.items()}
    left_over = partitions - sum(targets.values())

    def rank(member: str) -> tuple[int, bool, str]:
        remainder = partitions * capacities[member] % total
        return -remainder, held.get(member, 0) <= targets[member], member

    for member in sorted(capacities, key=rank)[:left_over]:
        targets[member] += 1
    return targets


def moved_partitions(before: Mapping[int, str], after: Mapping[int, str]) -> list[int]:
    """Return the partitions that had an owner and have another one now, in order."""
    return [
        number for number in sorted(after) if before.get(number, after[number]) != after[number]
    ]
