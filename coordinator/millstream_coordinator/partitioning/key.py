"""Keys and subjects: a key as one subject token and back, and the rule that finds it in a subject.

**Key ↔ token.** A Kafka key is any bytes or null; a NATS token is text without dots, wildcards,
spaces or controls. The escape is percent-style over bytes: ``. * > %``, everything up to space, DEL
and every byte from 0x80 become ``%XX`` in upper-case hexadecimal, and so does a leading ``$``,
which would look like a system subject's. The rest stands for itself, so ordinary keys stay
readable. In a key's token a ``%`` is followed by two hexadecimal digits, with three exceptions that
therefore no key can look like:

* ``%null``: the null key (another token may be chosen; a key that looks like it is escaped more),
* ``%empty``: the empty key, as a token must have a character,
* ``<start of the key>%-<hash>``: a key over 128 bytes. The token then only tells keys apart (128
  bits of BLAKE2b) and the whole key travels base64-coded in the header ``Millstream-Key``.

So for every key and null, ``from_token(to_token(key), key_headers(key)) == key``, different keys
have different tokens, and a token is always legal. `from_token` takes nothing but tokens of this
form; it checks a header's key against the token's hash.

**Key rule.** One text, by which a group finds a message's key and partition in what it reads:

* ``flights.*.{key}``: a pattern over the subject. Tokens in braces are the key's. The partition's
  token is ``{partition}``, or the only ``*`` where there is just one; two bare ``*`` would leave
  open which it is, so that is refused. A last ``>`` stands for any rest. One key token is read with
  `from_token`; several are the key as they stand, joined by dots.
* ``header:Customer-Id on flights.*.>``: the key is that header's value; no header is no key.
* a function (subject, headers, payload) → key, with the pattern given beside it.

**Levels.** ``orders.{partition}.{partition:16}.{key}`` says that the subjects carry a second token:
the key's partition if there are 16. The first token's number is what the group has as its
partitions, each finer one a multiple of the one before, and both come from one hash, so a finer
token modulo the coarser number is the coarser token. Such a stream can be read as 4 or as 16
partitions, whichever the group is at (`subject_filter` with a level); that is what a resize uses.

**Keys that are none, empty or long.** A message without a key has ``None``: it is handled in no
order. An empty key is a key like any other. A long one (over 128 bytes) is whole in its header,
so two long keys with one beginning are two keys. Where a rule reads a token that this escape did
not write (a producer of one's own may use any token), or a long key's token without its header, the
token itself is the key, as UTF-8: no message is ever refused for its key.

`KeyRule.key_of` is the definition; `KeyRule.reader` is the same as one closure for the hot path.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from ..errors import GroupError
from .pattern import tokens_overlap

NULL_TOKEN: Final = "%null"
EMPTY_TOKEN: Final = "%empty"
_PARTIAL_WILDCARD: Final = "*"
_FULL_WILDCARD: Final = ">"
KEY_HEADER: Final = "Millstream-Key"
KEY_BYTES_MAX: Final = 128
"""A longer key is not written into its token as a whole."""

_PREFIX_BYTES = 48
_ESCAPED_KEPT = 4096
_HASH_MARK = "%-"
_HASH_BYTES = 16
_ESCAPED_TEXT = ".*>%"
_BYTE_TOKENS = tuple(
    f"%{byte:02X}" if byte <= 0x20 or byte >= 0x7F or chr(byte) in _ESCAPED_TEXT else chr(byte)
    for byte in range(256)
)
_MARK = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*|partition:[1-9][0-9]{0,9})\}")
_PLAIN = re.compile(rb"(?!\$)[!-~]+")
_PLAIN_REFUSED = re.compile(rb"[.*>%]")

LEVELS_MAX: Final = 8
"""So many numbers of partitions one subject may carry."""

KeyFunction = Callable[[str, Mapping[str, str], bytes], bytes | None]
"""(subject, headers, payload) to the key; None for a message without one. Must be pure."""


class KeyTokenError(GroupError, ValueError):
    """A token is not one that `to_token` writes, or its key is not where it should be."""

    def __init__(self, token: str, reason: str) -> None:
        super().__init__(f"subject token {token!r} {reason}")
        self.token = token


class KeyRuleError(GroupError, ValueError):
    """A key rule cannot be read, or does not fit the subjects it is meant for."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"key rule {rule!r}: {reason}")
        self.rule, self.reason = rule, reason


