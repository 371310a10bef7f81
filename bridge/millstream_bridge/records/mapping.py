"""From a record to its message, and back.

The subject is the template's (see `template`). Its partition token is Kafka's number: the stream is
then partitioned the way the topic was, and the last message of a partition can be asked for by one
wildcard subject, which is how a position is read. Where the template does not hold the whole key,
it travels in the header ``Millstream-Key``.

A partition's number never begins with ``_``, so ``<tokens before {partition}>._checkpoint.<n>`` is
no record's subject, and outside what readers of a partition ask for. The topic's name is put before
``_checkpoint`` where the template's beginning does not end in it, so that two topics under one head
keep apart. Beside a shared route's checkpoints, ``_chunk`` has the pieces of large records and
``_poison`` the marks of records that could not be moved.
"""

import base64
from typing import Final

from millstream_coordinator.partitioning.key import (
    KEY_BYTES_MAX,
    KEY_HEADER,
    KeyTokenError,
    from_token,
    key_headers,
)

from ..model import PARTITION_FIELD, Record, Route, TimestampType
from .headers import (
    LARGE_HEADER,
    NOT_HERE,
    NULL_KEY,
    NULL_VALUE,
    ORIGIN_HEADER,
    PACKED,
    PACKED_HEADER,
    REPLAYED,
    SOURCE_HEADER,
    HeaderError,
    NatsHeaders,
    SourceHeader,
    is_letter,
    is_own,
    pack,
    unpack,
)
from .template import SubjectError, Template

CHECKPOINT_TOKEN: Final = "_checkpoint"
CHUNK_TOKEN: Final = "_chunk"
POISON_TOKEN: Final = "_poison"
_BESIDE: Final = tuple(f".{it}." for it in (CHECKPOINT_TOKEN, CHUNK_TOKEN, POISON_TOKEN))


class OtherSubjectError(HeaderError):
    """A stored record is not under the subject that the route's template makes."""


