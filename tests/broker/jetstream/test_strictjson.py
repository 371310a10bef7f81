"""Wrong JSON is named in the words nats-server's clients know (texts seen on 2.15.1)."""

import contextlib
import json

import pytest
from hypothesis import given, strategies as st

from millstream_broker.jetstream.strictjson import JsonError, decode


@pytest.mark.parametrize(
    ("document", "text", "offset"),
    [
        (b'{"name":"B",}', "'}' looking for beginning of object key string", 13),
        (b'{"name":"B"} x', "'x' looking for beginning of value", 14),
        (b'{"name" 1}', "'1' after object key", 9),
        (b'{"a":1 "b":2}', "'\"' after object key:value pair", 8),
        (b"[1 2]", "'2' after array element", 4),
        (b"trux", "'x' in literal true (expecting 'e')", 4),
        (b"01", "'1' looking for beginning of value", 2),
        (b"1.x", "'x' after decimal point in numeric literal", 3),
        (b"-x", "'x' in numeric literal", 2),
        (b"1ex", "'x' in exponent of numeric literal", 3),
        (b'"a\nb"', "'\\n' in string literal", 3),
        (b'"\\x"', "'x' in string escape code", 3),
        (b'"\\u00g0"', "'g' in \\u hexadecimal character escape", 6),
    ],
)
def test_the_first_wrong_byte_is_named(document: bytes, text: str, offset: int) -> None:
    with pytest.raises(JsonError) as caught:
        decode(document)

    assert str(caught.value) == f"invalid character {text} at offset {offset}"


def test_a_document_cut_short_ends_unexpectedly() -> None:
    with pytest.raises(JsonError, match=r"^unexpected EOF$"):
        decode(b'{"name":')


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_what_is_right_is_decoded(value: object) -> None:
    assert decode(json.dumps(value).encode()) == value


@given(
    st.binary(max_size=30)
    | st.text('{}[]",:truefalsn0123.eE-+\\u ', max_size=12).map(lambda text: text.encode())
)
def test_any_bytes_are_decoded_or_refused(document: bytes) -> None:
    with contextlib.suppress(JsonError):
        decode(document)
