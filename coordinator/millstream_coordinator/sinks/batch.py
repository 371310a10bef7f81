"""A sink that publishes any number of messages per effect, exactly once, with a state per key.

From NATS to NATS, on nats-server 2.12 and later::

    sink = await BatchSink.open(connection, stream="SHOP", group="orders")

    @group.handler(key="orders.*.{key}")
    async def split(message: Message) -> None:
        await sink.apply(
            message, [Output(subject=f"shop.line.{it.sku}", data=it.raw) for it in lines(message)]
        )

or with a state, which is read, changed and stored in the same step as the outputs::

    def step(state: bytes | None) -> Step:
        total = int(state or 0) + amount(message.data)
        return Step(outputs=[Output(subject="shop.total", data=b"%d" % total)], state=b"%d" % total)

    await sink.apply(message, step)

**One effect is one atomic batch**: [outputs…, checkpoint], stored as a whole or not at all. Two
conditions are in it, which the server checks at the commit:

* the checkpoint's, that its subject's last sequence is that of the mark which was judged;
* the first output's, that the last sequence of the *partition's fence* is still the one that was
  read (``Nats-Expected-Last-Subject-Sequence-Subject``). An effect without outputs carries a
  message of the sink's own for it.

A new owner's first effect, or `BatchSink.fence`, writes the fence with its epoch, so that it has
another sequence and every batch of an older owner is refused as a whole, whatever its key.

**What the sink stores**, in the same stream, as a batch knows no other, under ``<prefix>`` (of the
group: ``millstream.sink.<group>``):

============================ =======================================================================
``<prefix>.key.<entry>``     a key's checkpoint: its mark in a header, its state as the data
``<prefix>.fence.<n>``       a partition's fence: header ``Millstream-Epoch``
``<prefix>.guard.<n>``       what carries the fence's condition where there are no outputs
============================ =======================================================================

The stream must take ``<prefix>.>`` and have ``allow_atomic``; with ``allow_rollup_hdrs`` only the
last message of each such subject is kept. Who reads the stream's outputs filters for them. The
checkpoint of a message without a key is one for each such message. Limits of the stream that drop
checkpoints take their marks along.

Servers before 2.12 store the messages of a batch one by one and answer ok, so the level is asked
for before anything is sent. A batch that is left incomplete, by a cut connection or a killed
process, is dropped by the server after ten seconds; it counts as one of the 50 that a stream has
room for until then, and a batch that finds no room is tried again after a moment.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import nats.errors
from nats.aio.client import Client

from ..jetstream.api import (
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
    Stored,
    api_prefix,
    pass_cancellation,
)
from ..naming import check_name
from ..partitioning.key import key_headers
from ..ports import Failure
from .contract import (
    BadEffect,
    BadMark,
    SinkContended,
    SinkCounters,
    SinkDisconnected,
    SinkError,
    SinkUnavailable,
    SinkUnfit,
    StaleEpoch,
    Unconfirmed,
    admits,
    pause_s,
)
from .entries import Remembered, stored_marks
from .mark import (
    MARK_HEADER,
    Entry,
    Fenced,
    Verdict,
    encode_marks,
    entry_key,
    entry_of_key,
)
from .outlet import TIMEOUT_S, Outlet, Output, is_literal, unavailable

EPOCH_HEADER: Final = "Millstream-Epoch"
"""On a partition's fence: the highest epoch it has seen."""
LEVEL_NEEDED: Final = 2
"""API level of nats-server 2.12, the first with atomic batches."""
OUTPUTS_MAX: Final = 999
"""nats-server takes 1000 messages in a batch; one is the checkpoint."""

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
_NOT_STORED = (10176, 10210)
"""The batch was not complete, or there was no room for one more: nothing of it is stored."""
_NEVER = (10054, 10097, 10165, 10166, 10168, 10177, 10199, 10201)
"""Sizes, headers and message ids that are refused whenever they come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What becomes of a message: outputs in order, and its key's new state (None: none)."""

    outputs: Sequence[Output] = ()
    state: bytes | None = None


Effect = Sequence[Output] | Callable[[bytes | None], Step]
"""Outputs that leave the state as it is; or from the state before (None: there is none) to a Step.

A function is called again when another batch came between or the connection broke: it must have no
effects of its own.
"""


@dataclass(frozen=True, slots=True)
class _Fence:
    """A partition's fence as it is stored; ``revision`` 0: it is not there."""

    epoch: int = 0
    revision: int = 0


class _Conflict(Exception):
    """A condition did not hold: what was judged is not what is stored."""


class _NotStored(Exception):
    """Nothing of the batch is stored, for a reason that passes."""


