"""The failures of one member's messages: what `policies` and `parking` work on.

This is where a message's way parts from the handler: after a call that failed (`fail`), and before
one that must not be made (`detour`): a message of a parked key, one an operator wants skipped, one
whose key is being replayed.
"""

from ..events import MessageGivenUp, MessageRetried, PartitionResumed, PartitionStopped
from ..model import FailurePolicy, LetterReason, Message, ParkedRecord, PartitionRecord
from ..naming import parked_key
from ..ports import Done, Failed, Failure, Handled
from .handing import Handing
from .handoff import raise_epoch
from .lanes import lane_key
from .ownership import GivenUp, Holder, Ownership, OwnershipState
from .parking import park, replay, restore
from .policies import error_line, letter_token, retry_delay_s, skipped, stop, store


class Failures:
    """What failed, what is parked, and what is replayed, over all partitions of a member."""

    def __init__(self, owner: Holder, handing: Handing) -> None:
        self.context = owner.context
        self.owner = owner
        self._handing = handing

    def fail(self, one: Ownership, batch: tuple[Message, ...], event: Handled) -> None:
        config = self.context.settings.config
        message = batch[0]
        error = error_line(event.error or "")
        is_over = config.on_failure is not FailurePolicy.RETRY and len(batch) == 1
        is_over = is_over and message.attempt >= config.max_attempts
        if event.seen_epoch is not None:
            self._retry(one, batch, error, is_attempt=False)
            if one.state is OwnershipState.SERVING:
                one.is_held = True
                self.owner.start(one, raise_epoch(self.owner, one, event.seen_epoch))
        elif not is_over:
            self._retry(one, batch, error, is_attempt=True)
        elif config.on_failure is FailurePolicy.STOP or self._is_full_of_parked(one):
            self._stop(one, message, error)
        else:
            # Without a key there is nothing that would have to wait behind it.
            is_parking = config.on_failure is FailurePolicy.PARK and message.key is not None
            reason = LetterReason.PARK if is_parking else LetterReason.DEAD_LETTER
            self.store(one, GivenUp(message, letter_token(message), reason, error))

    def _is_full_of_parked(self, one: Ownership) -> bool:
        is_parking = self.context.settings.config.on_failure is FailurePolicy.PARK
        return is_parking and len(one.parked) >= self.context.settings.limits.max_parked_keys

    def _retry(
        self, one: Ownership, batch: tuple[Message, ...], error: str, *, is_attempt: bool
    ) -> None:
        message = batch[0]
        delay_s = retry_delay_s(self.context.settings.timing, message.attempt, message.seq)
        self.context.tell(
            MessageRetried(
                partition=one.partition,
                seq=message.seq,
                attempt=message.attempt,
                delay_s=delay_s,
                error=error,
            )
        )
        if is_attempt:
            for each in batch:
                each.attempt += 1
        one.lanes.retry_batch(batch, self.context.now + delay_s)
        self._handing.sleep(one)

    def detour(self, one: Ownership, message: Message) -> bool:
        """Send a message that was started where it belongs, if that is not the handler."""
        if message.seq == one.skip_seq:
            error = "skipped by an operator"
            token = letter_token(message)
            self.store(one, GivenUp(message, token, LetterReason.SKIP, error))
            return True
        token = letter_token(message)
        if token in one.replaying:
            one.lanes.hold(message)
            one.replaying[token] = lane_key(message)
            return True
        if token in one.parked:
            error = f"waits behind message {one.parked[token]} of its key"
            self.store(one, GivenUp(message, token, LetterReason.PARK, error))
            return True
        return False

    def store(self, one: Ownership, given_up: GivenUp) -> None:
        one.given_up[given_up.message.seq] = given_up
        is_parking = given_up.reason is LetterReason.PARK
        script = (park if is_parking else store)(self, one, given_up)
        key = ("letter", one.partition, given_up.message.seq)
        self.context.steps.start(key, script, self.context.now)

    def letter_stored(self, one: Ownership, given_up: GivenUp) -> None:
        """A message is among the letters: for the partition's books it is handled."""
        message = given_up.message
        del one.given_up[message.seq]
        self._handing.complete(one, message)
        self.context.tell(
            MessageGivenUp(
                partition=one.partition,
                seq=message.seq,
                reason=given_up.reason.value,
                attempts=message.attempt,
                error=given_up.error,
            )
        )
        if one.skip_seq == message.seq:
            script = skipped(self, one, message.seq)
            self.context.steps.start(("stop", one.partition), script, self.context.now)
        self._handing.note_ended(one)

    def _stop(self, one: Ownership, message: Message, error: str) -> None:
        one.lanes.hold(message)
        one.stopped_by.append(message)
        if one.is_stopped:
            return
        one.stopped_error = error
        one.is_stopped = True
        self.write_stop(one, message.seq)
        self.context.tell(PartitionStopped(partition=one.partition, seq=message.seq, error=error))

    def write_stop(self, one: Ownership, seq: int) -> None:
        script = stop(self, one, seq, one.stopped_error)
        self.context.steps.start(("stop", one.partition), script, self.context.now)

    def on_parked(self, partition: int) -> None:
        """Hear what is parked, and what is to be replayed."""
        one = self.owner.owned.get(partition)
        record = self.context.book.parked.get(partition)
        if one is None or not one.knows_parked:
            return
        if record is not None:
            self.take_parked(one, record)
        elif one.parked and self.owner.is_mine(one):  # lost: operators need it
            key = ("parked", partition)
            self.context.steps.start(key, restore(self, one), self.context.now)

    def take_parked(self, one: Ownership, record: ParkedRecord) -> None:
        """Take what is parked from the record, as long as this owner is its last writer."""
        if record.epoch != one.epoch:
            return
        one.parked = dict(record.keys)
        for token in record.replay:
            one.replaying.setdefault(token, None)
        self.replay_asked(one)

    def replay_asked(self, one: Ownership) -> None:
        if one.state is OwnershipState.SERVING:
            for token in list(one.replaying):
                if ("replay", one.partition, token) not in self.context.steps:
                    self._start_replay(one, token)

    def _start_replay(self, one: Ownership, token: str) -> None:
        key = ("replay", one.partition, token)
        self.context.steps.start(key, replay(self, one, token), self.context.now)

    def stop_replays(self, one: Ownership) -> None:
        for token in one.replaying:
            self.context.steps.cancel(("replay", one.partition, token))

    def may_call(self, one: Ownership) -> bool:
        """Whether a letter may be handed to the handler now."""
        has_room = self._handing.num_running < self.context.settings.limits.max_lanes
        return has_room and one.is_serving and not self.context.is_fenced

    def begin_replayed(self, one: Ownership, message: Message) -> int:
        """Note the handler call of a letter; returns the id of its command."""
        id_ = self.context.steps.take_id()
        one.replayed[message.seq] = (message, id_)
        self._handing.num_running += 1
        return id_

    def end_replayed(self, one: Ownership, event: Handled) -> None:
        message, id_ = one.replayed.get(event.message.seq, (None, 0))
        if message is not event.message:
            return
        del one.replayed[message.seq]
        reply: Done | Failed = Done(id=id_)
        if event.error is not None or not event.is_called:
            reply = Failed(id=id_, reason=Failure.REFUSED)
            if event.is_called and event.seen_epoch is None:
                message.attempt += 1
        if event.seen_epoch is not None and one.state is OwnershipState.SERVING:
            one.is_held = True
            self.owner.start(one, raise_epoch(self.owner, one, event.seen_epoch))
        self.context.steps.receive(reply, self.context.now)
        self._handing.note_ended(one)

    def replay_ended(self, one: Ownership, token: str) -> None:
        """Let the key go on; and look again, for it may have been asked for anew meanwhile."""
        lane = one.replaying.pop(token, None)
        if lane is not None:
            one.lanes.let_go(lane)
            self._handing.note_ready(one)
        self.context.changed.append(parked_key(one.partition))

    def obey(self, one: Ownership, record: PartitionRecord) -> None:
        """Stop, go on, or skip, as the partition's record says."""
        one.skip_seq = record.skip_seq
        if record.stopped_seq is not None:
            one.is_stopped = True
        elif one.is_stopped and ("stop", one.partition) not in self.context.steps:
            one.is_stopped = False
            self.context.tell(PartitionResumed(partition=one.partition))
            stopped_by, one.stopped_by = one.stopped_by, []
            for message in stopped_by:
                message.attempt = 1
                one.lanes.let_go(lane_key(message))
            self._handing.note_ready(one)

    def resume(self, one: Ownership) -> None:
        """Begin again what joining anew abandoned, and hear what was said meanwhile."""
        self.on_parked(one.partition)
        steps = self.context.steps
        for given_up in one.given_up.values():
            if ("letter", one.partition, given_up.message.seq) not in steps:
                self.store(one, given_up)
        if one.stopped_by and ("stop", one.partition) not in steps:
            self.write_stop(one, one.stopped_by[0].seq)
        for token in list(one.replaying):
            if ("replay", one.partition, token) not in steps:
                self._start_replay(one, token)

    def forget(self, one: Ownership) -> None:
        """It is owned no more: abandon what is under way."""
        self.stop_replays(one)
        for seq in one.given_up:
            self.context.steps.cancel(("letter", one.partition, seq))
        self.context.steps.cancel(("stop", one.partition))
        self.context.steps.cancel(("parked", one.partition))