def to_token(key: bytes | None, *, null_token: str = NULL_TOKEN) -> str:
    """Write the key as one literal subject token of at most 384 characters, all of them ASCII.

    A key over `KEY_BYTES_MAX` needs `key_headers` on its message as well. ``null_token`` stands for
    the null key; the key that would read the same is escaped further. ValueError: ``null_token`` is
    no plain token.
    """
    if null_token != NULL_TOKEN and not _is_plain(null_token.encode()):
        raise ValueError(f"null token {null_token!r} is not one plain subject token")
    if key is None:
        return null_token
    if not key:
        return EMPTY_TOKEN
    if len(key) > KEY_BYTES_MAX:
        digest = hashlib.blake2b(key, digest_size=_HASH_BYTES).hexdigest()
        return f"{_escape(key[:_PREFIX_BYTES])}{_HASH_MARK}{digest}"
    token = _escape(key)
    if token == null_token:
        return f"%{key[0]:02X}{token[1:]}"
    return token


def from_token(
    token: str, headers: Mapping[str, str] | None = None, *, null_token: str = NULL_TOKEN
) -> bytes | None:
    """Return the key that `to_token` turned into ``token``; None is the null key.

    ``headers`` are the message's, needed where the token holds only a hash. KeyTokenError: the
    token is not of this form, or the header's key is missing or not this token's.
    """
    if token == null_token:
        return None
    if token == EMPTY_TOKEN:
        return b""
    if _HASH_MARK in token:
        key = _key_from_header(token, headers)
    else:
        key = unquote_to_bytes(token.encode("utf-8", "surrogateescape"))
    if to_token(key, null_token=null_token) != token:
        raise KeyTokenError(token, "is not the escaped form of a key")
    return key


def key_headers(key: bytes | None) -> dict[str, str]:
    """Return what a message with this key needs beside its token: nothing, or `KEY_HEADER`."""
    if key is None or len(key) <= KEY_BYTES_MAX:
        return {}
    return {KEY_HEADER: base64.b64encode(key).decode("ascii")}


def _key_from_header(token: str, headers: Mapping[str, str] | None) -> bytes:
    value = (headers or {}).get(KEY_HEADER)
    if value is None:
        raise KeyTokenError(token, f"holds only a hash and the header {KEY_HEADER} is missing")
    try:
        key = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise KeyTokenError(token, f"has a header {KEY_HEADER} that is not base64") from error
    return key


def _is_plain(data: bytes) -> bool:
    return _PLAIN.fullmatch(data) is not None and _PLAIN_REFUSED.search(data) is None


