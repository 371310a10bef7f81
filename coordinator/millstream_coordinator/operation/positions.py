"""Start positions: from where on a group handles its partitions, changed by hand.

A position becomes the floor of ``part.<n>`` under an epoch one higher, with the same owner: the
owner sees an epoch that is not its own, drops the partition, and begins anew behind the floor. The
same before a group ever ran: the record is written with a floor and no owner, under an epoch above
those of any consumer left over, and the leader keeps it when it gives the partition out. That is
how a cut-over sets for each partition where the old system stopped.

What to know before:

* Backwards, messages are handled **again**. A fenced sink refuses what it has already seen, so with
  one it changes nothing; without one every effect is repeated.
* Forwards, messages are **never handled**.
* Parked keys and dead letters stay as they are.
* A work-queue stream deletes what is handled: backwards there is nothing left to handle. Refused.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..errors import NotPossible, PartitionMissing, StreamMissing
from ..model import PartitionRecord, PartitionState, Retention
from ..naming import parse_consumer, partition_key
from ..partitioning.layout import place
from ..partitioning.topic import Start, StartKind
from ..provisioning.start import resolve_start
from .admin import Change, Outcome
from .overview import Overview, read_overview
from .target import Target, side_by_side
from .view import GroupView

CAUSE = "reset"


@dataclass(frozen=True, slots=True)
class _Stream:
    """What has to be known of a stream whose positions are set."""

    name: str
    first_seq: int
    last_seq: int
    is_work_queue: bool
    epoch: int
    """The highest in the names of the group's consumers on it."""


async def reset(
    target: Target,
    start: Start | Mapping[int, Start],
    *,
    partitions: Collection[int] | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Set where partitions begin anew: all of them, ``partitions``, or those that ``start`` names.

    Every position is worked out before the first is written; they are written one after another, so
    an error halfway leaves some set (doing it again sets the others). What stands there already is
    left alone. Raises PartitionMissing, and
    NotPossible for a group without a stream, a position beyond the end of its stream, one backwards
    on a work-queue stream, and while a resize is under way.
    """
    overview = await read_overview(target, listen=False)
    count = len(overview.partitions)
    if isinstance(start, Start):
        chosen = range(count) if partitions is None else sorted(set(partitions))
        starts = dict.fromkeys(chosen, start)
    else:
        starts = dict(sorted(start.items()))
    for number in starts:
        if not 0 <= number < count:
            raise PartitionMissing(target.group, number, count)
    if overview.stream is None:
        raise NotPossible(target.group, "it has no stream, and so no positions")
    if overview.resize_to is not None:
        raise NotPossible(target.group, f"a resize to {overview.resize_to} is under way")

    view = await target.view()
    config = view.config
    wanted = {number: place(config, number) for number in starts}
    names = sorted({it.stream for it in wanted.values() if it is not None})
    looked = {it.name: it for it in await side_by_side(_look(target, name) for name in names)}
    where = {number: looked[it.stream] for number, it in wanted.items() if it is not None}
    floors = await _floors(target, starts, where)
    for number, floor in floors.items():
        _check(target, overview, number, floor, where[number])
    await target.check_may(keys=map(partition_key, floors))
    level = None if config.active == config.partitions else config.active
    changes = [
        await _write(target, overview, number, floor, where[number], level, dry_run=dry_run)
        for number, floor in floors.items()
        if overview.partitions[number].current != floor or not _is_settled(view, number)
    ]
    return Outcome(
        group=target.group, operation="reset", changes=tuple(changes), is_dry_run=dry_run
    )


def _is_settled(view: GroupView, number: int) -> bool:
    """Whether a reset to where a partition stands would change nothing.

    It would where a message stopped it, where some are handled beyond (those would come again), and
    where there is no record yet that says so.
    """
    record = view.partitions.get(number)
    if record is None or record.stopped_seq is not None:
        return False
    saved = [done.partitions[number] for done in view.done.values() if number in done.partitions]
    return not any(it.done or it.children for it in saved)


async def _look(target: Target, name: str) -> _Stream:
    info = await target.stream_info(name)
    if info is None:
        raise StreamMissing(name)
    found = [parse_consumer(target.group, it) for it in await target.consumer_names(name)]
    return _Stream(
        name=name,
        first_seq=int(info["state"]["first_seq"]),
        last_seq=int(info["state"]["last_seq"]),
        is_work_queue=info["config"].get("retention") == Retention.WORK_QUEUE,
        epoch=max((it.epoch for it in found if it is not None), default=0),
    )


async def _floors(
    target: Target, starts: Mapping[int, Start], where: Mapping[int, _Stream]
) -> dict[int, int]:
    """The floor of each partition; the same question is asked of a stream once."""
    questions = {(where[number].name, str(start)): start for number, start in starts.items()}

    async def answer(stream: str, start: Start) -> int:
        with target.errors(stream):
            return await resolve_start(target.api, stream, start)

    found = await side_by_side(answer(name, it) for (name, _), it in questions.items())
    answers = dict(zip(questions, found, strict=True))
    floors = {}
    for number, start in starts.items():
        stream = where[number]
        floor = answers[stream.name, str(start)]
        if start.kind is StartKind.EARLIEST:
            floor = max(0, stream.first_seq - 1)
        floors[number] = floor
    return floors


def _check(target: Target, overview: Overview, number: int, floor: int, stream: _Stream) -> None:
    if floor > stream.last_seq:
        reason = (
            f"sequence {floor + 1} for partition {number} is beyond the end of stream"
            f" {stream.name!r}, which is {stream.last_seq}"
        )
        raise NotPossible(target.group, reason)
    current = overview.partitions[number].current or 0
    if stream.is_work_queue and floor < current:
        reason = (
            f"partition {number} is handled up to {current}, and the work-queue stream"
            f" {stream.name!r} has deleted that: there is no way back"
        )
        raise NotPossible(target.group, reason)


async def _write(
    target: Target,
    overview: Overview,
    number: int,
    floor: int,
    stream: _Stream,
    level: int | None,
    *,
    dry_run: bool,
) -> Change:
    """Compare-and-set one partition's record, from whatever it is by then."""

    def change(record: PartitionRecord) -> PartitionRecord:
        return replace(
            record,
            epoch=max(record.epoch, stream.epoch) + 1,
            next=None,
            next_instance=None,
            floor=floor,
            state=PartitionState.FREE if record.owner is None else PartitionState.OWNED,
            done_from=None,
            cause=CAUSE,
            stopped_ns=time.time_ns(),
            stopped_seq=None,
            stopped_error="",
            skip_seq=None,
            level=level,
        )

    await target.update(
        partition_key(number),
        PartitionRecord(epoch=0),
        change,
        kind=PartitionRecord,
        dry_run=dry_run,
    )
    current = overview.partitions[number].current
    return Change(what=f"partition {number} handled up to", before=current, after=floor)
