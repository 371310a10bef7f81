"""Who gets which partitions: a pure function from members and current owners to owners.

**Shares.** With N partitions and total capacity C, a member of capacity c is due N·c/C of them. It
gets that number rounded down; what is left over goes, one each, to the largest remainders. So
members of equal capacity differ by at most one, and any member by less than one from its due.

**Pins.** A pinned partition belongs to the member it names, if that one may take any. A member with
more pins than its share rounded down has exactly its pins, and what is left is shared as above
among the rest; which makes their shares smaller, so that may happen to another one, and so on until
it happens to nobody. (Fixing a member never frees another, so the order does not matter.)

**Moves.** Where remainders tie (always, when capacities are equal) the left-over partitions go
first to tied members that already hold more than their rounded-down number: for them it is one move
less, and for the others it makes no difference. After that a member keeps as many of its partitions
as its share allows, so for the shares chosen no assignment can keep more; and no other choice of
shares among the permitted ones keeps more either. The number of partitions that leave a present
member is therefore exactly the minimum over all balanced assignments, in every case, not only on
average.

**Homes.** What has to move anyhow may have a home: the value of a label (a rack, a zone) that its
owner had. It goes to a member with that value while one has room. Each value's partitions and rooms
are its own, so as many stay at home as can; and as only what moves is looked at, a preference never
costs a move.

**Order.** Members are taken by id, partitions by number; input order does not matter and nothing is
drawn at random, so every member (or leader) that sees the same state computes the same answer. A
member that must give up partitions gives up its highest numbers; free ones go, lowest first, to the
members with room in order of their ids.

Rejected: consistent hashing (balanced only on average, and weights make it worse) and a general
minimum-cost flow (the same answer at a hundred times the price).
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_NO_PINS: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A member as far as assignment is concerned.

    ``capacity`` is a weight relative to the others', not a limit; 0 takes no partitions (a member
    that drains). ``labels`` are matched by `assign`'s ``required_labels`` and ``prefer_label``.
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
    pins: Mapping[int, str] = _NO_PINS,
    required_labels: Mapping[str, str] = _NO_LABELS,
    prefer_label: str | None = None,
    homes: Mapping[int, str] = _NO_PINS,
) -> dict[int, str]:
    """Return the owner of each partition 0 … ``partitions``-1, in that order.

    ``owners`` are the current ones; partitions beyond the range and owners that are not candidates
    count as free. ``pins`` are partition → member; those that name nobody with capacity, or no
    partition in the range, are ignored. Candidates that lack one of ``required_labels`` take none.
    ``homes`` are partition → the value of ``prefer_label`` it would best stay with; that of a
    candidate that owns it counts before.

    Empty when nobody can take a partition. ValueError: two candidates have the same id.
    """
    capacities: dict[str, int] = {}
    values: dict[str, str | None] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.member):
        if candidate.member in capacities:
            raise ValueError(f"member {candidate.member!r} is there twice")
        is_fit = all(candidate.labels.get(name) == it for name, it in required_labels.items())
        capacities[candidate.member] = candidate.capacity if is_fit else 0
        values[candidate.member] = candidate.labels.get(prefer_label) if prefer_label else None
    places = {number: values[owner] for number, owner in owners.items() if owner in values}
    capacities = {member: capacity for member, capacity in capacities.items() if capacity}
    if not capacities:
        return {}

    pinned = {
        number: member
        for number, member in pins.items()
        if member in capacities and 0 <= number < partitions
    }
    held: dict[str, list[int]] = {member: [] for member in capacities}
    free: list[int] = []
    for partition in range(partitions):
        if partition in pinned:
            continue
        owner = owners.get(partition)
        if owner in held:
            held[owner].append(partition)
        else:
            free.append(partition)

    num_pinned = Counter(pinned.values())
    num_held = {member: len(own) + num_pinned[member] for member, own in held.items()}
    targets = shares(capacities, partitions, num_held, num_pinned)
    result = dict(pinned)
    room: dict[str, int] = {}
    for member, own in held.items():
        room[member] = targets[member] - num_pinned[member]
        kept, surplus = own[: room[member]], own[room[member] :]
        result.update((partition, member) for partition in kept)
        room[member] -= len(kept)
        free.extend(surplus)
    free.sort()
    if prefer_label is not None:
        free = _send_home(free, room, values, {**homes, **places}, result)
    waiting = iter(free)
    for member, number in room.items():
        for _ in range(number):
            result[next(waiting)] = member
    return dict(sorted(result.items()))


def _send_home(
    free: list[int],
    room: dict[str, int],
    values: Mapping[str, str | None],
    homes: Mapping[int, str | None],
    result: dict[int, str],
) -> list[int]:
    """Give what is free to members with its home's value while they have room; return the rest."""
    at_home: dict[str | None, deque[str]] = {}
    for member, number in room.items():
        if number:
            at_home.setdefault(values[member], deque()).append(member)
    rest = []
    for partition in free:
        home = homes.get(partition)
        members = at_home.get(home) if home is not None else None
        if not members:
            rest.append(partition)
            continue
        member = members[0]
        result[partition] = member
        room[member] -= 1
        if not room[member]:
            members.popleft()
    return rest


def shares(
    capacities: Mapping[str, int],
    partitions: int,
    held: Mapping[str, int],
    pinned: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Compute how many of ``partitions`` each member is due, by largest remainders.

    ``capacities`` are all above 0; ``held`` (what each has now) only decides between equal
    remainders, in favour of the member that has more than its rounded-down share, then by id.
    ``pinned`` (how many each must have) go first, see the module's docstring.
    """
    targets: dict[str, int] = {}
    rest = dict(capacities)
    while True:
        total = sum(rest.values())
        left = partitions - sum(targets.values())
        over = {
            member: count
            for member, count in (pinned or {}).items()
            if member in rest and count > left * rest[member] // total
        }
        if not over:
            break
        targets.update(over)
        for member in over:
            del rest[member]
        if not rest:
            return targets
    targets.update((member, left * it // total) for member, it in rest.items())
    left_over = partitions - sum(targets.values())

    def rank(member: str) -> tuple[int, bool, str]:
        remainder = left * rest[member] % total
        return -remainder, held.get(member, 0) <= targets[member], member

    for member in sorted(rest, key=rank)[:left_over]:
        targets[member] += 1
    return targets


def moved_partitions(before: Mapping[int, str], after: Mapping[int, str]) -> list[int]:
    """Return the partitions that had an owner and have another one now, in order."""
    return [
        number for number in sorted(after) if before.get(number, after[number]) != after[number]
    ]
