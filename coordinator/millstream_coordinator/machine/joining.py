"""Getting into the group, and the record that says so.

Joining is one script: make the bucket, agree on ``cfg``, load what this name saved before, write
``members.<id>``. Whatever fails is tried again from the beginning. What can never succeed ends the
member, with one exception: who was in the group already (its bucket was lost) has work to go on
with, and tries for as long as it takes. A cluster that misses a node refuses new replicated
buckets, and does so no longer than the node is gone.
"""

from collections.abc import Callable
from dataclasses import replace

from ..errors import (
    BadRecord,
    ConfigMismatch,
    GroupError,
    GroupTooNew,
    StreamUnfit,
)
from ..events import JoinRefused, StreamDoubtful
from ..model import ConfigRecord, MemberRecord, decode, encode
from ..naming import CONFIG_KEY, member_key
from ..ports import Failed, Failure, KeyRead, Prepare, Prepared, ReadKey, Reply, WriteKey, Written
from .agreement import agree, differences
from .book import VERSION, version_of
from .context import Context, Part
from .handoff import RETRY_S
from .owner import Owner
from .steps import Pause, Script


class Joining:
    """One member's way in."""

    def __init__(
        self, context: Context, owner: Owner, end: Callable[[GroupError | None], None]
    ) -> None:
        """``end`` is told why this can never succeed."""
        self._context = context
        self._owner = owner
        self._end = end
        self.is_leaving = False
        """What the member's record says from now on: it is to be relieved."""
        self.is_away = False
        """… it is gone for a while."""
        self._was_in = False
        self._refusal = ""
        self._warnings: tuple[str, ...] = ()

    def join(self) -> Script:
        """Try until this is a member."""
        while not (yield from self._join_once()):
            yield Pause(RETRY_S)
        self._was_in = True
        self._refusal = ""

    def _join_once(self) -> Part:
        context = self._context
        prepared = yield Prepare(id=context.steps.take_id())
        if not isinstance(prepared, Prepared):
            self._note_refusal(prepared)
            return False
        context.begins_at = prepared.begins_at
        context.has_key_ttl = prepared.has_key_ttl
        context.may_overlap = prepared.may_overlap
        self._warn(prepared.warnings)
        if not (yield from self._agree()):
            return False
        if not (yield from self._owner.load()):
            return False
        if not (yield from context.refresh_key(member_key(context.settings.member))):
            return False
        return (yield from self.put_member())

    def _note_refusal(self, reply: Reply) -> None:
        if not isinstance(reply, Failed):
            return
        if reply.reason not in (Failure.REFUSED, Failure.STREAM_GONE):
            return
        settings = self._context.settings
        if not self._was_in:
            self._end(StreamUnfit(settings.config.stream or "", reply.detail))
        elif reply.detail != self._refusal:
            self._refusal = reply.detail
            self._context.tell(JoinRefused(member=settings.member, reason=reply.detail))

    def _warn(self, warnings: tuple[str, ...]) -> None:
        for text in warnings:
            if text not in self._warnings:
                self._context.tell(StreamDoubtful(text=text))
        self._warnings = warnings

    def _agree(self) -> Part:
        """Write ``cfg``, or find that it says the same."""
        context = self._context
        wanted = context.settings.config
        read = yield ReadKey(id=context.steps.take_id(), key=CONFIG_KEY)
        if not isinstance(read, KeyRead):
            return False
        if read.value is None:
            # What was known of a bucket that is gone: it may have had more partitions by then.
            known = replace(context.config, begins_at=context.begins_at)
            return (yield from self._put_config(agree(known, wanted), read.revision))
        version = version_of(read.value)
        if version > VERSION:
            self._end(GroupTooNew(context.settings.group, version, VERSION))
            return False
        try:
            found = decode(ConfigRecord, read.value)
        except BadRecord as error:
            self._end(error)
            return False
        differing = differences(found, wanted)
        if differing is not None:
            has, wants = differing
            self._end(ConfigMismatch(context.settings.group, wants, has))
            return False
        agreed = replace(agree(found, wanted), begins_at=context.begins_at)
        if agreed != found:
            return (yield from self._put_config(agreed, read.revision))
        context.note(CONFIG_KEY, read.value, read.revision)
        return True

    def _put_config(self, config: ConfigRecord, revision: int) -> Part:
        value = encode(config)
        id_ = self._context.steps.take_id()
        wrote = yield WriteKey(id=id_, key=CONFIG_KEY, value=value, revision=revision)
        if isinstance(wrote, Written):
            self._context.note(CONFIG_KEY, value, wrote.revision)
        return isinstance(wrote, Written)

    # ---- the member's record ----

    @property
    def grace_s(self) -> float:
        """For how long this name keeps its partitions without a process."""
        settings = self._context.settings
        return settings.timing.static_grace_s if settings.is_static else 0.0

    def put_member(self) -> Part:
        """Write ``members.<id>`` over whatever is known to be there."""
        context = self._context
        settings = context.settings
        key = member_key(settings.member)
        record = MemberRecord(
            instance=settings.instance,
            capacity=settings.capacity,
            labels=settings.labels,
            host=settings.host,
            pid=settings.pid,
            joined_ns=settings.joined_ns,
            is_static=settings.is_static,
            is_leaving=self.is_leaving,
            is_away=self.is_away,
            software=settings.software,
        )
        value = encode(record)
        wrote = yield WriteKey(
            id=context.steps.take_id(),
            key=key,
            value=value,
            revision=context.book.revision(key),
            ttl_s=settings.timing.lease_s + self.grace_s,
        )
        if isinstance(wrote, Written):
            context.note(key, value, wrote.revision)
        return isinstance(wrote, Written)

    def renew(self) -> Script:
        """Write ``members.<id>`` anew, unless another process has the name now."""
        key = member_key(self._context.settings.member)
        while not (yield from self.put_member()):
            yield Pause(RETRY_S)
            yield from self._context.refresh_key(key)
            if self.is_replaced:
                return

    @property
    def is_replaced(self) -> bool:
        """Whether another process has this member's name."""
        settings = self._context.settings
        record = self._context.book.members.get(settings.member)
        return record is not None and record.instance != settings.instance
