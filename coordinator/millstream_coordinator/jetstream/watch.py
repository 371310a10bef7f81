"""The watch: every key's newest value that matters, then each change, from a consumer of its own.

It is an ephemeral pull consumer on the newest message of each subject, read by a standing pull. A
push consumer would do the same with more: a subject to deliver to, flow control to answer, and a
second permission for each; and it does not reach over an account's import.

The watch is opened anew after every reconnect, hole, or silence; values come again and the book
ignores them. Only the newest opening counts: one that is overtaken while it waits for the server
closes what it had made.
"""

import logging
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg

from .. import naming
from ..ports import BucketGone, KeyChanged, WatchCaughtUp
from .api import STREAM_NOT_FOUND, RequestFailed, marks_deletion, parse_ack
from .pull import StandingPull
from .wire import NS, Wire

if TYPE_CHECKING:
    from .keys import Bucket

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""How long after an opening that failed the next one begins."""
INACTIVE_THRESHOLD_S = 30
WATCHED = (
    naming.CONFIG_KEY,
    naming.CONTROL_KEY,
    naming.LEADER_KEY,
    f"{naming.MEMBER_PREFIX}*",
    f"{naming.PARTITION_PREFIX}*",
    f"{naming.PARKED_PREFIX}*",
)
"""Keys a member hears about; what members save for themselves is read when it is needed."""


class Watch:
    """A member's watch on its group's bucket."""

    def __init__(self, wire: Wire, bucket: "Bucket") -> None:
        self._wire = wire
        self._bucket = bucket
        self._opening = 0
        self._standing: StandingPull | None = None
        self._consumer = ""
        self._consumer_seq = 0
        self._retry_at = float("inf")

    def open(self) -> None:
        """Begin to watch, in place of what was watched by."""
        self._opening += 1
        self._retry_at = float("inf")
        self._wire.start(self._open(self._opening), "watch")

    async def close(self) -> None:
        """Stop watching. The consumer dies by itself."""
        self._opening += 1
        self._retry_at = float("inf")
        standing, self._standing = self._standing, None
        if standing is not None:
            await standing.close()

    def check(self, now: float) -> None:
        """Open again what ended or could not be opened; renew what has fallen silent."""
        if now >= self._retry_at:
            self.open()
        elif self._standing is not None:
            self._standing.check(now)

    async def _open(self, opening: int) -> None:
        before, self._standing = self._standing, None
        if before is not None:
            await before.close()
        consumer = f"watch-{self._wire.settings.instance}-{opening}"
        try:
            if not await self._bucket.is_the_same():
                self._wire.tell(BucketGone())
                return
            await self._create(consumer)
        except RequestFailed as error:
            if error.code == STREAM_NOT_FOUND:
                self._wire.tell(BucketGone())
            else:
                logger.debug("watch: %s", error, extra={"event": "watch_failed"})
                self._try_again(opening)
            return
        if opening != self._opening:
            return
        self._consumer_seq = 0
        self._standing = StandingPull(
            self._wire,
            self._bucket.stream,
            consumer,
            lambda message: self._on_message(opening, message),
            lambda last: self._on_idle(opening, last),
            lambda _: self._try_again(opening),
        )
        await self._standing.open()

    async def _create(self, consumer: str) -> None:
        config: dict[str, Any] = {
            "name": consumer,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE_THRESHOLD_S * NS,
            "filter_subjects": [self._bucket.stored_subject(key) for key in WATCHED],
        }
        await self._wire.api.call(
            f"CONSUMER.CREATE.{self._bucket.stream}.{consumer}",
            {"stream_name": self._bucket.stream, "config": config},
        )

    def _try_again(self, opening: int) -> None:
        if opening == self._opening:
            self._retry_at = self._wire.now + RETRY_S

    def _on_idle(self, opening: int, last: int) -> None:
        if opening == self._opening and last != self._consumer_seq:
            self.open()

    def _on_message(self, opening: int, message: Msg) -> None:
        if opening != self._opening:
            return
        delivery = parse_ack(message.reply)
        if delivery.consumer_seq != self._consumer_seq + 1:
            self.open()
            return
        self._consumer_seq = delivery.consumer_seq
        value = None if marks_deletion(message.headers) else message.data
        key = message.subject.removeprefix(self._bucket.stored_subject(""))
        self._wire.tell(KeyChanged(key=key, value=value, revision=delivery.seq))
        if delivery.num_pending == 0:
            self._wire.tell(WatchCaughtUp())
