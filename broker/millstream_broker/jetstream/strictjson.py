"""JSON as the API reads it: strict, and wrong documents named in the words Go's decoder uses.

Client libraries and people know nats-server's texts (``invalid character '}' looking for …``),
so the decoder's refusal is turned into them: msgspec decodes what is right, and only a document
it refuses is walked again here, byte by byte, to find what Go would have said about which byte.
"""

from typing import Any, Final, NoReturn

import msgspec

_SPACE: Final = b" \t\r\n"
_DIGITS: Final = b"0123456789"
_HEX: Final = b"0123456789abcdefABCDEF"
_DEPTH_MAX: Final = 300  # far over any request, under the interpreter's own limit


class JsonError(Exception):
    """The document is not what the request needs; the text is Go's, without ``invalid JSON: ``."""


def decode(document: bytes) -> Any:
    """One JSON value and nothing after it. Raises JsonError."""
    try:
        return msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _Scanner(document).explain()
        raise JsonError(str(error)) from error


class _Scanner:
    """Walks a refused document to its first wrong byte."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self._at = 0

    def explain(self) -> None:
        """Raise JsonError for the first wrong byte; return when Go would take the document."""
        self._value()
        self._skip_space()
        if self._at < len(self._document):
            self._fail("looking for beginning of value")

    def _fail(self, where: str) -> NoReturn:
        if self._at >= len(self._document):
            raise JsonError("unexpected EOF")
        byte = _quoted(self._document[self._at])
        raise JsonError(f"invalid character {byte} {where} at offset {self._at + 1}")

    def _skip_space(self) -> None:
        while self._at < len(self._document) and self._document[self._at] in _SPACE:
            self._at += 1

    def _peek(self) -> int:
        """Look at the byte at the cursor; -1 at the end."""
        return self._document[self._at] if self._at < len(self._document) else -1

    def _value(self, depth: int = 0) -> None:
        self._skip_space()
        byte = self._peek()
        if depth > _DEPTH_MAX:
            raise JsonError("exceeded max depth")
        if byte == 0x7B:
            self._object(depth)
        elif byte == 0x5B:
            self._array(depth)
        elif byte == 0x22:
            self._string()
        elif byte == 0x2D or (byte >= 0 and byte in _DIGITS):
            self._number()
        elif byte >= 0 and byte in b"tfn":
            self._literal({0x74: b"true", 0x66: b"false", 0x6E: b"null"}[byte])
        else:
            self._fail("looking for beginning of value")

    def _object(self, depth: int) -> None:
        self._at += 1
        self._skip_space()
        if self._peek() == 0x7D:
            self._at += 1
            return
        while True:
            self._skip_space()
            if self._peek() != 0x22:
                self._fail("looking for beginning of object key string")
            self._string()
            self._skip_space()
            if self._peek() != 0x3A:
                self._fail("after object key")
            self._at += 1
            self._value(depth + 1)
            self._skip_space()
            if self._peek() == 0x7D:
                self._at += 1
                return
            if self._peek() != 0x2C:
                self._fail("after object key:value pair")
            self._at += 1

    def _array(self, depth: int) -> None:
        self._at += 1
        self._skip_space()
        if self._peek() == 0x5D:
            self._at += 1
            return
        while True:
            self._value(depth + 1)
            self._skip_space()
            if self._peek() == 0x5D:
                self._at += 1
                return
            if self._peek() != 0x2C:
                self._fail("after array element")
            self._at += 1

    def _string(self) -> None:
        self._at += 1
        while (byte := self._peek()) != 0x22:
            if byte == 0x5C:
                self._at += 1
                self._escape()
            elif byte < 0x20:
                self._fail("in string literal")
            self._at += 1
        self._at += 1

    def _escape(self) -> None:
        byte = self._peek()
        if byte == 0x75:
            for _ in range(4):
                self._at += 1
                if self._peek() < 0 or self._peek() not in _HEX:
                    self._fail("in \\u hexadecimal character escape")
        elif byte < 0 or byte not in b'bfnrt\\/"':
            self._fail("in string escape code")

    def _number(self) -> None:
        if self._peek() == 0x2D:
            self._at += 1
            if self._peek() < 0 or self._peek() not in _DIGITS:
                self._fail("in numeric literal")
        if self._peek() == 0x30:
            self._at += 1
        else:
            self._digits("in numeric literal")
        if self._peek() == 0x2E:
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._peek() in (0x45, 0x65):
            self._at += 1
            if self._peek() in (0x2B, 0x2D):
                self._at += 1
            self._digits("in exponent of numeric literal")

    def _digits(self, where: str) -> None:
        if self._peek() < 0 or self._peek() not in _DIGITS:
            self._fail(where)
        while self._peek() >= 0 and self._peek() in _DIGITS:
            self._at += 1

    def _literal(self, word: bytes) -> None:
        for expected in word[1:]:
            self._at += 1
            if self._peek() != expected:
                self._fail(f"in literal {word.decode()} (expecting '{chr(expected)}')")
        self._at += 1


def _quoted(byte: int) -> str:
    """One byte in single quotes, escaped as Go does."""
    if byte == 0x27:
        return r"'\''"
    if byte == 0x22:
        return "'\"'"
    if 0x20 <= byte < 0x7F or byte >= 0xA0:
        return f"'{chr(byte)}'" if byte != 0x5C else r"'\\'"
    named = {
        0x07: r"\a",
        0x08: r"\b",
        0x09: r"\t",
        0x0A: r"\n",
        0x0B: r"\v",
        0x0C: r"\f",
        0x0D: r"\r",
    }
    if byte in named:
        return f"'{named[byte]}'"
    return f"'\\x{byte:02x}'" if byte < 0x80 else f"'\\u{byte:04x}'"
