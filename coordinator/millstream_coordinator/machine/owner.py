"""What this member owns: what the bucket says about it, its consumers and pulls, and the fence.

The bucket decides. `settle` compares a partition's record with what is owned here and does what
follows: begin (the record names this process), drain (``next`` is set), go on (a move was called
off), or lose (the record names somebody else, or another epoch).

**Fencing.** Before each handler call and each ack this member asks itself whether its ownership
could be confirmed within the heartbeat timeout. If not, nothing is started and nothing acked; lanes
keep what they have. When a heartbeat comes back again, each partition's record is read anew, and
where it still names this epoch work goes on as if nothing had been. A handler call that ended in
between has its ack held back until then. ``409 Consumer Deleted`` or no responders on a partition's
pull put that one partition in the same doubt.

It has three helpers, each with a noun of its own: `Handing` (handler calls and acks), `Failures`
(retries, dead letters, parked keys, stopped partitions) and `Upkeep` (progress, audit); `Saving`
keeps ``done.<member>``. A paused partition has no pull and hands nothing out; a stopped one hands
nothing out.
"""

from ..events import (
    Fenced,
    PartitionAssigned,
    PartitionLost,
    PartitionRevoked,
    Unfenced,
)
from ..model import (
    FailurePolicy,
    Message,
    PartitionRecord,
    PartitionState,
)
from ..naming import partition_key
from ..ports import (
    ClosePull,
    Delivered,
    Enter,
    Entered,
    Flush,
    Flushed,
    OpenPull,
    PullEnded,
    PullIdle,
)
from . import parking
from .context import Context, Part
from .failures import Failures
from .handing import Handing
from .handoff import RETRY_S, release, serve
from .ownership import Ownership, OwnershipState
from .saving import Saving
from .steps import Pause, Script
from .upkeep import Upkeep

NEVER = float("inf")


