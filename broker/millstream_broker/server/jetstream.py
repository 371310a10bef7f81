"""JetStream put together and driven: bus, stores and engine, and the one timer it needs.

The engine is a pure object. It gets messages through the account; here it gets the time: one
timer of the loop stands at its next deadline, looked at again after every round of work.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import StartError
from ..jetstream.engine import JetStream
from ..jetstream.model import Identity
from ..message import Instant
from ..routing.account import Account
from ..store.directory import FileStorage, MemoryStorage
from ..store.errors import StoreError
from ..store.port import Storage
from .options import ServerOptions

logger = logging.getLogger("millstream.broker")

RETRY_S = 1.0
"""How long a failed advance waits for the next, so that a fault does not spin."""


class JetStreamDriver:
    """A running engine. Opening raises StartError when the folder can't be used."""

    def __init__(
        self,
        account: Account,
        options: ServerOptions,
        *,
        loop: asyncio.AbstractEventLoop,
        identity: Identity,
        now: Callable[[], Instant],
        flush: Callable[[], None],
    ) -> None:
        """``flush`` writes outputs and calls `schedule`."""
        self._account = account
        self._loop = loop
        self._now = now
        self._flush = flush
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._file: Storage | None = None
        self._memory = MemoryStorage()
        try:
            self._file = _open(options)
            self._engine = JetStream(
                account,
                file=self._file,
                memory=self._memory,
                random=random.randrange,
                report=_report,
                identity=identity,
            )
            moment = now()
            self._engine.start(moment)
            # What came due while the server was down is done before the first client sees it.
            self._engine.advance(moment)
        except StoreError as error:
            if self._file is not None:
                self._file.close()
            raise StartError("store", str(error)) from error
        account.settle(moment)

    @property
    def engine(self) -> JetStream:
        """What runs, for monitoring."""
        return self._engine

    def schedule(self) -> None:
        """Set the timer to the next deadline."""
        due = self._engine.next_deadline()
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            # The loop's clock may be another one: only the distance counts.
            delay = max(0.0, due - time.monotonic())
            self._timer = self._loop.call_later(delay, self._advance)

    def _advance(self) -> None:
        self._timer = None
        moment = self._now()
        try:
            self._engine.advance(moment)
            self._account.settle(moment)
        except Exception:
            # A fault in one stream must not stop the timers of all others.
            logger.exception("JetStream failed", extra={"event": "jetstream_failed"})
            self._due = moment.mono_s + RETRY_S
            self._timer = self._loop.call_later(RETRY_S, self._advance)
            return
        self._due = None
        self._flush()

    def stop(self) -> None:
        """Answer what waits, then close the stores."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moment = self._now()
        try:
            self._engine.stop(moment)
            self._account.settle(moment)
        finally:
            if self._file is not None:
                self._file.close()
            self._memory.close()


def _open(options: ServerOptions) -> Storage:
    return MemoryStorage() if options.store_dir is None else FileStorage(options.store_dir)


def _report(event: str, facts: Mapping[str, Any]) -> None:
    words = " ".join(f"{key}={value}" for key, value in facts.items())
    logger.warning("%s %s", event.replace("_", " "), words, extra={"event": event})