class BatchSink:
    """Effects are batches of outputs; one object serves any number of tasks. Made by `open`."""

    def __init__(
        self,
        api: Api,
        outlet: Outlet,
        prefix: str,
        *,
        batches_max: int = 16,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> None:
        self.name = outlet.sink
        self.counters = SinkCounters()
        self.prefix = prefix
        self._api = api
        self._outlet = outlet
        self._under_way = asyncio.Semaphore(batches_max)
        self._attempts_max = attempts_max
        self._remembered = Remembered(remembered_max)
        self._fences: dict[int, _Fence] = {}
        self._unconfirmed = Unconfirmed(remembered_max)

    @classmethod
    async def open(
        cls,
        connection: Client,
        *,
        stream: str,
        group: str,
        prefix: str | None = None,
        domain: str | None = None,
        batches_max: int = 16,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> Self:
        """Make the sink of a group on a stream that is there.

        ``batches_max`` at one time, of the 50 a stream has room for in all. ``prefix``: of the
        sink's own subjects; two groups may not share one. Raises BadName, SinkUnfit (the server is
        too old, the stream does not fit), SinkUnavailable.
        """
        name = f"batch:{stream}"
        if prefix is None:
            prefix = f"millstream.sink.{check_name('group', group)}"
        if not is_literal(prefix):
            raise SinkUnfit(name, f"prefix {prefix!r} is no literal subject")
        api = Api(connection, TIMEOUT_S, api_prefix(domain))
        try:
            level = int((await api.call("INFO")).get("api", {}).get("level", 0))
        except RequestFailed as error:
            raise SinkUnavailable(name, error.detail) from error
        if level < LEVEL_NEEDED:
            raise SinkUnfit(
                name,
                f"atomic batches need nats-server 2.12 (API level {LEVEL_NEEDED}),"
                f" {api.url} has level {level}",
            )
        outlet = await Outlet.read(api, stream, name)
        outlet.check_own(f"{prefix}.>")
        if not outlet.allows_atomic:
            raise SinkUnfit(name, f"stream {stream!r} takes no atomic batches: set allow_atomic")
        return cls(
            api,
            outlet,
            prefix,
            batches_max=batches_max,
            attempts_max=attempts_max,
            remembered_max=remembered_max,
        )

    async def apply(self, message: Fenced, effect: Effect, /) -> Verdict:
        """See `Sink`. Raises StaleEpoch, BadEffect, SinkUnavailable, SinkContended or BadMark."""
        self.counters.attempts += 1
        where = entry_key(message)
        subject = f"{self.prefix}.key.{where}"
        failure: SinkError = SinkContended(self.name, where, self._attempts_max)
        for attempt in range(self._attempts_max):
            try:
                fence = await self._raised(message.partition, message.epoch)
                entry = self._remembered.get(subject) or await self._load(subject)
                mark = entry.marks.get(message.mark)
                if self._unconfirmed.found(where, message, mark):
                    self.counters.applied += 1
                    return Verdict.APPLY
                if not admits(message, mark, self.counters, fence_epoch=fence.epoch):
                    return Verdict.REPEAT
                step = self._step(effect, entry)
                async with self._under_way:
                    await self._store(where, message, fence, entry, step)
            except _Conflict:
                self._remembered.forget(subject)
                self._fences.pop(message.partition, None)
            except _NotStored as error:
                failure = SinkUnavailable(self.name, str(error))
                await asyncio.sleep(pause_s(attempt))
            except SinkDisconnected as error:
                failure = error
                if not await self._api.link.until_up(TIMEOUT_S):
                    break
            else:
                self.counters.applied += 1
                return Verdict.APPLY
        raise failure

    async def state(self, key: bytes) -> bytes | None:
        """A key's state now, read from the server; None if there is none."""
        return (await self._load(f"{self.prefix}.key.{entry_of_key(key)}")).value

    async def fence(self, partition: int, epoch: int) -> None:
        """Refuse effects of lower epochs in this partition from now on, whatever their key.

        A new owner's first effect does so as well. Raises StaleEpoch if a higher epoch was here,
        SinkUnavailable or SinkContended.
        """
        for _ in range(self._attempts_max):
            try:
                fence = await self._raised(partition, epoch)
            except _Conflict:
                continue
            if fence.epoch > epoch:
                raise StaleEpoch(partition, epoch, fence.epoch)
            return
        raise SinkContended(self.name, self._fence_subject(partition), self._attempts_max)

    def _step(self, effect: Effect, entry: Entry) -> Step:
        """Ask the effect what is to be done, and check it. Raises BadEffect."""
        step = effect(entry.value) if callable(effect) else Step(outputs=effect, state=entry.value)
        if len(step.outputs) > OUTPUTS_MAX:
            raise BadEffect(
                self.name, f"{len(step.outputs)} outputs, over the {OUTPUTS_MAX} of one batch"
            )
        size_max = self._api.connection.max_payload
        for output in step.outputs:
            subject = output.subject
            if not is_literal(subject) or not self._outlet.takes(subject):
                raise BadEffect(
                    self.name, f"stream {self._outlet.stream!r} does not take subject {subject!r}"
                )
            if subject.startswith(f"{self.prefix}."):
                raise BadEffect(self.name, f"subject {subject!r} is one of the sink's own")
            self._outlet.check(output, size_max)
        self._outlet.check(Output(data=step.state or b""), size_max)
        return step

    async def _store(
        self, where: str, message: Fenced, fence: _Fence, before: Entry, step: Step
    ) -> None:
        """Publish outputs and checkpoint as one batch. Raises _Conflict, _NotStored, SinkError."""
        subject = f"{self.prefix}.key.{where}"
        members = [(it.subject, it.data, dict(it.headers)) for it in step.outputs]
        if not members:
            members = [(f"{self.prefix}.guard.{message.partition}", b"", self._rollup())]
        members[0][2][_EXPECTED_SUBJECT] = self._fence_subject(message.partition)
        members[0][2][_EXPECTED] = str(fence.revision)
        marks = before.marks_after(message)
        checkpoint = {
            **key_headers(message.key),
            **self._rollup(),
            MARK_HEADER: encode_marks(marks),
        }
        if step.state is None:
            checkpoint[_STATELESS] = "1"
        self._remembered.forget(subject)
        try:
            seq = await self._publish(
                members, (subject, step.state or b"", checkpoint), before.revision
            )
        except (SinkUnavailable, asyncio.CancelledError):
            # It may be stored all the same: the next attempt at this message finds out.
            self._unconfirmed.add(where, message)
            raise
        self._unconfirmed.forget(where, message)
        self._remembered.put(subject, Entry(step.state, marks, seq))

    async def _publish(
        self,
        members: Sequence[tuple[str, bytes, dict[str, str]]],
        last: tuple[str, bytes, dict[str, str]],
        expected: int,
    ) -> int:
        """Send a batch whose last message is stored where ``expected`` is the last; its sequence.

        Raises _Conflict and _NotStored with nothing stored; SinkUnavailable when nobody knows.
        """
        connection = self._api.connection
        if not connection.is_connected:
            raise SinkDisconnected(self.name, "the connection is down")
        batch_id = secrets.token_hex(11)
        try:
            for place, (subject, data, headers) in enumerate(members, 1):
                numbered = {**headers, "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(place)}
                await connection.publish(subject, data, headers=numbered)
            pass_cancellation()
            subject, data, headers = last
            committing = {
                **headers,
                "Nats-Batch-Id": batch_id,
                "Nats-Batch-Sequence": str(len(members) + 1),
                "Nats-Batch-Commit": "1",
            }
            return await self._api.publish(subject, data, committing, expected=expected)
        except (nats.errors.Error, OSError) as error:
            raise SinkUnavailable(self.name, str(error) or type(error).__name__) from error
        except RequestFailed as error:
            if error.reason is not Failure.REFUSED:
                raise unavailable(self.name, error) from error
            if error.code in WRONG_LAST_SEQUENCE:
                raise _Conflict from error
            if error.code in _NOT_STORED:
                raise _NotStored(error.detail) from error
            if error.code in _NEVER:
                raise BadEffect(self.name, error.detail) from error
            raise SinkUnavailable(self.name, error.detail) from error

    async def _raised(self, partition: int, epoch: int) -> _Fence:
        """The partition's fence, raised to ``epoch`` if it is lower.

        Raises _Conflict when somebody else wrote it meanwhile.
        """
        fence = self._fences.get(partition)
        if fence is None:
            fence = await self._load_fence(partition)
        if fence.epoch < epoch:
            self._fences.pop(partition, None)
            headers = {**self._rollup(), EPOCH_HEADER: str(epoch)}
            subject = self._fence_subject(partition)
            try:
                seq = await self._api.publish(subject, b"", headers, expected=fence.revision)
            except RequestFailed as error:
                if error.code in WRONG_LAST_SEQUENCE:
                    raise _Conflict from error
                raise unavailable(self.name, error) from error
            fence = _Fence(epoch, seq)
        self._fences[partition] = fence
        return fence

    async def _load_fence(self, partition: int) -> _Fence:
        found = await self._read(self._fence_subject(partition))
        if found is None:
            return _Fence()
        text = found.headers.get(EPOCH_HEADER, "")
        if not text.isdecimal():
            raise BadMark(self.name, self._fence_subject(partition), text)
        return _Fence(int(text), found.seq)

    async def _load(self, subject: str) -> Entry:
        found = await self._read(subject)
        if found is None:
            return Entry()
        marks = stored_marks(self.name, subject, found.headers)
        entry = Entry(None if _STATELESS in found.headers else found.data, marks, found.seq)
        self._remembered.put(subject, entry)
        return entry

    async def _read(self, subject: str) -> Stored | None:
        """The last message on a subject, from the stream's leader. Raises SinkUnavailable."""
        try:
            return await self._api.last(self._outlet.stream, subject)
        except RequestFailed as error:
            raise unavailable(self.name, error) from error

    def _fence_subject(self, partition: int) -> str:
        return f"{self.prefix}.fence.{partition}"

    def _rollup(self) -> dict[str, str]:
        return {"Nats-Rollup": "sub"} if self._outlet.allows_rollup else {}


_STATELESS = "Millstream-Stateless"
"""On a checkpoint: there is no state, which an empty one would be."""
