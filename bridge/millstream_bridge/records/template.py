"""Subject templates: from a record to its subject.

A template is tokens joined by dots, each either plain text or one field in braces:

* ``{topic}``: the topic's name; its dots make several tokens (one, with any filter)
* ``{partition}``: Kafka's partition; once in every template, before all fields that differ within a
  partition, so that one wildcard subject stands for all records of a partition
* ``{key}``; ``{key.part[n]}``, the n-th part from 0 of a key split at its dots, and
  ``{key.part[n,:]}`` split at another text
* ``{header[name]}``: the last Kafka header of that name
* ``{value.customer.id}``: a text, number or truth in a JSON value; to write it is to opt in, and
  every value is then parsed

After a field come filters, left to right: ``|lower`` (ASCII), ``|hash8`` (eight hexadecimal digits
of a hash), ``|default(text)`` where the record has no such thing, ``|escape``. What comes out is
always escaped as keys are (`millstream_coordinator.to_token`), whether ``escape`` is written or
not: it is one legal token, whatever the record holds. The null key is the null token.

A ``{key}`` with no filter but ``escape`` and ``default`` is in the subject as a whole, so it is
read back from there. A record that lacks what a template wants, without a default, has no subject:
`SubjectError`.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from millstream_coordinator.partitioning.key import KEY_BYTES_MAX, to_token

from ..errors import ConfigurationError
from ..model import Record

SUBJECT_BYTES_MAX: Final = 3_900
"""What the server's control line of 4,096 bytes leaves for a subject, reply and sizes apart."""

_TOKEN_BYTES_MAX = 384
_PARTITION_DIGITS_MAX = 10
_CACHED_SUBJECTS_MAX = 65_536

_FIELD = re.compile(
    r"(?P<topic>topic)|(?P<partition>partition)"
    r"|key\.part\[(?P<part>\d{1,4})(?:,(?P<at>[^\]]+))?\]|(?P<key>key)"
    r"|header\[(?P<header>[^\]]+)\]|value\.(?P<value>[^|]+)"
)
_FILTER = re.compile(r"(lower|hash8|escape)|default\(([^)]+)\)")
_LITERAL = re.compile(r"[!-~]+")
_OWN_TOKEN = rf"([\w-]{{1,{KEY_BYTES_MAX}}})"
"""A key that is its own token, unless it reads as the null token."""
_OWN_KEY = re.compile(_OWN_TOKEN.encode())


class SubjectError(ValueError):
    """The record lacks what the template needs."""


Read = Callable[[Record, Any], bytes | None]
"""A field of a record and its parsed value, None if the record has no such thing."""


class Field(NamedTuple):
    """One field of a template: what it reads, and the filters after it as (name, argument)."""

    text: str
    kind: str
    read: Read
    filters: tuple[tuple[str, str], ...]

    @property
    def is_whole_key(self) -> bool:
        """Whether the key can be read back from the token."""
        return self.kind == "key" and all(name in ("escape", "default") for name, _ in self.filters)

    @property
    def has_default(self) -> bool:
        """Whether a record without such a thing has a token all the same."""
        return any(name == "default" for name, _ in self.filters)

    def token(self, record: Record, document: Any, null_token: str) -> str:
        """The field's token; SubjectError: the record has no such thing."""
        value = _filtered(self.read(record, document), self.filters)
        if value is None and self.kind != "key":
            lacks = f"it has nothing for {self.text} of the subject, which has no |default(text)"
            raise SubjectError(lacks)
        return to_token(value, null_token=null_token)