def _escape(data: bytes) -> str:
    if _is_plain(data):
        return data.decode("ascii")
    token = "".join([_BYTE_TOKENS[byte] for byte in data])
    return f"%24{token[1:]}" if token[0] == "$" else token


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    """Where a message's key and partition are; made by `parse` or `for_function`.

    ``text`` is the rule in the form `parse` reads (for a function: its name, which only people
    read). ``key_places`` and ``partition_place`` count the subject's tokens from 0;
    ``partition_place`` is None where subjects carry no partition (one stream per partition).
    ``finer`` are the marked finer levels, ascending: number of partitions → the token's place.
    """

    text: str
    pattern: tuple[str, ...]
    key_places: tuple[int, ...]
    partition_place: int | None
    finer: Mapping[int, int] = field(default_factory=dict, hash=False)
    header: str | None = None
    function: KeyFunction | None = None
    null_token: str = NULL_TOKEN

    @classmethod
    def parse(cls, text: str, *, null_token: str = NULL_TOKEN) -> "KeyRule":
        """Read ``flights.*.{key}`` or ``header:Name on flights.*.>``; or raise KeyRuleError."""
        header = None
        subjects = text
        if text.startswith("header:"):
            header, found, subjects = text.removeprefix("header:").partition(" on ")
            if not found or not re.fullmatch(r"[!-9;-~]+", header):
                raise KeyRuleError(text, "a header rule reads 'header:<name> on <subjects>'")
        marks = _parse_pattern(text, subjects)
        if header is None and not marks.keys:
            raise KeyRuleError(text, "no token is marked as the key, as in 'flights.*.{key}'")
        if header is not None and marks.keys:
            raise KeyRuleError(text, "the key is either a header or tokens in braces, not both")
        return cls(
            text=text,
            pattern=marks.tokens,
            key_places=marks.keys,
            partition_place=marks.partition,
            finer=marks.finer,
            header=header,
            null_token=null_token,
        )

    @classmethod
    def for_function(cls, function: KeyFunction, subjects: str) -> "KeyRule":
        """Make a rule that asks ``function``; ``subjects`` is a pattern without key tokens."""
        name = getattr(function, "__qualname__", type(function).__qualname__)
        text = f"function:{name} on {subjects}"
        marks = _parse_pattern(text, subjects)
        if marks.keys:
            raise KeyRuleError(text, "the key is either a function's or tokens in braces, not both")
        return cls(
            text=text,
            pattern=marks.tokens,
            key_places=(),
            partition_place=marks.partition,
            finer=marks.finer,
            function=function,
        )

    @property
    def canonical(self) -> str:
        """The rule's text with names that all rules share which read the same key.

        ``orders.*.{customer}`` and ``orders.{partition}.{key}`` are one rule; ``cfg`` has this.
        """
        tokens = self.filter_text.split(".")
        for number, place in enumerate(self.key_places, 1):
            tokens[place] = "{key}" if number == 1 else f"{{key{number}}}"
        subjects = ".".join(tokens)
        return subjects if self.header is None else f"header:{self.header} on {subjects}"

    @property
    def filter_text(self) -> str:
        """The pattern as ``cfg`` has it: the partition's tokens marked, the key's not."""
        tokens = self.subject_filter().split(".")
        if self.partition_place is not None:
            tokens[self.partition_place] = "{partition}"
        for level, place in self.finer.items():
            tokens[place] = f"{{partition:{level}}}"
        return ".".join(tokens)

    def levels(self, partitions: int) -> tuple[int, ...]:
        """Return every number of partitions the subjects can be read as, ``partitions`` first.

        Raises KeyRuleError when a finer level is no multiple, at least twice, of the one before.
        """
        levels = (partitions, *self.finer)
        for coarse, fine in pairwise(levels):
            if fine % coarse or fine == coarse:
                raise KeyRuleError(
                    self.text, f"{fine} partitions are no multiple of {coarse}, so none splits up"
                )
        return levels

    def subject_filter(self, partition: int | None = None, level: int | None = None) -> str:
        """Return the NATS pattern of what the rule reads; of one partition when it is given.

        ``level`` says out of how many partitions it is: one of `finer`; None or any other number
        is the first level.
        """
        tokens = ["*" if _is_marked(token) else token for token in self.pattern]
        place = self._place(level)
        if partition is not None and place is not None:
            tokens[place] = str(partition)
        return ".".join(tokens)

    def key_of(self, subject: str, headers: Mapping[str, str], payload: bytes) -> bytes | None:
        """Return the message's key, None if it has none; KeyRuleError: not the rule's subject."""
        if self.function is not None:
            return self.function(subject, headers, payload)
        if self.header is not None:
            value = headers.get(self.header)
            return None if value is None else value.encode("utf-8", "surrogateescape")
        tokens = subject.split(".")
        if not _matches(self.pattern, tokens):
            raise KeyRuleError(self.text, f"subject {subject!r} does not match")
        chosen = [tokens[place] for place in self.key_places]
        if len(chosen) == 1:
            return _key_of_token(chosen[0], headers, self.null_token)
        return ".".join(chosen).encode("utf-8", "surrogateescape")

    def reader(self) -> KeyFunction:
        """Make a function that is `key_of`, several times faster: keep it, call it per message."""
        if self.function is not None:
            return self.function
        if self.header is not None:
            return _header_reader(self.header)
        return _token_reader(self)

    def partition_of(self, subject: str, level: int | None = None) -> int | None:
        """Return the partition token's number; None if there is no such token, or no number.

        ``level`` as in `subject_filter`.
        """
        place = self._place(level)
        tokens = subject.split(".")
        if place is None or not _matches(self.pattern, tokens):
            return None
        token = tokens[place]
        if not (token.isascii() and token.isdecimal()):
            return None
        number = int(token)
        return number if str(number) == token else None

    def check(self, subjects: Iterable[str], partitions: int, *, only: int | None = None) -> None:
        """Refuse, with KeyRuleError, a rule that cannot read ``partitions`` partitions of a stream.

        ``subjects`` are the patterns the stream's messages are stored under (see ``pattern.py``).
        Each partition's filter, at every level, must be able to match some of them. The server
        would not say so: it takes any filter for a consumer, and one that fits nothing never
        delivers (seen on 2.15.1). ``only``: the stream is that partition's alone.
        """
        if self.partition_place is None and partitions > 1 and only is None:
            raise KeyRuleError(
                self.text,
                f"it marks no partition token, so it cannot tell {partitions} partitions apart"
                " (write '*' or '{partition}')",
            )
        stored = list(subjects)
        patterns = [subject.split(".") for subject in stored]
        levels = self.levels(partitions)
        for level in levels if only is None else levels[:1]:
            numbers = range(level) if only is None else (only,)
            partition = self._unreadable(numbers, level, patterns)
            if partition is not None:
                subject = self.subject_filter(partition, level)
                raise KeyRuleError(
                    self.text,
                    f"no subject of partition {partition} ({subject!r}) is among the stream's"
                    f" subjects: {', '.join(stored) or 'none'}",
                )

    def _unreadable(
        self, numbers: Sequence[int], level: int, patterns: Iterable[Sequence[str]]
    ) -> int | None:
        """The first partition whose filter fits no pattern; None: each fits one.

        Found by the tokens the patterns have in the partition's place: partitions may be many.
        """
        place = self._place(level)
        wanted = self.subject_filter().split(".")
        there = {
            pattern[place] if place is not None and place < len(pattern) else _FULL_WILDCARD
            for pattern in patterns
            if tokens_overlap(wanted, pattern)
        }
        if there & {_PARTIAL_WILDCARD, _FULL_WILDCARD}:
            return None
        return next((number for number in numbers if str(number) not in there), None)

    def _place(self, level: int | None) -> int | None:
        return (
            self.partition_place if level is None else self.finer.get(level, self.partition_place)
        )


