"""A sink in a JetStream key-value bucket: value and mark are one entry under compare-and-set.

Totals by key, for one::

    sink = await KvSink.open(connection, "totals")

    @group.handler(key="orders.*.{key}")
    async def total(message: Message) -> None:
        await sink.apply(message, lambda value: add(value, message.data))

The value is the entry's plain value, so any key-value client can read it; the mark is in the
entry's header. A key's fence is its mark, as a key-value entry takes one condition per write, which
is the value's own compare-and-set; `mark` says what that leaves open.
"""

from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StorageType

from ..jetstream.api import Api
from .contract import SinkCounters, SinkUnavailable, Update
from .mark import Entry, Fenced, Verdict, entry_key, entry_of_key
from .marked import MarkedSubjects, Write
from .outlet import TIMEOUT_S


class KvSink:
    """Effects are new values of the message's key.

    Only this class may write to the bucket, and only one group: the epochs of two groups know
    nothing of each other. One object serves any number of tasks.
    """

    def __init__(
        self,
        api: Api,
        bucket: str,
        *,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> None:
        self.name = f"kv:{bucket}"
        self.counters = SinkCounters()
        self.bucket = bucket
        self.entries = MarkedSubjects(api, f"KV_{bucket}", self.name, remembered_max)
        self._attempts_max = attempts_max

    @classmethod
    async def open(
        cls,
        connection: Client,
        bucket: str,
        *,
        replicas: int = 1,
        storage: StorageType = StorageType.FILE,
        attempts_max: int = 16,
        remembered_max: int = 1024,
    ) -> Self:
        """Make the sink on ``bucket``, which is made if missing. Raises SinkUnavailable."""
        jetstream = connection.jetstream()
        try:
            try:
                await jetstream.stream_info(f"KV_{bucket}")
            except nats.js.errors.NotFoundError:
                await jetstream.create_key_value(
                    KeyValueConfig(bucket=bucket, replicas=replicas, storage=storage)
                )
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            reason = str(error) or type(error).__name__
            raise SinkUnavailable(f"kv:{bucket}", reason) from error
        return cls(
            Api(connection, TIMEOUT_S),
            bucket,
            attempts_max=attempts_max,
            remembered_max=remembered_max,
        )

    async def apply(self, message: Fenced, update: Update, /) -> Verdict:
        """See `Sink`. Raises StaleEpoch, SinkUnavailable, SinkContended or BadMark."""

        def written(entry: Entry) -> Write:
            value = update(entry.value)
            headers = {"KV-Operation": "DEL"} if value is None else {}
            return Write(data=value or b"", headers=headers, value=value)

        return await self.entries.apply(
            message, self._subject(entry_key(message)), written, self.counters, self._attempts_max
        )

    async def value(self, key: bytes) -> bytes | None:
        """See `ValueSink`; read from the server. Raises SinkUnavailable."""
        return (await self.entries.load(self._subject(entry_of_key(key)))).value

    def _subject(self, entry: str) -> str:
        return f"$KV.{self.bucket}.{entry}"