class Owner:
    """The partitions of one member."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.owned: dict[int, Ownership] = {}
        self.saving = Saving(context, self.owned)
        self._by_pull: dict[int, Ownership] = {}
        self._last_pull = 0
        self.handing = Handing(self, self.saving)
        self.failures = self.handing.detours = Failures(self, self.handing)
        self.upkeep = Upkeep(self)
        self.is_fenced = True
        """Whether ownership was in doubt when it was last looked at."""
        self.puts_down = False
        """Whether this process ends and keeps its partitions for the next one."""
        self._was_confirmed = False

    @property
    def num_running(self) -> int:
        """Handler calls under way."""
        return self.handing.num_running

    # ---- what the bucket says ----

    def is_mine(self, one: Ownership) -> bool:
        """Whether the book's record still names this process under this epoch."""
        record = self.context.book.partitions.get(one.partition)
        return record is not None and self.context.is_mine(record) and record.epoch == one.epoch

    def settle(self, partition: int) -> None:
        """Do what the partition's record asks of this member."""
        record = self.context.book.partitions.get(partition)
        one = self.owned.get(partition)
        if one is not None and not self.is_mine(one):
            if record is not None and record == one.given_away:
                self._revoke(one)
            else:
                self._lose(one)
            one = None
        self.saving.drop_carried(partition, record)
        if record is None or not self.context.is_mine(record):
            return
        if one is None:
            self._begin(record, partition)
            return
        self.failures.obey(one, record)
        if record.state is PartitionState.MOVING:
            if one.state is OwnershipState.SERVING:
                self._drain(one)
        elif one.state is OwnershipState.DRAINING:
            self.context.note_draining(partition, is_draining=False)
            one.state = OwnershipState.STARTING
            self.serve_again(one)

    def _begin(self, record: PartitionRecord, partition: int) -> None:
        one = Ownership(partition, record.epoch, record.floor, self.context.settings.group)
        one.level = self.context.num_partitions
        one.is_entered = not self.context.settings.has_hooks
        one.is_stopped = record.stopped_seq is not None
        one.skip_seq = record.skip_seq
        one.is_paused = self._is_paused(partition)
        self.owned[partition] = one
        self.context.note_draining(partition, is_draining=False)
        self.start(one, self._serve(one, is_again=False))

    def _serve(self, one: Ownership, *, is_again: bool) -> Script:
        """Steps 3 to 6; what is parked is known before the pull."""
        if self.context.settings.config.on_failure is not FailurePolicy.RETRY:
            while not one.knows_parked and not (yield from parking.claim(self.failures, one)):
                yield Pause(RETRY_S)
        yield from serve(self, one, is_again=is_again)

    def on_control(self) -> None:
        """Pause and resume what operators asked for."""
        for one in list(self.owned.values()):
            is_paused = self._is_paused(one.partition)
            if is_paused is one.is_paused:
                continue
            one.is_paused = is_paused
            if is_paused:
                self._close_pull(one)
            elif one.state is OwnershipState.SERVING:
                self.serve_again(one)

    def _is_paused(self, partition: int) -> bool:
        control = self.context.book.control
        return self.puts_down or control.is_paused or partition in control.paused

    def put_down(self) -> None:
        """Leave the partitions for a while, without giving them away: this process ends.

        Nothing is pulled or handed out any more; calls under way end, and then what the user keeps
        per partition is flushed.
        """
        self.puts_down = True
        self.on_control()
        for one in list(self.owned.values()):
            self.release_if_drained(one)

    @property
    def is_put_down(self) -> bool:
        """Whether nothing is left to wait for after `put_down`."""
        has_hooks = self.context.settings.has_hooks
        return not self.handing.num_running and not any(
            one.num_running
            or one.state is OwnershipState.DRAINING
            or (has_hooks and one.is_entered and not one.is_flushed)
            for one in self.owned.values()
        )

    def open(self, one: Ownership) -> None:
        """Step 6: pull from the consumer that was just made."""
        settings = self.context.settings
        if self.context.has_stream and one.is_paused:
            one.held_acks.clear()
        elif self.context.has_stream:
            self._last_pull += 1
            one.open(self._last_pull, self.context.now + settings.timing.ack_wait_s / 2)
            self.upkeep.opened(one)
            self._by_pull[self._last_pull] = one
            name = self.context.consumer(one.partition, one.epoch)
            self.context.out.append(
                OpenPull(pull=self._last_pull, name=name, partition=one.partition, epoch=one.epoch)
            )
        one.is_held = False
        one.state = OwnershipState.SERVING
        if not one.is_told:
            one.is_told = True
            record = self.context.book.partitions.get(one.partition)
            self.context.tell(
                PartitionAssigned(
                    partition=one.partition,
                    epoch=one.epoch,
                    cause="" if record is None else record.cause,
                    stopped_s=self.context.standstill_s(record),
                )
            )
            if settings.has_hooks:
                self.context.out.append(Enter(partition=one.partition, epoch=one.epoch))
        self.failures.replay_asked(one)
        self.handing.note_ready(one)
        self.context.changed.append(partition_key(one.partition))

    def on_entered(self, event: Entered) -> None:
        """What the user keeps for a partition is open: its messages may be handled."""
        one = self.owned.get(event.partition)
        if one is not None and one.epoch == event.epoch:
            one.is_entered = True
            self.handing.note_ready(one)

    def on_flushed(self, event: Flushed) -> None:
        """… is flushed: the partition may be given away."""
        one = self.owned.get(event.partition)
        if one is not None and one.epoch == event.epoch and one.is_flushing:
            one.is_flushing = False
            one.is_flushed = not one.must_flush_again
            one.must_flush_again = False
            self.release_if_drained(one)

    def _drain(self, one: Ownership) -> None:
        one.state = OwnershipState.DRAINING
        one.is_flushed = False
        one.must_flush_again = one.is_flushing
        self.context.note_draining(one.partition, is_draining=True)
        self.context.steps.cancel(("own", one.partition))
        self.failures.stop_replays(one)
        self._close_pull(one)
        one.lanes.drop_waiting()
        self.release_if_drained(one)

    def release_if_drained(self, one: Ownership) -> None:
        is_draining = one.state is OwnershipState.DRAINING
        if one.num_running or not (is_draining or self.puts_down):
            return
        if self.context.settings.has_hooks and one.is_entered and not one.is_flushed:
            if not one.is_flushing:
                one.is_flushing = True
                self.context.out.append(Flush(partition=one.partition, epoch=one.epoch))
            return
        if is_draining:
            self.handing.send_acks()
            self.start(one, release(self, one))

    def _revoke(self, one: Ownership) -> None:
        self._forget(one)
        self.context.tell(PartitionRevoked(partition=one.partition, epoch=one.epoch))

    def _lose(self, one: Ownership) -> None:
        self._forget(one)
        self.context.tell(PartitionLost(partition=one.partition, epoch=one.epoch))

    def _forget(self, one: Ownership) -> None:
        self.saving.carry(one)
        self._close_pull(one)
        self.failures.forget(one)
        self.handing.forget(one)
        self.context.steps.cancel(("own", one.partition))
        del self.owned[one.partition]

    def start(self, one: Ownership, script: Script) -> None:
        self.context.steps.start(("own", one.partition), script, self.context.now)

    def serve_again(self, one: Ownership) -> None:
        """Make the consumer anew from the floor."""
        self._close_pull(one)
        self.start(one, self._serve(one, is_again=True))

    def _close_pull(self, one: Ownership) -> None:
        if one.pull is not None:
            self.context.out.append(ClosePull(pull=one.pull))
            self._by_pull.pop(one.pull, None)
            one.pull = None

    # ---- what the consumers say ----

    def on_delivered(self, event: Delivered) -> None:
        """Take messages of a pull."""
        self.fence()
        one = self._by_pull.get(event.pull)
        if one is None:
            return
        acks: list[Message] = []
        one.num_pending = event.num_pending
        is_whole = one.deliver(event.messages, acks)
        self.handing.take_acks(one, acks)
        self.handing.note_ready(one)
        if not is_whole:
            self.serve_again(one)

    def on_idle(self, event: PullIdle) -> None:
        """Compare the server's last delivery with ours: a hole at the end shows in nothing else."""
        one = self._by_pull.get(event.pull)
        if one is not None and event.consumer_seq != one.consumer_seq:
            self.serve_again(one)

    def on_ended(self, event: PullEnded) -> None:
        """The consumer is gone: perhaps the partition is, too."""
        one = self._by_pull.get(event.pull)
        if one is not None:
            one.is_held = True
            self.serve_again(one)

    def on_connection_lost(self) -> None:
        """Pulls are gone; lanes go on until the fence."""
        for one in self.owned.values():
            self._close_pull(one)

    def on_connection_back(self) -> None:
        """Make every consumer anew: nobody knows which deliveries and acks got through."""
        for one in self.owned.values():
            if one.state is OwnershipState.SERVING:
                self.serve_again(one)

    def hold_all(self) -> None:
        """Nobody knows any more whose the partitions are: start and ack nothing."""
        for one in self.owned.values():
            one.is_held = True

    def resume(self) -> None:
        """Take up again what joining anew abandoned: its scripts are gone, its ownerships not."""
        for one in list(self.owned.values()):
            self.failures.resume(one)
            if ("own", one.partition) in self.context.steps:
                continue
            if one.state is OwnershipState.DRAINING:
                self.release_if_drained(one)
            else:
                self.serve_again(one)

    def close(self) -> None:
        """Stop pulling everything, for good."""
        self.handing.send_acks()
        for one in self.owned.values():
            self._close_pull(one)

    # ---- time ----

    def tick(self) -> None:
        """Fence, confirm, wake lanes, save, audit."""
        self.fence()
        self.handing.wake()
        if not self.is_fenced:
            self.upkeep.tick()
            self.saving.tick()

    @property
    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        if self.is_fenced:
            return self.handing.next_wake_s
        timeout_s = self.context.settings.timing.heartbeat_timeout_s
        return min(
            self.handing.next_wake_s,
            self.context.confirmed_at + timeout_s + 1e-6,
            self.upkeep.next_deadline,
            self.saving.next_deadline,
        )

    def fence(self) -> None:
        is_fenced = self.context.is_fenced
        if is_fenced is self.is_fenced:
            return
        self.is_fenced = is_fenced
        if is_fenced:
            for one in self.owned.values():
                one.is_held = True
            self.context.tell(Fenced(member=self.context.settings.member))
            return
        if self._was_confirmed:
            self.context.tell(Unfenced(member=self.context.settings.member))
        self._was_confirmed = True
        for one in self.owned.values():
            if one.state is not OwnershipState.SERVING:
                one.is_held = False
            elif ("own", one.partition) not in self.context.steps:
                self.start(one, self._recheck(one))

    def _recheck(self, one: Ownership) -> Script:
        while not (yield from self.context.refresh(one.partition)):
            yield Pause(RETRY_S)
        if not self.is_mine(one) or self.context.is_fenced:
            return
        if one.pull is None and self.context.has_stream:
            yield from self._serve(one, is_again=True)
            return
        one.is_held = False
        self.handing.take_held_acks(one)
        self.handing.note_ready(one)

    # ---- what is saved ----

    def save(self) -> Part:
        """Write ``done.<member>``; False: not written, to be tried again."""
        return (yield from self.saving.save())

    def load(self) -> Part:
        """Read what this member's name saved before: a new process must not lose it."""
        return (yield from self.saving.load())
