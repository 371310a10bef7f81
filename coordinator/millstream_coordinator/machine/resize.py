"""What becomes of the progress of partitions when their number changes.

Subjects carry a token for each level, and the finer one modulo the coarser is the coarser one. So a
partition of the coarser level is parent of those of the finer level that it is congruent to:

    split    a child begins with its parent's floor and done-set: what they say of the parent's
             messages holds for the child's, which are some of them
    merge    the parent begins with the lowest floor of its children. Above it each child had done
             something else, so each child's floor and done-set stay with it as a `ChildPosition`,
             until the parent's floor has passed them

A position may hold children from an earlier merge. On a split they go with the child they are part
of; one that is just that child becomes its floor.

Everything a position says is true of the messages it speaks of, so several statements about one
message need no order: it is done if any of them says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..model import ChildPosition, DonePosition, ParkedRecord, PartitionRecord
from .floor import Range, merge

CHUNK = 256
"""So many partitions' positions are handed on in one value."""


def hand_on(
    positions: Mapping[int, DonePosition], old: int, new: int, epoch: int
) -> dict[int, DonePosition]:
    """Return the positions of ``new`` partitions, from those of the ``old`` ones.

    ``epoch`` is what they are marked with. Where neither number divides the other (a group without
    a stream) there is no progress, and nothing to hand on.
    """
    if new % old and old % new:
        return {number: DonePosition(epoch=epoch, floor=0) for number in range(new)}
    if new >= old:
        return {
            number: _split(positions[number % old], number, new, epoch) for number in range(new)
        }
    return {
        number: _merge({it: positions[it] for it in range(number, old, new)}, old, epoch)
        for number in range(new)
    }


def _split(parent: DonePosition, number: int, level: int, epoch: int) -> DonePosition:
    floor, done = parent.floor, list(parent.done)
    children = []
    for child in parent.children:
        if child.level > level:
            if child.partition % level == number:
                children.append(child)
        elif number % child.level == child.partition:
            floor = max(floor, child.floor)
            done += child.done
    return _trimmed(epoch, floor, done, children)


def _merge(parents: Mapping[int, DonePosition], level: int, epoch: int) -> DonePosition:
    children = []
    for number, position in parents.items():
        children.append(
            ChildPosition(level=level, partition=number, floor=position.floor, done=position.done)
        )
        children += position.children
    return _trimmed(epoch, min(one.floor for one in parents.values()), [], children)


def _trimmed(
    epoch: int, floor: int, done: Iterable[Range], children: Iterable[ChildPosition]
) -> DonePosition:
    """Leave out what the floor says already."""
    kept = []
    for child in children:
        above = tuple(one for one in child.done if one[1] > max(floor, child.floor))
        if above or child.floor > floor:
            kept.append(replace(child, done=above))
    ranges = tuple(merge(one for one in done if one[1] > floor))
    return DonePosition(epoch=epoch, floor=floor, done=ranges, children=tuple(kept))


def hand_on_parked(
    parked: Mapping[int, ParkedRecord], old: int, new: int
) -> dict[int, ParkedRecord]:
    """Return the new partitions' records of parked keys, as far as they are to be written.

    Each knows what any relative of it knew: a key that is none of its own does no harm there. It
    may be too little, for a relative's record may be lost, so it has no epoch: who claims it asks
    the letters as well. Without a record that is done in any case.
    """
    result = {}
    for number in range(new):
        relatives = range(number, old, new) if new < old else (number % old,)
        found = [parked[it] for it in relatives if it in parked]
        keys: dict[str, int] = {}
        for record in found:
            for key, seq in record.keys.items():
                keys[key] = min(seq, keys.get(key, seq))
        replay = tuple(dict.fromkeys(key for record in found for key in record.replay))
        there = parked.get(number, ParkedRecord())
        is_lost = number in parked and len(found) < len(relatives)
        if is_lost or (there.keys, there.replay) != (keys, replay):
            result[number] = ParkedRecord(keys=keys, replay=replay)
    return result


def position_of(record: PartitionRecord, saved: DonePosition | None) -> DonePosition:
    """Return where a partition that nobody owns stands: its record, and what was saved of it."""
    if saved is None or saved.epoch >= record.epoch:
        return DonePosition(epoch=record.epoch, floor=record.floor)
    return replace(saved, floor=max(saved.floor, record.floor))