def _header_reader(name: str) -> KeyFunction:
    def read(subject: str, headers: Mapping[str, str], payload: bytes) -> bytes | None:
        value = headers.get(name)
        return None if value is None else value.encode("utf-8", "surrogateescape")

    return read


def _token_reader(rule: KeyRule) -> KeyFunction:
    """`KeyRule.key_of` for key tokens, with all that depends on the rule alone done beforehand.

    A token without ``%`` is its own key whether the escape wrote it or not, so only one with it
    (or the null token) needs `from_token`.
    """
    pattern, null_token = rule.pattern, rule.null_token
    literals = [
        (place, token)
        for place, token in enumerate(pattern)
        if token not in ("*", ">") and not _is_marked(token)
    ]
    is_open = pattern[-1] == _FULL_WILDCARD
    splits = len(pattern) - 1 if is_open else -1
    length = len(pattern)
    places = rule.key_places
    only = places[0] if len(places) == 1 else None
    # Consumers' filters let nothing else through; the first literals are checked at one stroke.
    leading = 0
    while leading < len(literals) and literals[leading][0] == leading:
        leading += 1
    prefix = "".join(f"{token}." for _, token in literals[:leading])
    rest = tuple(literals[leading:])

    @lru_cache(_ESCAPED_KEPT)
    def escaped(token: str) -> bytes | None:
        return _key_of_token(token, None, null_token)

    def read(subject: str, headers: Mapping[str, str], payload: bytes) -> bytes | None:
        tokens = subject.split(".", splits)
        if len(tokens) != length or not subject.startswith(prefix):
            raise KeyRuleError(rule.text, f"subject {subject!r} does not match")
        for place, literal in rest:
            if tokens[place] != literal:
                raise KeyRuleError(rule.text, f"subject {subject!r} does not match")
        if only is None:
            return ".".join([tokens[place] for place in places]).encode("utf-8", "surrogateescape")
        token = tokens[only]
        if "%" not in token and token != null_token:
            return token.encode("utf-8", "surrogateescape")
        if _HASH_MARK in token:
            return _key_of_token(token, headers, null_token)
        return escaped(token)

    return read


