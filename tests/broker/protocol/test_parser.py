import pytest
from hypothesis import given, strategies as st

from millstream_broker.errors import (
    ClientError,
    ControlLineTooLong,
    MalformedOperation,
    PayloadTooLarge,
    UnknownOperation,
)
from millstream_broker.protocol.parser import (
    Connect,
    Ignored,
    Incomplete,
    Limits,
    Operation,
    Ping,
    Pong,
    Publish,
    Subscribe,
    Unsubscribe,
    parse,
)

LIMITS = Limits(accepts_headers=True)


def parse_all(data: bytes, limits: Limits = LIMITS) -> tuple[list[Operation], int]:
    """Every whole operation, and where the incomplete rest begins."""
    found, position = [], 0
    while position < len(data):
        step = parse(data, position, limits)
        if isinstance(step, Incomplete):
            break
        operation, position = step
        found.append(operation)
    return found, position


def parse_chunks(chunks: list[bytes]) -> list[Operation]:
    found: list[Operation] = []
    rest = b""
    for chunk in chunks:
        rest += chunk
        more, position = parse_all(rest)
        found += more
        rest = rest[position:]
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"PING\r\n", Ping()),
        (b"ping\n", Ping()),
        (b"PING anything\r\n", Ping()),
        (b"pong\r\n", Pong()),
        (b"+OK\r\n", Ignored()),
        (b"INFO {}\r\n", Ignored()),
        (b'CONNECT {"a": 1}\r\n', Connect(b'{"a": 1}')),
        (b"SUB a.* 1\r\n", Subscribe(b"a.*", None, b"1")),
        (b"sub\ta.*  q\t1 \r\n", Subscribe(b"a.*", b"q", b"1")),
        (b"UNSUB 1\r\n", Unsubscribe(b"1", 0)),
        (b"UNSUB 1 5\r\n", Unsubscribe(b"1", 5)),
        (b"UNSUB 1 -1\r\n", Unsubscribe(b"1", 0)),
        (b"PUB a 2\r\nhi\r\n", Publish(b"a", None, 0, b"hi\r\n")),
        (b"pub \t a  r  2 \nhi\r\n", Publish(b"a", b"r", 0, b"hi\r\n")),
        (b"PUB a 0\r\n\r\n", Publish(b"a", None, 0, b"\r\n")),
        (b"HPUB a 3 5\r\nabchi\r\n", Publish(b"a", None, 3, b"abchi\r\n")),
        (b"HPUB a 3 3 5\r\nabchi\r\n", Publish(b"a", b"3", 3, b"abchi\r\n")),
        (b"PUB a 3\r\n\r\n\r\r\n", Publish(b"a", None, 0, b"\r\n\r\r\n")),
    ],
)
def test_operation_is_parsed(line: bytes, expected: Operation) -> None:
    assert parse(line, 0, LIMITS) == (expected, len(line))


@pytest.mark.parametrize(
    "line",
    [b"PUB \r\n", b"PUB a\r\n", b"PUB a b c 5\r\n", b"PUB a 5x\r\n", b"PUB a -1\r\n",
     b"PUB a +5\r\n",
     b"PUB a 99999999999\r\n", b"HPUB a 13 12\r\n", b"SUB a\r\n", b"SUB a b c d\r\n",
     b"UNSUB 1 2 3\r\n",
     b"-ERR 'x'\r\n"],
)  # fmt: skip
def test_wrong_arguments_are_malformed(line: bytes) -> None:
    with pytest.raises(MalformedOperation):
        parse(line, 0, LIMITS)


@pytest.mark.parametrize(
    "line",
    [b"X", b"PUX", b"\r\n", b"PUB\r\n", b"UNSUB\r\n", b"SUBX a 1\r\n", b"MSG a 1 0\r\n",
     b"RS+ a\r\n",
     b"+X\r\n",
     b"PUB a 2\r\nhiX", b"PUB a 2\r\nhi\n", b"PUB a 2\r\nhi\rX"],
)  # fmt: skip
def test_what_is_no_operation_is_refused_at_the_first_byte_that_shows_it(line: bytes) -> None:
    with pytest.raises(UnknownOperation):
        parse(line, 0, LIMITS)


def test_headers_are_refused_before_connect_allowed_them() -> None:
    with pytest.raises(MalformedOperation):
        parse(b"HPUB a 3 5\r\n", 0, Limits())


def test_a_payload_over_the_limit_is_refused_on_its_control_line() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        parse(b"PUB a 11\r\n", 0, Limits(max_payload=10))

    assert (caught.value.size, caught.value.limit) == (11, 10)


@pytest.mark.parametrize("end", [b"", b" 1\r\n"])
def test_a_control_line_over_the_limit_is_refused(end: bytes) -> None:
    with pytest.raises(ControlLineTooLong):
        parse(b"SUB " + b"x" * 41 + end, 0, Limits(max_control_line=40))
    with pytest.raises(ControlLineTooLong):
        parse(b"PUB " + b"x" * 41 + b" 0\r\n", 0, Limits(max_control_line=40))


def test_the_verb_does_not_count_for_the_control_line_limit() -> None:
    limits = Limits(max_control_line=40)
    line = b"SUB " + b"x" * 38 + b" 1\r\n"

    assert parse(line, 0, limits) == (Subscribe(b"x" * 38, None, b"1"), len(line))


def test_pub_split_inside_payload_waits_for_the_rest() -> None:
    assert parse(b"PUB a 5\r\nhel", 0, LIMITS) == Incomplete(4)


OPERATIONS = st.lists(
    st.sampled_from(
        [b"PING\r\n", b"PONG\r\n", b"SUB a.b q 1\r\n", b"UNSUB 1 3\n", b"CONNECT {}\r\n",
         b"PUB a 0\r\n\r\n", b"PUB a r 7\r\n\r\nPING\r\r\n",
         b"HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
         b"+OK\r\n"]
    ),
    max_size=12,
)  # fmt: skip


@given(OPERATIONS, st.data())
def test_any_split_of_the_bytes_gives_the_same_operations(
    operations: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(operations)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert parse_chunks(chunks) == parse_all(whole)[0]
    assert parse_chunks([whole[i : i + 1] for i in range(len(whole))]) == parse_all(whole)[0]
    assert len(parse_all(whole)[0]) == len(operations)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [b"PUB ", b"HPUB ", b"SUB ", b" ", b"\r\n", b"5", b"a", b"\t", b"CONNECT "]
            ),
        )
    ).map(b"".join)
)
def test_garbage_raises_nothing_but_client_errors(data: bytes) -> None:
    try:
        _, position = parse_all(data)
    except ClientError:
        return
    assert 0 <= position <= len(data)
