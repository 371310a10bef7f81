"""From a record to its subject, its message, and back.

A route's template is made of whole tokens: literal ones, ``{topic}`` (a topic's dots make several
tokens), and each once ``{partition}`` and ``{key}``, in this order. The partition's token is
Kafka's number: the stream is then partitioned the way the topic was, and the last message of a
partition can be asked for by one wildcard subject, which is how a position is read. The key's token
is `millstream_coordinator.to_token`'s: any key, reversible. The key may be left out of the
template; then every key travels in the header ``Millstream-Key``.

A partition's number never begins with ``_``, so ``<tokens before {partition}>._checkpoint.<n>`` is
no record's subject. The topic's name is put before ``_checkpoint`` where the template's beginning
does not end in it, so that two topics under one head keep apart.
"""

import base64
import re
from typing import Final

from millstream_coordinator.partitioning.key import (
    KEY_BYTES_MAX,
    KEY_HEADER,
    from_token,
    key_headers,
    to_token,
)

from ..errors import ConfigurationError
from ..model import Record, Route
from .headers import (
    NULL_KEY,
    NULL_VALUE,
    ORIGIN_HEADER,
    PACKED,
    PACKED_HEADER,
    SOURCE_HEADER,
    HeaderError,
    NatsHeaders,
    SourceHeader,
    is_own,
    pack,
    unpack,
)

CHECKPOINT_TOKEN: Final = "_checkpoint"
SUBJECT_BYTES_MAX: Final = 3_900
"""What the server's control line of 4,096 bytes leaves for a subject, reply and sizes apart."""

_CACHED_SUBJECTS_MAX = 65_536


