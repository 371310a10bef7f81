"""Runs with one change of owner and one crash, or one pause, at a chosen step of it.

A member leaves (graceful) or is killed (forced); then whoever issues the chosen command for the
first time dies with it, or stands still, either before the server saw it or right after it carried
it out.
"""

from millstream_coordinator.memory import MemoryClient
from millstream_coordinator.naming import PARTITION_PREFIX
from millstream_coordinator.ports import (
    Command,
    CreateConsumer,
    DeleteConsumer,
    DoubleAck,
    OpenPull,
    ReadConsumer,
    ReadKey,
    WriteKey,
)

from .member import SimulatedMember
from .world import World

CHANGE_AT_S = 1.5
PAUSE_S = 2.5
STEPS = {
    "sync acks": DoubleAck,
    "1 read old consumer": ReadConsumer,
    "2 write record": WriteKey,
    "3 delete old consumer": DeleteConsumer,
    "4 create own consumer": CreateConsumer,
    "5 read record again": ReadKey,
    "6 pull": OpenPull,
}


class CrashingWorld(World):
    """No faults but one change of owner and one crash in it."""

    def __init__(self, seed: int, change: str, step: type, *, is_after: bool) -> None:
        super().__init__(seed)
        self._change = change
        self.has_stream = True
        self._step_type = step
        self._is_after = is_after
        self._is_armed = False
        self.has_crashed = False

    def _arrange_faults(self) -> None:
        self.scheduler.at(0.5, self.start_member)
        self.scheduler.at(CHANGE_AT_S, self._begin_change)

    def _begin_change(self) -> None:
        owners = [one for one in self.living() if one.machine.partitions]
        victim = self.chance.choice(owners)
        self.faults.burst(victim)
        self._is_armed = True
        self.disturbed_at = self.now
        if self._change == "leave":
            victim.stop()
        else:
            victim.kill()

    def execute(self, client: MemoryClient, command: Command) -> None:
        is_step = self._is_armed and isinstance(command, self._step_type)
        if isinstance(command, ReadKey | WriteKey):
            is_step = is_step and command.key.startswith(PARTITION_PREFIX)
        if not is_step or len(self.living()) < 2:
            super().execute(client, command)
            return
        self._is_armed = False
        self.has_crashed = True
        self.disturbed_at = self.now
        if self._is_after:
            super().execute(client, command)
        self._befall(next(one for one in self.members if one.client is client))

    def _befall(self, member: SimulatedMember) -> None:
        member.kill()


class PausingWorld(CrashingWorld):
    """Who takes the step stands still right after it, until somebody else has the partition.

    Its watch has fallen behind as well: what it is to do it must read.
    """

    def _befall(self, member: SimulatedMember) -> None:
        member.pause()
        member.client.watched = None
        self.faults.later(PAUSE_S, PAUSE_S, member.wake)
        self.scheduler.after(PAUSE_S + 0.7, member.watch)
