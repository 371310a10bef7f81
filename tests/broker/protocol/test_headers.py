from hypothesis import given, strategies as st

from millstream_broker.protocol import headers

BLOCK = b"NATS/1.0\r\nA: 1\r\nNats-Msg-Id:  x y \r\nA: 2\r\n\r\n"
names = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1
)
values = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF))


def test_the_first_of_repeated_headers_counts() -> None:
    assert headers.get(BLOCK, "A") == "1"


def test_names_compare_by_case_and_as_a_whole() -> None:
    assert headers.get(BLOCK, "nats-msg-id") is None
    assert headers.get(BLOCK, "Msg-Id") is None


def test_values_lose_the_white_space_around_them() -> None:
    assert headers.get(BLOCK, "Nats-Msg-Id") == "x y"


def test_no_block_has_no_headers() -> None:
    assert headers.get(None, "A") is None
    assert headers.parse(None) == []


def test_a_status_block_is_what_clients_read() -> None:
    block = headers.status(404, "No Messages", [("X", "1")])

    assert block == b"NATS/1.0 404 No Messages\r\nX: 1\r\n\r\n"
    assert headers.status(503) == b"NATS/1.0 503\r\n\r\n"


def test_headers_are_added_after_those_there() -> None:
    assert (
        headers.add(b"NATS/1.0\r\nA: 1\r\n\r\n", [("B", "2")])
        == b"NATS/1.0\r\nA: 1\r\nB: 2\r\n\r\n"
    )


def test_removing_every_header_leaves_no_block() -> None:
    assert headers.remove(BLOCK, ["A"]) == b"NATS/1.0\r\nNats-Msg-Id:  x y \r\n\r\n"
    assert headers.remove(BLOCK, ["A", "Nats-Msg-Id"]) is None


@given(st.lists(st.tuples(names, values)))
def test_what_is_built_parses_back(pairs: list[tuple[str, str]]) -> None:
    block = headers.add(None, pairs)

    assert headers.parse(block) == pairs
    for name, value in reversed(dict(reversed(pairs)).items()):
        assert headers.get(block, name) == value


@given(st.binary())
def test_any_bytes_are_a_block_without_harm(raw: bytes) -> None:
    headers.get(raw, "A")
    headers.parse(raw)
    headers.add(raw, [("A", "1")])
    headers.remove(raw, ["A"])


PIECES = [b"NATS/1.0", b"Nats-A", b"Nats-B", b"nats-A", b":", b" ", b"\t", b"\r\n", b"\r", b"\xff"]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_the_servers_headers_at_once_are_those_got_one_by_one(block: bytes) -> None:
    found = headers.server_headers(block)

    for name in ("Nats-A", "Nats-B", "Nats-ANats-B"):
        assert found.get(name) == headers.get(block, name)
