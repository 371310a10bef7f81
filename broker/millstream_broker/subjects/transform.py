"""Subject transforms: ``orders.*`` → ``orders.{{partition(10,1)}}.{{wildcard(1)}}``.

A transform is compiled once into one small step per destination token; applying it matches the
source and concatenates what the steps give. A function must be a whole token. Wildcard number i
counts the ``*`` of the source from 1, never ``>``; number 0, or a negative one, means the first
token (a quirk of nats-server 2.15.1 that is kept). A ``>`` at the end of both copies the tail.

``partition`` is FNV-1a, 32 bits, over the chosen tokens with nothing between, or over the whole
subject when none is chosen or the source has no wildcard; modulo n. Lengths count bytes, so the
work is done on UTF-8 and a cut may fall inside a character.

Chance is an argument: ``random`` gives an integer at or above 0 and below its argument.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from ..errors import TransformError
from . import subject as subjects

__all__ = ["RandomBelow", "Transform", "TransformError", "fnv1a", "partition"]

RandomBelow = Callable[[int], int]

_INVALID = "invalid mapping destination"
_INVALID_TRANSFORM = f"{_INVALID}: invalid transform"
_UNKNOWN_FUNCTION = f"{_INVALID}: unknown function"
_OUT_OF_RANGE = f"{_INVALID}: wildcard index out of range"
_TOO_FEW = f"{_INVALID}: not enough arguments passed to the function"
_TOO_MANY = f"{_INVALID}: too many arguments passed to the function"
_BAD_ARGUMENT = f"{_INVALID}: function argument is invalid or in the wrong format"
_ONLY_WILDCARD = (
    f"{_INVALID}: the only mapping function allowed for import transforms is {{{{Wildcard()}}}}"
)
_NOT_ALL_WILDCARDS = f"{_INVALID}: not using all of the token wildcard(s)"

# Only the letters nats-server's own expressions leave free may change case.
_FUNCTIONS = {
    name: re.compile(r"\{\{\s*" + spelling + r"\s*\((.*)\)\s*\}\}")
    for name, spelling in {
        "wildcard": "[wW]ildcard",
        "partition": "[pP]artition",
        "random": "[rR]andom",
        "splitfromleft": "[sS]plit[fF]rom[lL]eft",
        "splitfromright": "[sS]plit[fF]rom[rR]ight",
        "slicefromleft": "[sS]lice[fF]rom[lL]eft",
        "slicefromright": "[sS]lice[fF]rom[rR]ight",
        "split": "[sS]plit",
        "left": "[lL]eft",
        "right": "[rR]ight",
    }.items()
}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1

Tokens = list[bytes]
Step = Callable[[Tokens], bytes]


class _Call(NamedTuple):
    """A destination token that is a function: its name, wildcard numbers, length and separator."""

    name: str
    wildcards: tuple[int, ...]
    number: int = 0
    separator: bytes = b""


def fnv1a(key: bytes) -> int:
    """The 32-bit FNV-1a hash."""
    value = 0x811C9DC5
    for byte in key:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def partition(count: int, key: bytes) -> int:
    """The partition of a key as the server computes it; a negative count wraps, 0 gives 0."""
    count &= 0xFFFFFFFF
    return fnv1a(key) % count if count else 0


class Transform:
    """One source → destination rule, ready to apply. An empty source means ``>``.

    ``strict`` is the rule for imports: only wildcard(), and every wildcard of the source used.
    Raises TransformError with nats-server's text when the rule can't be, ValueError when the
    destination uses random() and none was given.
    """

    __slots__ = (
        "_copies_tail",
        "_is_identity",
        "_source_length",
        "_steps",
        "destination",
        "source",
    )

    def __init__(
        self,
        source: str,
        destination: str,
        *,
        random: RandomBelow | None = None,
        strict: bool = False,
    ) -> None:
        self.source = source or ">"
        self.destination = destination
        given, wanted = self.source.split("."), destination.split(".")
        _check_destination(wanted)
        if not subjects.is_valid(self.source) or (given[-1] == ">") != (wanted[-1] == ">"):
            raise TransformError("invalid subject")
        if "*" in wanted or ">" in wanted[:-1]:
            raise TransformError("invalid subject")
        self._is_identity = self.source == ">" == destination
        self._copies_tail = given[-1] == ">"
        self._source_length = len(given)
        self._steps = _compile(given, wanted[:-1] if self._copies_tail else wanted, random, strict)

    def apply(self, subject: str) -> str | None:
        """The new subject, or None when ``subject`` does not match the source."""
        if not subjects.matches(self.source, subject):
            return None
        if self._is_identity:
            return subject
        tokens = subject.encode("utf-8", "surrogateescape").split(b".")
        parts = [step(tokens) for step in self._steps]
        if self._copies_tail:
            parts += tokens[self._source_length - 1 :]
        return b".".join(parts).decode("utf-8", "surrogateescape")


def _check_destination(tokens: list[str]) -> None:
    seen_rest = False
    for token in tokens:
        if not token:
            raise TransformError(_INVALID_TRANSFORM)
        if seen_rest:
            raise TransformError(f"{_INVALID_TRANSFORM} in {token}")
        if _looks_like_function(token):
            if not any(expression.search(token) for expression in _FUNCTIONS.values()):
                raise TransformError(f"{_UNKNOWN_FUNCTION} in {token}")
        elif token == ">":
            seen_rest = True
        elif not subjects.is_valid(token):
            raise TransformError(_INVALID_TRANSFORM)


def _compile(
    given: list[str], wanted: list[str], random: RandomBelow | None, strict: bool
) -> list[Step]:
    positions = [i for i, token in enumerate(given) if token == "*"]
    has_wildcards = bool(positions) or given[-1] == ">"
    used = 0
    steps: list[Step] = []
    for token in wanted:
        call = _parse(token)
        if call is None:
            steps.append(_literal(token.encode("utf-8", "surrogateescape")))
            continue
        if strict and call.name != "wildcard":
            raise TransformError(f"{_ONLY_WILDCARD} in {token}")
        if not has_wildcards:
            if call.name not in ("partition", "random"):
                raise TransformError(f"{_OUT_OF_RANGE} in {token}")
            call = call._replace(wildcards=())
        for number in call.wildcards:
            if number > len(positions):
                raise TransformError(f"{_OUT_OF_RANGE} in {token}: [{number}]")
        used += len(call.wildcards)
        steps.append(
            _step(call, [positions[n - 1] if n > 0 else 0 for n in call.wildcards], random)
        )
    if strict and used < len(positions):
        raise TransformError(f"{_NOT_ALL_WILDCARDS} in {'.'.join(wanted)}")
    return steps


def _looks_like_function(token: str) -> bool:
    return len(token) > 4 and token.startswith("{{") and token.endswith("}}")


def _parse(token: str) -> _Call | None:
    """The function a destination token calls; None when it is literal text."""
    if token.startswith("$"):
        number = _integer(token[1:])
        return None if number is None else _Call("wildcard", (number,))
    if not _looks_like_function(token):
        return None
    for name, expression in _FUNCTIONS.items():
        found = expression.search(token)
        if found is not None:
            return _parse_arguments(name, re.split(r",\s*", found[1]), token)
    raise TransformError(f"{_UNKNOWN_FUNCTION} in {token}")


def _parse_arguments(name: str, arguments: list[str], token: str) -> _Call:
    if name == "wildcard":
        if arguments == [""]:
            raise TransformError(f"{_TOO_FEW} in {token}")
        _expect(arguments, 1, token)
        return _Call(name, (_argument(arguments[0], token),))
    if name in ("partition", "random"):
        if name == "random" and len(arguments) != 1:
            # Also with too many: the server has one text for both.
            raise TransformError(f"{_TOO_FEW} in {token}")
        count = _argument(arguments[0], token)
        if count > _INT32_MAX:
            raise TransformError(f"{_BAD_ARGUMENT} in {token}")
        return _Call(name, tuple(_argument(a, token) for a in arguments[1:]), count)
    _expect(arguments, 2, token)
    wildcards = (_argument(arguments[0], token),)
    if name != "split":
        return _Call(name, wildcards, _argument(arguments[1], token))
    if " " in arguments[1]:
        raise TransformError(f"{_BAD_ARGUMENT} in {token}")
    return _Call(name, wildcards, separator=arguments[1].encode("utf-8", "surrogateescape"))


def _expect(arguments: list[str], count: int, token: str) -> None:
    if len(arguments) < count:
        raise TransformError(f"{_TOO_FEW} in {token}")
    if len(arguments) > count:
        raise TransformError(f"{_TOO_MANY} in {token}")


def _argument(text: str, token: str) -> int:
    number = _integer(text.strip(" "))
    if number is None:
        raise TransformError(f"{_BAD_ARGUMENT} in {token}")
    return number


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text) if len(text) < 21 else _INT64_MAX + 1
    return number if abs(number) <= _INT64_MAX else None


def _literal(text: bytes) -> Step:
    return lambda _tokens: text


def _step(call: _Call, positions: list[int], random: RandomBelow | None) -> Step:
    number = call.number
    if call.name == "partition":
        if not positions:
            return lambda tokens: b"%d" % partition(number, b".".join(tokens))
        return lambda tokens: b"%d" % partition(number, b"".join(tokens[p] for p in positions))
    if call.name == "random":
        if random is None:
            raise ValueError("a destination with random() needs a source of randomness")
        return lambda _tokens: b"%d" % (random(abs(number)) if number else 0)
    shape = _SHAPES[call.name](number, call.separator)
    position = positions[0]
    return lambda tokens: shape(tokens[position])


Shape = Callable[[bytes], bytes]


def _wildcard(_length: int, _separator: bytes) -> Shape:
    return lambda token: token


def _left(length: int, _separator: bytes) -> Shape:
    return lambda token: token[:length] if 0 < length < len(token) else token


def _right(length: int, _separator: bytes) -> Shape:
    return lambda token: token[-length:] if 0 < length < len(token) else token


def _split_from_left(length: int, _separator: bytes) -> Shape:
    def shape(token: bytes) -> bytes:
        return token[:length] + b"." + token[length:] if 0 < length < len(token) else token

    return shape


def _split_from_right(length: int, _separator: bytes) -> Shape:
    def shape(token: bytes) -> bytes:
        return token[:-length] + b"." + token[-length:] if 0 < length < len(token) else token

    return shape


def _slice_from_left(length: int, _separator: bytes) -> Shape:
    def shape(token: bytes) -> bytes:
        if not 0 < length < len(token):
            return token
        return b".".join(token[i : i + length] for i in range(0, len(token), length))

    return shape


def _slice_from_right(length: int, _separator: bytes) -> Shape:
    def shape(token: bytes) -> bytes:
        if not 0 < length < len(token):
            return token
        first = len(token) % length
        parts = [token[i : i + length] for i in range(first, len(token), length)]
        return b".".join([token[:first], *parts] if first else parts)

    return shape


def _split(_length: int, separator: bytes) -> Shape:
    def shape(token: bytes) -> bytes:
        if separator:
            parts = token.split(separator)
        else:
            text = token.decode("utf-8", "surrogateescape")
            parts = [character.encode("utf-8", "surrogateescape") for character in text]
        # A dot goes before each part that holds something, except after an empty *first* part: the
        # server's rule, which gives ".a" for two leading separators.
        out = bytearray()
        for i, part in enumerate(parts):
            out += part
            if i + 1 < len(parts) and parts[i + 1] and (i or part):
                out += b"."
        return bytes(out)

    return shape


_SHAPES: dict[str, Callable[[int, bytes], Shape]] = {
    "wildcard": _wildcard,
    "left": _left,
    "right": _right,
    "splitfromleft": _split_from_left,
    "splitfromright": _split_from_right,
    "slicefromleft": _slice_from_left,
    "slicefromright": _slice_from_right,
    "split": _split,
}