class Mapping:
    """A route's subjects. Pure; keeps a bounded cache of the subjects it made."""

    def __init__(self, route: Route) -> None:
        """ConfigurationError: the template or the null token is not usable."""
        self.route = route
        tokens = _parse(route.subject)
        place = tokens.index("{partition}")
        self._before = _fill(tokens[:place], route.topic)
        self._after = _fill(tokens[place + 1 :], route.topic)
        if "" in self._before + self._after:
            raise ConfigurationError(f"topic {route.topic!r} has an empty token between its dots")
        self.has_key = "{key}" in tokens
        self._key_place = (
            len(self._before) + 1 + self._after.index("{key}") if self.has_key else None
        )
        try:
            to_token(None, null_token=route.null_token)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        self._cache: dict[tuple[int, bytes | None], str] = {}
        self._source_prefix = f"{SOURCE_HEADER}: {route.topic} "
        self._origin = f"{ORIGIN_HEADER}: {route.name}\r\n"

    def subject(self, kafka_partition: int, key: bytes | None) -> str:
        """The subject of a record; ASCII."""
        cached = self._cache.get((kafka_partition, key))
        if cached is not None:
            return cached
        token = to_token(key, null_token=self.route.null_token) if self.has_key else ""
        after = [token if part == "{key}" else part for part in self._after]
        subject = ".".join([*self._before, str(kafka_partition), *after])
        if len(self._cache) >= _CACHED_SUBJECTS_MAX:
            self._cache.clear()
        self._cache[kafka_partition, key] = subject
        return subject

    def partition_filter(self, kafka_partition: int) -> str:
        """A wildcard subject for all records of one partition."""
        return self._filter(str(kafka_partition))

    @property
    def route_filter(self) -> str:
        """A wildcard subject for all records of the route."""
        return self._filter("*")

    def checkpoint_subject(self, kafka_partition: int | str) -> str:
        """Where a shared route keeps a partition's position; ``*`` gives the wildcard subject."""
        topic = self.route.topic.split(".")
        head = self._before if self._before[-len(topic) :] == topic else [*self._before, *topic]
        return ".".join([*head, CHECKPOINT_TOKEN, str(kafka_partition)])

    @property
    def stream_subjects(self) -> list[str]:
        """What a stream made for this route listens to: everything under its head."""
        if self._before:
            return [".".join([*self._before, ">"])]
        return [self.route_filter, self.checkpoint_subject("*")]

    def header_lines(self, record: Record) -> str:
        """The record's part of the header block: source, origin, key, Kafka headers; CRLF-ended."""
        flags = ""
        if record.value is None:
            flags = NULL_VALUE
        key = record.key
        extra = ""
        if key is None:
            flags += NULL_KEY
        elif not self.has_key:
            extra = f"{KEY_HEADER}: {base64.b64encode(key).decode('ascii')}\r\n"
        elif len(key) > KEY_BYTES_MAX:
            extra = "".join(f"{name}: {value}\r\n" for name, value in key_headers(key).items())
        if record.headers:
            plain, packed = pack(record.headers)
            extra += "".join([f"{name}: {value}\r\n" for name, value in plain])
            if packed is not None:
                flags += PACKED
                extra += f"{PACKED_HEADER}: {packed}\r\n"
        if flags:
            flags = f" {flags}"
        return (
            f"{self._source_prefix}{record.kafka_partition} {record.offset}"
            f" {record.timestamp_ms} {record.timestamp_type}{flags}\r\n{self._origin}{extra}"
        )

    def source_in(self, headers: NatsHeaders) -> SourceHeader | None:
        """The message's source if it is a record of this route's topic, else None (foreign)."""
        for name, value in headers:
            if name == SOURCE_HEADER:
                try:
                    source = SourceHeader.parse(value)
                except HeaderError:
                    return None
                return source if source.topic == self.route.topic else None
        return None

    def record(
        self,
        subject: str,
        headers: NatsHeaders,
        payload: bytes,
        source: SourceHeader | None = None,
    ) -> Record:
        """The Kafka record a stored message was made from; ``source`` is what `source_in` found.

        HeaderError or KeyTokenError (both ValueError): it is not one of this route's, or damaged.
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
        if NULL_VALUE in source.flags and payload:
            raise HeaderError(f"the null value has a payload of {len(payload)} bytes")
        key = self._key(subject, own, source)
        if self.subject(source.kafka_partition, key) != subject:
            raise HeaderError(f"subject {subject} is not the one of its key and partition")
        return Record(
            source.kafka_partition,
            source.offset,
            source.timestamp_ms,
            source.timestamp_type,
            key,
            None if NULL_VALUE in source.flags else payload,
            unpack(plain, own.get(PACKED_HEADER)) if plain or PACKED_HEADER in own else (),
        )

    def _key(self, subject: str, own: dict[str, str], source: SourceHeader) -> bytes | None:
        if NULL_KEY in source.flags:
            return None
        if self._key_place is None:
            return base64.b64decode(own.get(KEY_HEADER, ""), validate=True)
        tokens = subject.split(".")
        if len(tokens) <= self._key_place:
            raise HeaderError(f"subject {subject} has no token for the key")
        return from_token(tokens[self._key_place], own, null_token=self.route.null_token)

    def _filter(self, partition: str) -> str:
        after = ["*" if part == "{key}" else part for part in self._after]
        return ".".join([*self._before, partition, *after])


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that ``narrow`` matches is matched by ``wide`` too."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for place, token in enumerate(wide_tokens):
        if token == ">":
            return len(narrow_tokens) > place
        if place >= len(narrow_tokens) or narrow_tokens[place] == ">":
            return False
        if token not in ("*", narrow_tokens[place]):
            return False
    return len(wide_tokens) == len(narrow_tokens)


def _parse(template: str) -> list[str]:
    tokens = template.split(".")
    for token in tokens:
        if token in ("{topic}", "{partition}", "{key}"):
            continue
        if not re.fullmatch(r"[!-~]+", token) or re.search(r"[*>{}]", token):
            raise ConfigurationError(
                f"subject template {template!r}: {token!r} is neither a plain token"
                " nor one of {topic}, {partition}, {key}"
            )
    if tokens[0].startswith("$"):
        raise ConfigurationError(f"subject template {template!r}: {tokens[0]!r} is the server's")
    if tokens.count("{partition}") != 1 or tokens.count("{key}") > 1:
        raise ConfigurationError(
            f"subject template {template!r} needs {{partition}} once and {{key}} at most once"
        )
    if "{key}" in tokens and tokens.index("{key}") < tokens.index("{partition}"):
        raise ConfigurationError(
            f"subject template {template!r}: {{partition}} goes before {{key}}"
        )
    return tokens


def _fill(tokens: list[str], topic: str) -> list[str]:
    return [
        part for token in tokens for part in (topic.split(".") if token == "{topic}" else [token])
    ]
