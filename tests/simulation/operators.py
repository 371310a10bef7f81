"""What operators do to a simulated group: the writes of ``operation/admin.py``, at any moment.

======================== ==========================================================================
pause                    the whole group or some partitions hand nothing out for a while
pin, drain               a partition is to be with one member; a member is to own nothing
reset                    a partition goes on from another position, before or behind (limits only)
resize                   to another of the levels, or called off; not while something is said about
                         single partitions, as `admin.resize` has it
======================== ==========================================================================

`end` takes everything back, lets stopped partitions go on and has parked keys replayed, until none
is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from millstream_coordinator import naming
from millstream_coordinator.errors import BadRecord
from millstream_coordinator.model import (
    ConfigRecord,
    ControlRecord,
    ParkedRecord,
    PartitionState,
    R,
    Retention,
    decode,
    encode,
)

if TYPE_CHECKING:
    from .member import SimulatedMember
    from .world import World

KINDS = ("stop handing out", "pin", "drain", "reset", *("resize",) * 4)


class Operators:
    """People at a group's bucket."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.num_resizes = 0

    # ---- what the bucket says ----

    def read(self, key: str, kind: type[R]) -> R | None:
        """A record of the bucket; None if it is not there or nobody can read it."""
        value = self.world.server.value(self.world.group, key)
        try:
            return None if value is None else decode(kind, value)
        except BadRecord:
            return None

    def write(self, key: str, record: object) -> None:
        server = self.world.server
        if server.has_bucket(self.world.group):
            server.put(self.world.group, key, encode(record))  # type: ignore[arg-type]

    @property
    def config(self) -> ConfigRecord | None:
        return self.read(naming.CONFIG_KEY, ConfigRecord)

    @property
    def control(self) -> ControlRecord:
        return self.read(naming.CONTROL_KEY, ControlRecord) or ControlRecord()

    def parked(self, number: int) -> ParkedRecord:
        return self.read(naming.parked_key(number), ParkedRecord) or ParkedRecord()

    # ---- what they do ----

    def act(self, kind: str, victim: SimulatedMember) -> None:
        world, chance = self.world, self.world.chance
        control = self.control
        number = chance.randrange(world.num_partitions)
        match kind:
            case "stop handing out":
                if chance.random() < 0.5:
                    self.write(naming.CONTROL_KEY, replace(control, is_paused=True))
                else:
                    paused = tuple(sorted({*control.paused, number}))
                    self.write(naming.CONTROL_KEY, replace(control, paused=paused))
                world.faults.later(0.2, 2.0, self.resume)
            case "pin":
                pins = {**control.pins, number: victim.settings.member}
                self.write(naming.CONTROL_KEY, replace(control, pins=pins))
                world.faults.later(0.5, 3.0, self.unpin)
            case "drain":
                draining = tuple(sorted({*control.draining, victim.settings.member}))
                self.write(naming.CONTROL_KEY, replace(control, draining=draining))
                world.faults.later(0.5, 3.0, self.undrain)
            case "reset":
                self._reset(number)
            case "resize":
                self._resize()
            case _:
                raise AssertionError(kind)

    def resume(self) -> None:
        self.write(naming.CONTROL_KEY, replace(self.control, is_paused=False, paused=()))

    def unpin(self) -> None:
        self.write(naming.CONTROL_KEY, replace(self.control, pins={}))

    def undrain(self) -> None:
        self.write(naming.CONTROL_KEY, replace(self.control, draining=()))

    def _reset(self, number: int) -> None:
        world = self.world
        record = world.record(number)
        if record is None or not world.has_stream or world.retention is not Retention.LIMITS:
            return
        last_seq = world.stream_of(number).last_seq
        floor = world.chance.choice((0, record.floor, last_seq, world.chance.randint(0, last_seq)))
        world.checkers.resets(number, record.level, floor)
        new = replace(
            record,
            epoch=record.epoch + 1,
            next=None,
            next_instance=None,
            floor=floor,
            state=PartitionState.FREE if record.owner is None else PartitionState.OWNED,
            done_from=None,
            cause="reset",
            stopped_seq=None,
            stopped_error="",
            skip_seq=None,
        )
        self.write(naming.partition_key(number), new)
        world.checkers.knows(number, new)

    def _resize(self) -> None:
        config, chance = self.config, self.world.chance
        if config is None or not config.levels:
            return
        if config.resize_to is not None:
            if chance.random() < 0.2:
                self.write(naming.CONFIG_KEY, replace(config, resize_to=None))
            return
        if self.control != ControlRecord() or self._is_something_said():
            return
        self.resize(chance.choice([level for level in config.levels if level != config.active]))

    def resize(self, level: int) -> None:
        """Ask for another number of partitions."""
        config = self.config
        assert config is not None
        self.num_resizes += 1
        self.write(naming.CONFIG_KEY, replace(config, resize_to=level))

    def _is_something_said(self) -> bool:
        records = [self.world.record(number) for number in self.world.numbers]
        is_stopped = any(one is not None and one.stopped_seq is not None for one in records)
        return is_stopped or any(self.parked(number).keys for number in self.world.numbers)

    # ---- the end ----

    def end(self) -> None:
        """Take back what was asked for."""
        if self.control != ControlRecord():
            self.write(naming.CONTROL_KEY, ControlRecord())

    def mend(self) -> bool:
        """Let stopped partitions go on and have parked keys replayed; whether any was left."""
        was_broken = False
        for number in self.world.numbers:
            record = self.world.record(number)
            if record is not None and record.stopped_seq is not None:
                was_broken = True
                self.write(
                    naming.partition_key(number),
                    replace(record, stopped_seq=None, stopped_error=""),
                )
            parked = self.parked(number)
            if parked.keys:
                was_broken = True
                if not parked.replay:
                    replay = tuple(sorted(parked.keys))
                    self.write(naming.parked_key(number), replace(parked, replay=replay))
        return was_broken
