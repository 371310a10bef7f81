"""The coordinator group that takes over: made with its positions, or, if it is there, moved.

A group that is not there is made in an order in which no member can read past a position: bucket,
positions, ``cfg`` last (`millstream_coordinator.provisioning.create`). One that is there must read
the same stream in the same partitions, and have no members: a member is a reader, and its position
moves. Then each position is one compare-and-set write (`millstream_coordinator.operation`).
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import nats
import nats.errors
from nats.aio.client import Client

from millstream_coordinator.errors import GroupError, GroupMissing, StreamMissing
from millstream_coordinator.operation.overview import read_overview
from millstream_coordinator.operation.positions import reset
from millstream_coordinator.operation.target import Target
from millstream_coordinator.operation.view import GroupView
from millstream_coordinator.partitioning.key import KeyRule, KeyRuleError
from millstream_coordinator.partitioning.layout import group_config
from millstream_coordinator.partitioning.topic import (
    Description,
    GroupDescription,
    Layout,
    Start,
    StartKind,
    StreamOptions,
    TopicDescription,
    WrittenBy,
)
from millstream_coordinator.provisioning.create import apply
from millstream_coordinator.provisioning.plan import StepKind, plan

from ..errors import BridgeError, ConfigurationError, Unreachable
from ..jetstream.target import NatsTarget
from ..model import PARTITION_FIELD, Route, counted

_CONNECT_S = 5


class TakeOver:
    """One coordinator group on one route. ``key_rule``: where the template is not one itself."""

    def __init__(
        self,
        connection: Client,
        prefix: str,
        route: Route,
        group: str,
        partitions: int,
        *,
        key_rule: str | None = None,
    ) -> None:
        """ConfigurationError: the names or the rule do not fit."""
        self._connection, self._prefix = connection, prefix
        self.group = group
        self._stream = route.stream.replace(PARTITION_FIELD, "0")
        text = key_rule or route.subject.replace("{topic}", route.topic)
        try:
            self._target = Target(connection, group, prefix=prefix)
            rule = KeyRule.parse(text)
        except KeyRuleError as error:
            raise ConfigurationError(
                f"group {group}: {text!r} cannot be its key rule ({error}): say another"
            ) from error
        except GroupError as error:
            raise ConfigurationError(str(error)) from error
        name, layout = route.stream, Layout.TOKEN
        if route.mode == "dense":
            name, layout = route.stream.removesuffix("-{partition}"), Layout.STREAMS
            if "{partition}" in name:
                raise ConfigurationError(
                    f"a group can read streams named NAME-{{partition}}, not {route.stream}"
                )
        topic = TopicDescription(
            name=name,
            layout=layout,
            rule=rule,
            partitions=partitions,
            written_by=WrittenBy.PRODUCERS,
        )
        described = GroupDescription(
            name=group,
            topic=name,
            rule=rule,
            partitions=partitions,
            start=Start(kind=StartKind.LATEST),
        )
        self._description = Description(
            file="cutover", topics={name: topic}, groups={group: described}
        )
        self._config = group_config(self._description, described)

    async def view(self) -> GroupView | None:
        """The group as it is, None if there is none. Raises BridgeError."""
        with _errors():
            try:
                return await self._target.view()
            except GroupMissing:
                return None

    def obstacles(self, view: GroupView | None) -> list[str]:
        """Why the group cannot take over as it is.

        Of one that does not fit no member is told of: it need not stop.
        """
        if view is None:
            return []
        misfits = self._misfits(view)
        if misfits or not view.members:
            return misfits
        names = ", ".join(list(view.members)[:3])
        members = counted(len(view.members), "member")
        return [f"group {self.group} has {members} ({names}): stop them"]

    def _misfits(self, view: GroupView) -> list[str]:
        """What no waiting changes."""
        found = []
        for name in ("stream", "partitions", "filter", "key"):
            mine, theirs = getattr(self._config, name), getattr(view.config, name)
            if mine != theirs:
                found.append(f"group {self.group} has {name} {theirs!r}, the route {mine!r}")
        if view.config.active != view.config.partitions:
            found.append(f"group {self.group} was resized to {view.config.active} partitions")
        return found

    async def place(self, next_seqs: Mapping[int, int]) -> None:
        """Make the group, or move it, so that each partition begins with its sequence.

        BridgeError: it could not be; what was written is harmless and written again next time.
        """
        with _errors():
            if await self.view() is None:
                await self._make(next_seqs)
            else:
                starts = {
                    number: Start(kind=StartKind.SEQUENCE, sequence=seq)
                    for number, seq in next_seqs.items()
                }
                await reset(self._target, starts)

    async def _make(self, next_seqs: Mapping[int, int]) -> None:
        """The group's bucket has as many replicas as the stream, as if a member had made it."""
        info = await self._target.stream_info(self._stream)
        config = {} if info is None else info["config"]
        options = StreamOptions(replicas=config.get("num_replicas", 1))
        groups = {self.group: replace(self._description.groups[self.group], options=options)}
        described = replace(self._description, groups=groups)
        planned = await plan(self._connection, described, prefix=self._prefix)
        steps = []
        for step in planned.steps:
            if step.kind is StepKind.START:
                epochs = {number: epoch for number, (epoch, _) in step.floors.items()}
                floors = {n: (epochs.get(n, 1), seq - 1) for n, seq in next_seqs.items()}
                steps.append(replace(step, floors=floors))
            elif step.kind in (StepKind.BUCKET, StepKind.CONFIG):
                steps.append(step)
        await apply(self._connection, replace(planned, steps=tuple(steps)), prefix=self._prefix)

    async def progress(self) -> "Progress":
        """What the group has handled, and why that is not the last word. BridgeError: no group.

        Of a group that reads another stream nothing counts, nor do partitions that the route lacks.
        Members are looked for before anything else is read: who leaves has written down what it
        handled by then, so only without them is what is read later the last word.
        """
        with _errors():
            before = await self._target.view()
            overview = await read_overview(self._target, listen=False)
            view = await self._target.view()
        handled = {}
        obstacles = []
        reads = before.config.stream == view.config.stream == self._config.stream
        for row in overview.partitions if reads else ():
            if row.partition >= self._config.partitions:
                continue
            done = _done_beyond(view, row.partition)
            handled[row.partition] = Handled(row.current or 0, done)
            if row.parked_keys:
                obstacles.append(
                    f"partition {row.partition} of group {self.group} has {row.parked_keys} parked"
                    " keys, whose messages wait in its dead letters: replay or drop them"
                )
        is_lasting = bool(self._misfits(before) or self._misfits(view))
        obstacles = [*(self.obstacles(before) or self.obstacles(view)), *obstacles]
        return Progress(handled, obstacles, is_lasting)

    async def positions(self) -> dict[int, int]:
        """Each partition's next sequence as the group's records have it now."""
        view = await self.view()
        if view is None:
            return {}
        return {number: record.floor + 1 for number, record in view.partitions.items()}