class Template:
    """A template for one topic. Pure; keeps a bounded cache of the tokens or subjects it made."""

    def __init__(self, text: str, topic: str, null_token: str) -> None:
        """ConfigurationError: the template or the null token is not usable."""
        self.text = text
        tokens = [_parse(text, token) for token in re.split(r"\.(?![^{}]*\})", text)]
        self.fields = [token for token in tokens if isinstance(token, Field)]
        self._check(tokens)
        try:
            to_token(None, null_token=null_token)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        self._null_token = null_token
        place = next(n for n, token in enumerate(tokens) if _kind(token) == "partition")
        self.head = [t for t in _fill(tokens[:place], topic) if isinstance(t, str)]
        self._tail = _fill(tokens[place + 1 :], topic)
        if "" in self.head or "" in self._tail:
            raise ConfigurationError(f"topic {topic!r} has an empty token between its dots")
        self.key_place = next(
            (
                len(self.head) + 1 + n
                for n, token in enumerate(self._tail)
                if isinstance(token, Field) and token.is_whole_key
            ),
            None,
        )
        kinds = {field.kind for field in self.fields}
        self.is_of_key_alone = not kinds & {"header", "value"}
        self.reads_value = "value" in kinds
        self._around_key = self._parts_around_key()
        self.plain_subject = self._plain_subject()
        """Matches subjects of keys that are their own tokens (see `_OWN_TOKEN`): partition, key.

        None: subjects depend on something else, too.
        """
        self._cache: dict[tuple[int, bytes | None], str] = {}
        self._tokens: dict[bytes | None, str] = {}
        if self.longest_bytes > SUBJECT_BYTES_MAX:
            raise self._wrong(
                f"it can make subjects of {self.longest_bytes} bytes, over {SUBJECT_BYTES_MAX}"
            )

    @property
    def longest_bytes(self) -> int:
        """An upper bound for a subject's length."""
        longest = max(_TOKEN_BYTES_MAX, len(self._null_token))
        lengths = [longest if isinstance(token, Field) else len(token) for token in self._tail]
        head = sum([len(token) + 1 for token in self.head])
        return head + _PARTITION_DIGITS_MAX + sum([1 + length for length in lengths])

    def subject(self, record: Record) -> str:
        """The subject of a record; ASCII. SubjectError: it lacks what the template needs."""
        if self._around_key is not None:
            token = self._tokens.get(record.key)
            if token is None:
                token = self._key_token(record)
            start, before, after = self._around_key
            return f"{start}{record.kafka_partition}{before}{token}{after}"
        if not self.is_of_key_alone:
            return self._subject(record)
        cached = self._cache.get((record.kafka_partition, record.key))
        if cached is not None:
            return cached
        subject = self._subject(record)
        if len(self._cache) >= _CACHED_SUBJECTS_MAX:
            self._cache.clear()
        self._cache[record.kafka_partition, record.key] = subject
        return subject

    def filter(self, kafka_partition: int | str) -> str:
        """A wildcard subject for all records of a partition; ``*`` for those of all of them."""
        tail = ["*" if isinstance(token, Field) else token for token in self._tail]
        return ".".join([*self.head, str(kafka_partition), *tail])

    def _key_token(self, record: Record) -> str:
        """The token of a key that is all a subject depends on; the same keys come again."""
        key, token = record.key, ""
        if key is not None and _OWN_KEY.fullmatch(key):
            token = key.decode("ascii")
        if token in ("", self._null_token):
            (field,) = [it for it in self._tail if isinstance(it, Field)]
            token = field.token(record, None, self._null_token)
        if len(self._tokens) >= _CACHED_SUBJECTS_MAX:
            self._tokens.clear()
        self._tokens[key] = token
        return token

    def _subject(self, record: Record) -> str:
        document = _document(record) if self.reads_value else None
        tail = [
            token.token(record, document, self._null_token) if isinstance(token, Field) else token
            for token in self._tail
        ]
        return ".".join([*self.head, str(record.kafka_partition), *tail])

    def _parts_around_key(self) -> tuple[str, str, str] | None:
        """What is before the partition, before the key, and behind it; None if that is not all."""
        fields = [place for place, token in enumerate(self._tail) if isinstance(token, Field)]
        if len(fields) != 1 or self.key_place is None:
            return None
        tokens = [token if isinstance(token, str) else "" for token in self._tail]
        before, after = ["", *tokens[: fields[0]], ""], ["", *tokens[fields[0] + 1 :]]
        return ".".join([*self.head, ""]), ".".join(before), ".".join(after)

    def _plain_subject(self) -> re.Pattern[bytes] | None:
        if self._around_key is None:
            return None
        tail = [_OWN_TOKEN if isinstance(it, Field) else re.escape(it) for it in self._tail]
        tokens = [*map(re.escape, self.head), r"(0|[1-9]\d{0,9})", *tail]
        return re.compile(r"\.".join(tokens).encode())

    def _check(self, tokens: "list[str | Field]") -> None:
        kinds = [_kind(token) for token in tokens]
        if isinstance(tokens[0], str) and tokens[0].startswith("$"):
            raise self._wrong(f"{tokens[0]!r} is the server's")
        if kinds.count("partition") != 1:
            raise self._wrong("it needs {partition} once")
        if sum(isinstance(token, Field) and token.is_whole_key for token in tokens) > 1:
            raise self._wrong("it has {key} twice")
        before = kinds[: kinds.index("partition")]
        for token, kind in zip(tokens, before, strict=False):
            if kind not in ("", "topic"):
                raise self._wrong(f"{{partition}} goes before {_text(token)}")

    def _wrong(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"subject template {self.text!r}: {what}")


