"""What an owner does from time to time: tell the server what is still being worked on, and compare.

**Progress.** What has waited in a lane for half of ``ack_wait`` is reported as being worked on, so
that the server does not deliver it again. **Audit.** Acks are not confirmed; one that got lost
leaves a message pending that only ``ack_wait`` would give back. So an owner looks at its consumers
now and then, and makes one anew whose ack floor stands where ours has passed.
"""

from ..ports import Ack, ConsumerRead, ReadConsumer
from .ownership import Holder, Ownership, OwnershipState
from .steps import Script

NEVER = float("inf")


class Upkeep:
    """The regular work on one member's partitions."""

    def __init__(self, owner: Holder) -> None:
        self.context = owner.context
        self._owner = owner
        self._audit_at = NEVER
        self._progress_at = NEVER

    def opened(self, one: Ownership) -> None:
        """Take in a pull that was just opened."""
        self._progress_at = min(self._progress_at, one.progress_at)

    def tick(self) -> None:
        """Do what is due."""
        self._progress()
        self._audit()

    @property
    def next_deadline(self) -> float:
        """When something is."""
        return min(self._audit_at, self._progress_at)

    def _progress(self) -> None:
        now = self.context.now
        if now < self._progress_at:
            return
        self._progress_at = NEVER
        for one in self._owner.owned.values():
            if one.pull is None:
                continue
            if now >= one.progress_at:
                one.progress_at = now + self.context.settings.timing.ack_wait_s / 2
                self.context.out.extend(
                    Ack(message=message, is_progress=True) for message in one.lanes.all()
                )
            self._progress_at = min(self._progress_at, one.progress_at)

    def _audit(self) -> None:
        now = self.context.now
        if not self._owner.owned or not self.context.has_stream:
            self._audit_at = NEVER
            return
        if self._audit_at == NEVER:
            self._audit_at = now + self.context.settings.timing.audit_interval_s
        if now < self._audit_at:
            return
        self._audit_at = now + self.context.settings.timing.audit_interval_s
        for one in self._owner.owned.values():
            if one.state is OwnershipState.SERVING and not one.is_held and one.pull is not None:
                self.context.steps.start(("audit", one.partition), self._audit_script(one), now)

    def _audit_script(self, one: Ownership) -> Script:
        """Look for acks that got lost: they take room that only ``ack_wait`` would give back."""
        floor_before, one.audited_floor = one.audited_floor, one.floor.floor
        pull = one.pull
        name = self.context.consumer(one.partition, one.epoch)
        info = yield ReadConsumer(id=self.context.steps.take_id(), name=name)
        if not isinstance(info, ConsumerRead) or one.pull != pull or floor_before is None:
            return
        is_lost = info.ack_floor < floor_before and info.num_ack_pending > one.floor.num_waiting
        if not info.is_there or (info.delivered and is_lost):
            self._owner.serve_again(one)