class Handled(NamedTuple):
    """What is handled of a partition: all up to ``floor``, and closed ranges beyond it."""

    floor: int
    done: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """Behind this sequence nothing is handled."""
        return max([self.floor, *(last for _, last in self.done)])

    def has(self, seq: int) -> bool:
        """Whether a message is handled."""
        return seq <= self.floor or any(first <= seq <= last for first, last in self.done)


class Progress(NamedTuple):
    """A group's progress by partition, and what is in the way of relying on it.

    ``is_lasting``: some of that is neither a member, which may leave, nor a parked key, which may
    be replayed, so that waiting is of no use.
    """

    handled: dict[int, Handled]
    obstacles: list[str]
    is_lasting: bool = False


def _done_beyond(view: GroupView, number: int) -> tuple[tuple[int, int], ...]:
    """What is handled above the floor, by whoever the partition's record points to."""
    record = view.partitions.get(number)
    if record is None:
        return ()
    for member in (record.done_from, record.owner):
        saved = view.done.get(member) if member else None
        position = saved.partitions.get(number) if saved else None
        if position is not None and (member == record.done_from or position.epoch == record.epoch):
            return position.done
    return ()


@asynccontextmanager
async def group_connection(target: NatsTarget) -> AsyncIterator[Client]:
    """A client of nats-py's, as the coordinator's operations take it. Unreachable."""
    try:
        client = await nats.connect(
            **target.nats_py_options(),
            name="millstream cutover",
            connect_timeout=_CONNECT_S,
            allow_reconnect=False,
            error_cb=_ignore,
        )
    except (nats.errors.Error, OSError) as error:
        raise Unreachable("NATS", str(target), str(error) or type(error).__name__) from error
    try:
        yield client
    finally:
        await client.close()


async def _ignore(_: Exception) -> None:
    """What goes wrong is raised by the request that meets it."""


class _errors:  # noqa: N801 - reads as a statement
    """Raise what the coordinator says as what it is to the bridge's caller."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GroupError) and not isinstance(error, BridgeError):
            raise ConfigurationError(f"{error}{_remedy(error)}") from error


def _remedy(error: GroupError) -> str:
    if isinstance(error, StreamMissing):
        return "; `millstream bridge run` makes a route's stream"
    if isinstance(error, GroupMissing):
        return "; `millstream coordinator ls` shows the groups there are"
    return ""
