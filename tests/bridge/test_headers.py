"""Kafka headers and the source header, there and back."""

import email.parser

import pytest
from hypothesis import given, strategies as st

from millstream_bridge.model import KafkaHeader, TimestampType
from millstream_bridge.records.headers import (
    HeaderError,
    SourceHeader,
    pack,
    parse_block,
    unpack,
)

names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["a", "A", "trace-id", "Nats-Msg-Id", "millstream-source", "Status", "a:b", ""]
    ),
)
values = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.sampled_from([b"", b" ", b"plain", b" lead", b"trail ", b"a\r\nb", b"\xff", b"two words"]),
)
kafka_headers = st.lists(st.tuples(names, values), max_size=8)


def through_a_block(headers: list[KafkaHeader]) -> tuple[KafkaHeader, ...]:
    plain, packed = pack(headers)
    lines = [f"{name}: {value}\r\n" for name, value in plain]
    if packed is not None:
        lines.append(f"Millstream-Headers: {packed}\r\n")
    block = f"NATS/1.0\r\n{''.join(lines)}\r\n".encode("ascii")
    found = parse_block(block)[1]
    rest = next((value for name, value in found if name == "Millstream-Headers"), None)
    return unpack([(n, v) for n, v in found if n != "Millstream-Headers"], rest)


@given(kafka_headers)
def test_any_headers_come_back_as_they_were(headers: list[KafkaHeader]) -> None:
    assert through_a_block(headers) == tuple(headers)


@given(kafka_headers)
def test_what_goes_one_to_one_is_read_alike_by_a_mail_parser(headers: list[KafkaHeader]) -> None:
    """nats-py reads header blocks with one."""
    plain, _ = pack(headers)

    text = "".join(f"{name}: {value}\r\n" for name, value in plain) + "\r\n"
    parsed = email.parser.BytesParser().parsebytes(text.encode("ascii"))

    assert list(parsed.items()) == plain


@pytest.mark.parametrize(
    "header",
    [
        ("Nats-Msg-Id", b"x"),
        ("nats-expected-stream", b"x"),
        ("Millstream-Source", b"x"),
        ("Status", b"100"),
        ("description", b"x"),
        ("with space", b"x"),
        ("a:b", b"x"),
        ("é", b"x"),
        ("null", None),
        ("binary", b"\x00\xff"),
        ("padded", b" x"),
        ("lines", b"a\r\nNats-Rollup: all"),
    ],
)
def test_a_header_with_a_meaning_or_no_plain_text_is_packed(header: KafkaHeader) -> None:
    plain, packed = pack([header])

    assert plain == []
    assert packed is not None


def test_a_plain_header_goes_one_to_one() -> None:
    assert pack([("trace-id", b"00-ab cd")]) == ([("trace-id", "00-ab cd")], None)


def test_all_occurrences_of_a_repeated_name_are_packed() -> None:
    plain, packed = pack([("a", b"1"), ("b", b"2"), ("A", b"3")])

    assert plain == [("b", "2")]
    assert packed is not None


def test_a_damaged_packed_header_is_an_error() -> None:
    with pytest.raises(HeaderError, match="damaged"):
        unpack([], "not base64!")


def test_a_packed_header_that_names_a_place_out_of_reach_is_an_error() -> None:
    _, packed = pack([("a", b"1"), ("b", None)])

    with pytest.raises(HeaderError, match="place"):
        unpack([], packed)


sources = st.builds(
    SourceHeader,
    st.from_regex(r"[A-Za-z0-9._-]{1,40}", fullmatch=True),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**62),
    st.integers(-1, 2**45),
    st.sampled_from(TimestampType),
    st.sampled_from(["", "n", "k", "h", "nk", "nkh", "kh"]),
)


@given(sources)
def test_a_source_header_comes_back_as_it_was(source: SourceHeader) -> None:
    assert SourceHeader.parse(source.text) == source


def test_a_source_header_reads_as_documented() -> None:
    source = SourceHeader("flights", 3, 17, 1357034400000, TimestampType.CREATE, "nk")

    assert source.text == "flights 3 17 1357034400000 c nk"


@given(st.text(max_size=30))
def test_other_text_is_no_source_header_or_reads_back_as_itself(text: str) -> None:
    try:
        source = SourceHeader.parse(text)
    except HeaderError:
        return
    assert SourceHeader.parse(source.text) == source


def test_a_status_line_has_its_code() -> None:
    assert parse_block(b"NATS/1.0 503\r\n\r\n") == (503, [])


def test_bytes_that_are_no_header_block_are_an_error() -> None:
    with pytest.raises(HeaderError):
        parse_block(b"HTTP/1.1 200 OK\r\n\r\n")
