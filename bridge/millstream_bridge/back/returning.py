"""A stored message as the Kafka record it becomes on the way back, or the reason it does not go.

A message of the route's own topic (it has a ``Millstream-Source``) is in Kafka already and stays
out, unless everything is wanted: then it becomes the record it was made from. Any other is a
**native** one:

* partition and key are read from its subject, where the route's template has them; a key over the
  token's limit, and every key of a template without one, from ``Millstream-Key``;
* the value is the payload; a message with ``KV-Operation: DEL`` or ``PURGE`` and no payload, NATS'
  own way to say deleted, becomes a record without a value, Kafka's tombstone;
* its headers follow the marks in the order of the block. The server's instructions and the
  bridge's own stay behind (``Nats-…``, ``Millstream-…``), but for ``Nats-Msg-Id``, by which readers
  may know a message;
* the timestamp is the time it was stored, in milliseconds.

What the bridge keeps beside the records (checkpoints, marks, pieces) stays out, and so does what is
for one coordinator group alone: a dead letter published again is there already as it was. Pure.
"""

import base64
import binascii
import functools
from collections.abc import Sequence
from typing import Final, NamedTuple

from millstream_coordinator.partitioning.key import KEY_HEADER, KeyTokenError, from_token

from ..model import KafkaHeader, Record, TimestampType
from ..records.headers import (
    LARGE_HEADER,
    SOURCE_HEADER,
    HeaderError,
    NatsHeaders,
    SourceHeader,
    is_letter,
    is_own,
    parse_block,
)
from ..records.mapping import Mapping
from ..records.origin import Return, marks

_MS_NS = 1_000_000
_LARGE = f"\n{LARGE_HEADER}:".encode()
_DELETED = frozenset({"DEL", "PURGE"})
_KEPT = "Nats-Msg-Id"
_KEYS: Final = 65_536
_OPERATION = "KV-Operation"
UNWRITABLE_MS: Final = 0
"""Kafka's C client takes this timestamp for "now": it would not arrive as it is."""


class Delivered(NamedTuple):
    """A message as the stream delivers it; ``block`` is its raw header block.

    ``trouble``: why it is known not to go, as its value, which is elsewhere, could not be read.
    """

    seq: int
    time_ns: int
    subject: str
    block: bytes
    payload: bytes
    trouble: str = ""

    @property
    def is_large(self) -> bool:
        """Whether its value is elsewhere (`jetstream.large`)."""
        return _LARGE in self.block


class NotReturnable(Exception):
    """A message that cannot become a record; the text says why."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq, self.reason = seq, reason


class Returning:
    """One route's messages into records; ``everything``: also what came from Kafka.

    ``partitions`` is how many the topic has.
    """

    def __init__(self, mapping: Mapping, partitions: int, *, everything: bool) -> None:
        self._mapping = mapping
        self._route = mapping.route
        self._partitions = partitions
        self._everything = everything
        self._places = Places.of(mapping)
        of_route = functools.partial(from_token, null_token=mapping.route.null_token)
        self._key_of = functools.lru_cache(_KEYS)(of_route)
        """The key of a token that holds the whole one; the same ones come again."""

    def record(self, message: Delivered) -> Record | None:
        """The record, with the message's sequence as its offset; None: it does not go back.

        NotReturnable: it should, and cannot.
        """
        if message.trouble:
            raise NotReturnable(message.seq, message.trouble)
        tokens = message.subject.split(".")
        if self._mapping.is_beside(message.subject):
            return None
        try:
            headers = parse_block(message.block)[1] if message.block else []
            if is_letter(headers):
                return None
            source = self._source(headers)
            if source is None:
                record = self._native(message, tokens, headers)
            elif self._everything:
                found = self._mapping.record(message.subject, headers, message.payload, source)
                record = found._replace(offset=message.seq)
            else:
                return None
        except (HeaderError, KeyTokenError, binascii.Error) as error:
            raise NotReturnable(message.seq, str(error)) from error
        if record.kafka_partition >= self._partitions:
            raise NotReturnable(
                message.seq,
                f"it is of partition {record.kafka_partition},"
                f" and the topic has {self._partitions} partitions",
            )
        if record.timestamp_ms == UNWRITABLE_MS:
            reason = "its timestamp is 0 (1970), which Kafka's client would replace by the time now"
            raise NotReturnable(message.seq, reason)
        return record

    def _source(self, headers: NatsHeaders) -> SourceHeader | None:
        """Where the message came from if it was this topic, also when it was parked on the way."""
        for name, text in headers:
            if name == SOURCE_HEADER:
                source = SourceHeader.parse(text)
                return source if source.topic == self._route.topic else None
        return None

    def _native(self, message: Delivered, tokens: list[str], headers: NatsHeaders) -> Record:
        number = self._places.partition(tokens)
        if number is None:
            raise HeaderError(
                f"subject {message.subject} has no partition where {self._route.subject} has one"
            )
        own = {name: value for name, value in headers if is_own(name)}
        plain: list[KafkaHeader] = [
            (name, value.encode("latin-1"))
            for name, value in headers
            if not is_own(name) or name == _KEPT
        ]
        deleted = not message.payload and any(
            name == _OPERATION and value in _DELETED for name, value in headers
        )
        back_from = Return(self._mapping.stream_name(number), message.seq)
        return Record(
            number,
            message.seq,
            message.time_ns // _MS_NS,
            TimestampType.CREATE,
            self._key(tokens, own),
            None if deleted else message.payload,
            (*marks(self._route.name, back_from), *plain),
        )

    def _key(self, tokens: list[str], own: dict[str, str]) -> bytes | None:
        if self._places.key is None:
            whole = own.get(KEY_HEADER)
            return None if whole is None else base64.b64decode(whole, validate=True)
        if len(tokens) <= self._places.key:
            raise HeaderError("its subject has no token for the key")
        token = tokens[self._places.key]
        if KEY_HEADER in own:
            return from_token(token, own, null_token=self._route.null_token)
        return self._key_of(token)


class Places(NamedTuple):
    """Which token of a route's subjects is the partition, and which the whole key, if one is."""

    partition_place: int
    key: int | None

    @classmethod
    def of(cls, mapping: Mapping) -> "Places":
        """Those of the route's template."""
        return cls(len(mapping.template.head), mapping.template.key_place)

    def partition(self, tokens: Sequence[str]) -> int | None:
        """The partition a subject names; None: there is none in its place."""
        place = self.partition_place
        text = tokens[place] if len(tokens) > place else ""
        if not (text.isascii() and text.isdecimal()) or (text[0] == "0" and text != "0"):
            return None
        return int(text)