class Mapping:
    """A route's subjects and messages. Pure; keeps a bounded cache of the subjects it made.

    ``topic_id`` is Kafka's id of the topic that is being moved, once it is known.
    """

    def __init__(self, route: Route) -> None:
        """ConfigurationError: the template or the null token is not usable."""
        self.route = route
        self.topic_id: str | None = None
        self.template = Template(route.subject, route.topic, route.null_token)
        self.subject = self.template.subject
        self.has_key = self.template.key_place is not None
        self._source_prefix = f"{SOURCE_HEADER}: {route.topic} "
        ttl_s = route.tombstone_ttl_s
        self._tombstone_line = "" if ttl_s is None else f"Nats-TTL: {ttl_s}s\r\n"
        self.origin_line = f"{ORIGIN_HEADER}: {route.name}\r\n"
        self._ends = {kind: f" {kind}\r\n{self.origin_line}" for kind in TimestampType}

    def partition_filter(self, kafka_partition: int) -> str:
        """A wildcard subject for all records of one partition."""
        return self.template.filter(kafka_partition)

    @property
    def route_filter(self) -> str:
        """A wildcard subject for all records of the route."""
        return self.template.filter("*")

    def checkpoint_subject(self, kafka_partition: int | str) -> str:
        """Where a shared route keeps a partition's position; ``*`` gives the wildcard subject."""
        return self._beside(CHECKPOINT_TOKEN, kafka_partition)

    def poison_subject(self, kafka_partition: int | str) -> str:
        """Where records of a partition are marked that were parked or skipped; ``.<offset>``."""
        return self._beside(POISON_TOKEN, kafka_partition)

    def chunk_subject(self, kafka_partition: int | str) -> str:
        """Where the pieces of a partition's large records are; ``.<place>.<n>``."""
        return self._beside(CHUNK_TOKEN, kafka_partition)

    @property
    def subjects(self) -> list[str]:
        """Wildcard subjects for all that the route may write."""
        return [
            self.route_filter,
            self.checkpoint_subject("*"),
            f"{self.poison_subject('*')}.*",
            f"{self.chunk_subject('*')}.>",
        ]

    @property
    def stream_subjects(self) -> list[str]:
        """What a stream made for this route listens to: everything under its head."""
        head = self.template.head
        return [".".join([*head, ">"])] if head else self.subjects

    def is_beside(self, subject: str) -> bool:
        """Whether this is a subject for what the bridge writes beside records."""
        whole = f".{subject}"
        return "._" in whole and any(token in whole for token in _BESIDE)

    def stream_name(self, kafka_partition: int) -> str:
        """The stream that has a partition's records."""
        return self.route.stream.replace(PARTITION_FIELD, str(kafka_partition))

    def _beside(self, token: str, kafka_partition: int | str) -> str:
        topic = self.route.topic.split(".")
        head = self.template.head
        if head[-len(topic) :] != topic:
            head = [*head, *topic]
        return ".".join([*head, token, str(kafka_partition)])

    def header_lines(self, record: Record) -> str:
        """The record's part of the header block: source, origin, key, Kafka headers; CRLF-ended."""
        partition, offset, timestamp_ms, kind, key, value, headers = record
        start = f"{self._source_prefix}{partition} {offset} {timestamp_ms}"
        is_in_subject = key is not None and self.has_key and len(key) <= KEY_BYTES_MAX
        if is_in_subject and value is not None and not headers:
            return start + self._ends[kind]
        flags = "" if value is not None else NULL_VALUE
        extra = "" if not flags else self._tombstone_line
        if key is None:
            flags += NULL_KEY
        elif not self.has_key:
            extra += f"{KEY_HEADER}: {base64.b64encode(key).decode('ascii')}\r\n"
        elif len(key) > KEY_BYTES_MAX:
            extra += "".join(f"{name}: {value}\r\n" for name, value in key_headers(key).items())
        if headers:
            plain, packed = pack(headers)
            extra += "".join([f"{name}: {value}\r\n" for name, value in plain])
            if packed is not None:
                flags += PACKED
                extra += f"{PACKED_HEADER}: {packed}\r\n"
        if flags:
            return f"{start} {kind} {flags}\r\n{self.origin_line}{extra}"
        return f"{start}{self._ends[kind]}{extra}"

    def source_in(self, headers: NatsHeaders) -> SourceHeader | None:
        """The source of a record of this route's topic in its place, or of a mark in its stead.

        None: a foreign message, or a record that was replayed later.
        """
        source = any_source(headers)
        if source is None or source.topic != self.route.topic:
            return None
        return None if REPLAYED in source.flags or is_letter(headers) else source

    def record(
        self,
        subject: str,
        headers: NatsHeaders,
        payload: bytes,
        source: SourceHeader | None = None,
    ) -> Record:
        """The Kafka record a stored message was made from; ``source`` is what `source_in` found.

        HeaderError: it is not one of this route's, or damaged. OtherSubjectError: another template,
        or null token, made its subject.
        """
        own: dict[str, str] = {}
        plain: list[tuple[str, str]] = []
        for header in headers:
            if is_own(header[0]):
                own[header[0]] = header[1]
            else:
                plain.append(header)
        source = source or SourceHeader.parse(own.get(SOURCE_HEADER, ""))
        if source.topic != self.route.topic:
            raise HeaderError(f"the message comes from topic {source.topic}")
        if NOT_HERE in source.flags or LARGE_HEADER in own:
            raise HeaderError("the record is not in its message: parked, skipped, or large")
        if NULL_VALUE in source.flags and payload:
            raise HeaderError(f"the null value has a payload of {len(payload)} bytes")
        record = Record(
            source.kafka_partition,
            source.offset,
            source.timestamp_ms,
            source.timestamp_type,
            self._key(subject, own, source),
            None if NULL_VALUE in source.flags else payload,
            unpack(plain, own.get(PACKED_HEADER)) if plain or PACKED_HEADER in own else (),
        )
        is_in_header = record.key is not None and (
            not self.has_key or len(record.key) > KEY_BYTES_MAX
        )
        if self._made(record) != subject or (KEY_HEADER in own) is not is_in_header:
            raise OtherSubjectError(f"subject {subject} is not the one the record's template makes")
        return record

    def _made(self, record: Record) -> str | None:
        """The record's subject, None if the template has none for it."""
        try:
            return self.subject(record)
        except SubjectError:
            return None

    def _key(self, subject: str, own: dict[str, str], source: SourceHeader) -> bytes | None:
        if NULL_KEY in source.flags:
            return None
        if self.template.key_place is None:
            return base64.b64decode(own.get(KEY_HEADER, ""), validate=True)
        tokens = subject.split(".")
        if len(tokens) <= self.template.key_place:
            raise OtherSubjectError(f"subject {subject} has no token for the key")
        token = tokens[self.template.key_place]
        try:
            return from_token(token, own, null_token=self.route.null_token)
        except KeyTokenError as error:
            raise OtherSubjectError(str(error)) from error


def any_source(headers: NatsHeaders) -> SourceHeader | None:
    """Which record of which topic a message is; None: it did not come from Kafka."""
    for name, value in headers:
        if name == SOURCE_HEADER:
            try:
                return SourceHeader.parse(value)
            except HeaderError:
                return None
    return None