def _key_of_token(token: str, headers: Mapping[str, str] | None, null_token: str) -> bytes | None:
    """The key that ``token`` stands for; one that this escape did not write is its own key."""
    try:
        return from_token(token, headers, null_token=null_token)
    except KeyTokenError:
        return token.encode("utf-8", "surrogateescape")


def _is_marked(token: str) -> bool:
    return token.startswith("{")


class _Marks(NamedTuple):
    """A pattern's tokens, and where its marks stand."""

    tokens: tuple[str, ...]
    keys: tuple[int, ...]
    partition: int | None
    finer: Mapping[int, int]


def _parse_pattern(rule: str, subjects: str) -> _Marks:
    tokens = tuple(subjects.split("."))
    marked: dict[str, int] = {}
    bare = []
    for place, token in enumerate(tokens):
        if not token or re.search(r"\s", token):
            raise KeyRuleError(rule, "a subject token is empty or has a space in it")
        if token == _FULL_WILDCARD and place != len(tokens) - 1:
            raise KeyRuleError(rule, "'>' may only be the last token")
        if token == _PARTIAL_WILDCARD:
            bare.append(place)
        elif _is_marked(token):
            if not _MARK.fullmatch(token):
                raise KeyRuleError(rule, f"{token!r} is no name in braces")
            if token in marked:
                raise KeyRuleError(rule, f"{token!r} is there twice")
            marked[token] = place
    partition = marked.pop("{partition}", None)
    if partition is None and len(bare) > 1:
        raise KeyRuleError(rule, "several '*': mark the partition's token as '{partition}'")
    if partition is None and bare:
        partition = bare[0]
    levels = {int(text[11:-1]): place for text, place in marked.items() if ":" in text}
    if levels and partition is None:
        raise KeyRuleError(rule, "a finer level without a first one, marked '{partition}'")
    if len(levels) >= LEVELS_MAX:
        raise KeyRuleError(rule, f"{len(levels) + 1} levels (at most {LEVELS_MAX})")
    keys = tuple(place for text, place in marked.items() if ":" not in text)
    return _Marks(tokens, keys, partition, dict(sorted(levels.items())))


def _matches(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    if pattern[-1] == ">":
        if len(subject) < len(pattern):
            return False
    elif len(subject) != len(pattern):
        return False
    return all(
        wanted == token or wanted in ("*", ">") or _is_marked(wanted)
        for wanted, token in zip(pattern, subject, strict=False)
    )
