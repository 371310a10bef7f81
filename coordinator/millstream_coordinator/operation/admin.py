"""What operators do to a group: async functions on a `Target`, a group on a server.

An operation is a compare-and-set write to the group's bucket, and nothing else: every member obeys
what it reads there. So no leader has to be asked, a program in another language can do the same,
and the command line and the micro service are thin over this module. When a function returns, the
wish is written; the members follow within moments (watch `describe` or `events`).

======================== =========================================================================
`pause`, `resume`        ``ctl``: hand nothing out, for the whole group or some partitions; owners
                         stay owners. `resume` also clears a partition that a failing message
                         stopped: it is tried again, or with ``skip`` dead-lettered first
`drain`, `undrain`       ``ctl``: the member gives away what it owns and gets nothing
`move`, `unpin`          ``ctl``: the partition goes to that member, and stays while it lives
`resize`                 ``cfg``: to another of the group's levels; the leader carries it out. To
                         the level that is read now: calls a resize that is under way off
`reset`                  ``part.<n>``: handle from another position on (see `positions`)
`replay`, `drop`         dead letters and parked keys (see `letters`)
`delete`                 the group's consumers and bucket, and its own streams if wanted
======================== =========================================================================

Each takes the target first, and with ``dry_run=True`` checks and computes
everything and writes nothing. Each returns an `Outcome`: what changed, from what to what; no
changes means that it was so already. Each checks before it writes, and raises one GroupError that
says what is in the way: BadName, GroupMissing, MemberMissing, PartitionMissing, NotPossible,
StreamMissing, Contended, BadRecord, ServerUnreachable (then the last write may or may not have
taken place; doing it again does no harm). ::

    outcome = await pause(Target(connection, "delays"), partitions=[3])
    for change in outcome.changes:
        print(change)                       # partition 3: running -> paused
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from .. import naming
from ..errors import MemberMissing, NotPossible, PartitionMissing
from ..model import ConfigRecord, ControlRecord, PartitionRecord
from ..naming import CONFIG_KEY, CONTROL_KEY, check_name, parse_consumer, partition_key
from .target import Target, side_by_side, streams
from .view import GroupView

Value = str | int | None

RELEASE_WAIT_S = 5.0
"""So long coordinators have to leave a group that is being deleted."""
_RELEASE_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not as it was; ``what`` names it, such as ``partition 3``."""

    what: str
    before: Value
    after: Value

    def __str__(self) -> str:
        before = "-" if self.before is None else self.before
        return f"{self.what}: {before} -> {'-' if self.after is None else self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an operation did, or with ``is_dry_run`` would do."""

    group: str
    operation: str
    changes: tuple[Change, ...]
    is_dry_run: bool

    def as_json(self) -> dict[str, object]:
        """``{"schema", "group", "dry_run", "changes": [{"what", "before", "after"}, …]}``."""
        return {
            "schema": f"millstream.coordinator.{self.operation}/1",
            "group": self.group,
            "dry_run": self.is_dry_run,
            "changes": [asdict(change) for change in self.changes],
        }


# ---- pause, resume -------------------------------------------------------------------------------