def _parse(template: str, text: str) -> "str | Field":
    """One token of a template."""
    if not text.startswith("{"):
        if not _LITERAL.fullmatch(text) or re.search(r"[*>{}]", text):
            raise _no_token(template, text)
        return text
    name, *filters = text[1:-1].split("|") if text.endswith("}") else [""]
    match = _FIELD.fullmatch(name)
    found = [_FILTER.fullmatch(item) for item in filters]
    if match is None:
        raise _no_token(template, text)
    kind, read = _reader(match)
    chosen = []
    for item, each in zip(filters, found, strict=True):
        if each is None:
            raise ConfigurationError(
                f"subject template {template!r}: {item!r} is none of the filters"
                " escape, lower, hash8, default(text)"
            )
        chosen.append((each[1] or "default", each[2] or ""))
    if kind == "partition" and chosen:
        raise ConfigurationError(f"subject template {template!r}: {{partition}} takes no filters")
    return Field(text, kind, read, tuple(chosen))


def _no_token(template: str, text: str) -> ConfigurationError:
    return ConfigurationError(
        f"subject template {template!r}: {text!r} is neither a plain token nor one of {{topic}},"
        " {partition}, {key}, {key.part[n]}, {header[name]}, {value.field}"
    )


def _reader(match: re.Match[str]) -> tuple[str, Read]:
    if match["header"]:
        header = match["header"]
        return "header", lambda record, _: _header(record, header)
    if match["value"]:
        path = match["value"].split(".")
        return "value", lambda _, document: _value(document, path)
    if match["part"]:
        place, separator = int(match["part"]), (match["at"] or ".").encode()
        return "part", lambda record, _: _part(record.key, place, separator)
    if match["key"]:
        return "key", lambda record, _: record.key
    return match.lastgroup or "", lambda _record, _: None  # topic and partition: see `_fill`


def _header(record: Record, wanted: str) -> bytes | None:
    return next((value for name, value in reversed(record.headers) if name == wanted), None)


def _part(key: bytes | None, place: int, separator: bytes) -> bytes | None:
    parts = key.split(separator) if key is not None else []
    return parts[place] if place < len(parts) else None


def _value(document: Any, path: list[str]) -> bytes | None:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    if isinstance(document, str):
        return document.encode()
    if isinstance(document, bool | int | float):
        return msgspec.json.encode(document)
    return None


def _document(record: Record) -> Any:
    try:
        return msgspec.json.decode(record.value or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SubjectError(f"its value is no JSON, which its subject needs: {error}") from error


def _filtered(value: bytes | None, filters: tuple[tuple[str, str], ...]) -> bytes | None:
    for name, argument in filters:
        if value is None:
            value = argument.encode() if name == "default" else None
        elif name == "lower":
            value = value.lower()
        elif name == "hash8":
            value = hashlib.blake2b(value, digest_size=4).hexdigest().encode()
    return value


def _fill(tokens: "list[str | Field]", topic: str) -> "list[str | Field]":
    """Put the topic's name where the template has it."""
    filled: list[str | Field] = []
    for token in tokens:
        if not isinstance(token, Field) or token.kind != "topic":
            filled.append(token)
        elif token.filters:
            filled.append(to_token(_filtered(topic.encode(), token.filters)))
        else:
            filled += topic.split(".")
    return filled


def _kind(token: "str | Field") -> str:
    return token.kind if isinstance(token, Field) else ""


def _text(token: "str | Field") -> str:
    return token.text if isinstance(token, Field) else token