async def pause(
    target: Target,
    *,
    partitions: Collection[int] | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Hand no more messages out; None: of any partition, now and after a resize."""
    view = await _open(target, partitions)

    def change(control: ControlRecord) -> ControlRecord:
        if partitions is None:
            return replace(control, is_paused=True)
        return replace(control, paused=tuple(sorted({*control.paused, *partitions})))

    return await _control(target, view, "pause", change, dry_run=dry_run)


async def resume(
    target: Target,
    *,
    partitions: Collection[int] | None = None,
    skip: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Take back `pause`, and let partitions that a failing message stopped go on.

    None: the whole group, whatever was paused. ``skip``: the message that stopped a partition
    becomes a dead letter instead of being tried again; NotPossible when none of them is stopped.
    Some partitions of a group that is paused as a whole cannot be resumed: NotPossible.
    """
    view = await _open(target, partitions)
    chosen = range(view.config.active) if partitions is None else sorted(set(partitions))
    stopped = [
        it for it in chosen if it in view.partitions and view.partitions[it].stopped_seq is not None
    ]
    if skip and not stopped:
        raise NotPossible(target.group, "no partition is stopped: nothing to skip")
    if partitions is not None and view.control.is_paused:
        raise NotPossible(target.group, "all of it is paused: resume that, then pause others")

    def change(control: ControlRecord) -> ControlRecord:
        if partitions is None:
            return replace(control, is_paused=False, paused=())
        return replace(control, paused=tuple(it for it in control.paused if it not in partitions))

    await target.check_may(keys=[CONTROL_KEY, *map(partition_key, stopped)])
    changes: list[Change] = []
    for number in stopped:
        changes += await _restart(target, number, skip=skip, dry_run=dry_run)
    outcome = await _control(target, view, "resume", change, dry_run=dry_run)
    return replace(outcome, changes=(*outcome.changes, *changes))


async def _restart(target: Target, number: int, *, skip: bool, dry_run: bool) -> list[Change]:
    """Let a partition that stopped at a message go on."""

    def change(record: PartitionRecord) -> PartitionRecord:
        if record.stopped_seq is None:
            return record
        skipped = record.stopped_seq if skip else None
        return replace(record, stopped_seq=None, stopped_error="", skip_seq=skipped)

    before, after = await target.update(
        partition_key(number), None, change, kind=PartitionRecord, dry_run=dry_run
    )
    if before == after:
        return []
    then = "dead letter" if skip else "tried again"
    return [
        Change(what=f"partition {number}", before=f"stopped at {before.stopped_seq}", after=then)
    ]


# ---- members and their partitions ----------------------------------------------------------------


async def drain(target: Target, member: str, *, dry_run: bool = False) -> Outcome:
    """Let the member give away what it owns and get nothing until `undrain`.

    For a member with a name of its own that also holds after a restart.
    """
    view = await _open(target)
    _member(view, target, member)

    def change(control: ControlRecord) -> ControlRecord:
        if member in control.draining:
            return control
        return replace(control, draining=(*control.draining, member))

    return await _control(target, view, "drain", change, dry_run=dry_run)


async def undrain(target: Target, member: str, *, dry_run: bool = False) -> Outcome:
    """Take back `drain`; MemberMissing when the member neither drains nor is there."""
    view = await _open(target)
    if member not in view.control.draining:
        _member(view, target, member)

    def change(control: ControlRecord) -> ControlRecord:
        return replace(control, draining=tuple(it for it in control.draining if it != member))

    return await _control(target, view, "drain", change, dry_run=dry_run)


async def move(
    target: Target,
    partitions: Collection[int],
    member: str,
    *,
    dry_run: bool = False,
) -> Outcome:
    """Give the partitions to the member, where they stay as long as it lives (or until `unpin`).

    The others are balanced around them. NotPossible when the member takes no partitions: it
    drains, leaves, or only leads.
    """
    view = await _open(target, partitions)
    record = view.members[_member(view, target, member)]
    if not record.capacity:
        raise NotPossible(target.group, f"member {member!r} has capacity 0: it takes no partitions")
    if record.is_leaving or member in view.control.draining:
        raise NotPossible(target.group, f"member {member!r} drains: it takes no partitions")

    def change(control: ControlRecord) -> ControlRecord:
        pins = {**control.pins, **dict.fromkeys(partitions, member)}
        return replace(control, pins=dict(sorted(pins.items())))

    return await _control(target, view, "move", change, dry_run=dry_run)


async def unpin(target: Target, partitions: Collection[int], *, dry_run: bool = False) -> Outcome:
    """Take back `move`: the partitions stay where they are until balance asks for another owner."""
    view = await _open(target, partitions)

    def change(control: ControlRecord) -> ControlRecord:
        pins = {number: it for number, it in control.pins.items() if number not in partitions}
        return replace(control, pins=pins)

    return await _control(target, view, "move", change, dry_run=dry_run)


def _member(view: GroupView, target: Target, member: str) -> str:
    if member not in view.members:
        raise MemberMissing(target.group, check_name("member", member))
    return member


# ---- resize --------------------------------------------------------------------------------------


async def resize(target: Target, partitions: int, *, dry_run: bool = False) -> Outcome:
    """Have the group split or merge its partitions to another of its levels.

    The leader carries it out: all partitions are drained, then given out at the new level, and the
    order of each key holds. To the number there is now: a resize under way is called off, if it is
    not done by then. NotPossible when the subjects carry no token for that number, and while
    something is said about single partitions, which would be about others afterwards: some are
    paused, pinned, stopped at a message, or have parked keys.
    """
    view = await _open(target)
    if partitions != view.config.active:
        _check_nothing_is_said(view, target)
    await target.check_may(keys=[CONFIG_KEY])

    def change(config: ConfigRecord) -> ConfigRecord:
        levels = config.levels or (config.partitions,)
        if partitions not in levels:
            raise NotPossible(target.group, _no_level(partitions, levels))
        if partitions == config.active:
            return replace(config, resize_to=None)
        if config.resize_to not in (None, partitions):
            raise NotPossible(target.group, f"a resize to {config.resize_to} is under way")
        return replace(config, resize_to=partitions)

    before, after = await target.update(
        CONFIG_KEY, None, change, kind=ConfigRecord, dry_run=dry_run
    )
    changes: tuple[Change, ...] = ()
    if before != after:
        now, then = (f"{it.active}, resizing to {it.resize_to}" for it in (before, after))
        changes = (
            Change(
                what="partitions",
                before=before.active if before.resize_to is None else now,
                after=after.active if after.resize_to is None else then,
            ),
        )
    return Outcome(group=target.group, operation="resize", changes=changes, is_dry_run=dry_run)


def _check_nothing_is_said(view: GroupView, target: Target) -> None:
    stopped = [it for it, record in view.partitions.items() if record.stopped_seq is not None]
    parked = [it for it, record in view.parked.items() if record.keys]
    for numbers, is_so, cure in (
        (view.control.paused, "paused", "resume it"),
        (view.control.pins, "pinned", "unpin it"),
        (stopped, "stopped at a message", "resume it"),
        (parked, "holding parked keys", "replay or drop them"),
    ):
        if numbers:
            raise NotPossible(target.group, f"partition {min(numbers)} is {is_so}: {cure} first")


def _no_level(partitions: int, levels: Sequence[int]) -> str:
    if len(levels) == 1:
        return (
            f"its subjects carry one partition token, for {levels[0]} partitions: a resize needs a"
            " finer one (see the guide to resizing)"
        )
    words = ", ".join(map(str, levels))
    return f"its subjects carry tokens for {words} partitions, not for {partitions}"


# ---- delete --------------------------------------------------------------------------------------


async def delete(
    target: Target,
    *,
    with_letters: bool = False,
    with_work: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Remove the group: its consumers, then its bucket with every position. There is no way back.

    ``with_letters``: its dead letters too; ``with_work``: its own work-queue stream too, with what
    is not handled yet. The streams it reads stay. NotPossible while a worker answers: stop the
    workers first, or they would make the group anew at once. Coordinators are asked to leave it.
    """
    view = await _open(target)
    answers = await side_by_side(target.is_alive(it) for it in view.members)
    alive = [it for it, is_alive in zip(view.members, answers, strict=True) if is_alive]
    workers = [it for it in alive if view.members[it].capacity]
    if workers:
        raise NotPossible(target.group, f"stop its members first: {', '.join(workers)}")

    consumers: list[tuple[str, str]] = []
    for stream in streams(view.config):
        if await target.stream_info(stream) is None:
            continue
        names = await target.consumer_names(stream)
        consumers += [(stream, it) for it in names if parse_consumer(target.group, it)]
    with target.errors():
        there = await target.api.stream_names()
    own = [it for it in there if with_letters and it == naming.dead_letter_stream(target.group)]
    if with_work:
        own += [it for it in there if naming.work_generation(target.group, it) is not None]
    own.append(f"KV_{target.bucket}")  # last: whatever goes wrong, the group can be deleted again
    calls = [f"CONSUMER.DELETE.{stream}.{name}" for stream, name in dict(consumers).items()]
    await target.check_may(calls=[*calls, *(f"STREAM.DELETE.{it}" for it in own)])
    if not dry_run:
        if alive:
            await _release(target, alive)
        await side_by_side(target.delete_consumer(*it) for it in consumers)
        for stream in own:
            await target.delete_stream(stream)
    things = [f"consumer {name}" for _, name in consumers]
    things += [f"stream {name}" for name in own[:-1]]
    things.append(f"bucket {target.bucket}")
    changes = tuple(Change(what=it, before="there", after="deleted") for it in things)
    return Outcome(group=target.group, operation="delete", changes=changes, is_dry_run=dry_run)


async def _release(target: Target, coordinators: Sequence[str]) -> None:
    """Have those that only lead the group leave it, as a coordinator service does when asked."""
    with target.errors():
        await target.connection.publish(naming.release(target.group))
        await target.connection.flush()
    with suppress(TimeoutError):
        async with asyncio.timeout(RELEASE_WAIT_S):
            while any(await side_by_side(target.is_alive(it) for it in coordinators)):  # noqa: ASYNC110
                await asyncio.sleep(_RELEASE_POLL_S)
            return
    raise NotPossible(target.group, f"stop its members first: {', '.join(coordinators)}")


# ---- common --------------------------------------------------------------------------------------


async def _open(target: Target, partitions: Iterable[int] | None = None) -> GroupView:
    """Look at the group first. Raises GroupMissing, and PartitionMissing for a wrong number."""
    view = await target.view()
    for number in partitions or ():
        if not 0 <= number < view.config.active:
            raise PartitionMissing(target.group, number, view.config.active)
    return view


async def _control(
    target: Target,
    view: GroupView,
    operation: str,
    change: Callable[[ControlRecord], ControlRecord],
    *,
    dry_run: bool,
) -> Outcome:
    """Write ``ctl`` and tell the difference."""
    before, after = await target.update(
        CONTROL_KEY, ControlRecord(), change, kind=ControlRecord, dry_run=dry_run
    )
    return Outcome(
        group=target.group,
        operation=operation,
        changes=tuple(_differences(before, after, view.config.active)),
        is_dry_run=dry_run,
    )


def _differences(before: ControlRecord, after: ControlRecord, partitions: int) -> Iterable[Change]:
    if before.is_paused != after.is_paused:
        yield Change(what="group", before=_paused(before.is_paused), after=_paused(after.is_paused))
    for number in sorted({*before.paused, *after.paused}):
        was, is_now = number in before.paused, number in after.paused
        if was != is_now:
            yield Change(what=f"partition {number}", before=_paused(was), after=_paused(is_now))
    for member in sorted({*before.draining, *after.draining}):
        was, is_now = member in before.draining, member in after.draining
        if was != is_now:
            yield Change(what=f"member {member}", before=_drained(was), after=_drained(is_now))
    for number in range(partitions):
        held, holds = before.pins.get(number), after.pins.get(number)
        if held != holds:
            yield Change(
                what=f"partition {number}",
                before=f"pinned to {held}" if held else "balanced",
                after=f"pinned to {holds}" if holds else "balanced",
            )


def _paused(it: bool) -> str:
    return "paused" if it else "running"


def _drained(it: bool) -> str:
    return "draining" if it else "taking partitions"
