import pytest
from hypothesis import example, given, strategies as st

from millstream_broker.subjects import subject
from millstream_broker.subjects.trie import Trie

tokens = st.sampled_from(["a", "b", "cc", "*", ">", "a*", ""])
any_subject = st.lists(tokens, min_size=1, max_size=5).map(".".join)
patterns = any_subject.filter(subject.is_valid)
literals = st.lists(st.sampled_from(["a", "b", "cc"]), min_size=1, max_size=4).map(".".join)
EVERY_LITERAL = [
    ".".join(ts)
    for ts in [
        (a, *rest)
        for a in ("a", "b", "z")
        for rest in [(), *[(b,) for b in "abz"], *[(b, c) for b in "abz" for c in "abz"]]
    ]
]


def naive(pattern: str, text: str) -> bool:
    p, t = pattern.split("."), text.split(".")
    if "" in t:
        return False
    if p[0] == ">":
        return True
    if p[0] not in ("*", t[0]):
        return False
    if len(p) == 1 or len(t) == 1:
        return len(p) == len(t)
    return naive(".".join(p[1:]), ".".join(t[1:]))


@pytest.mark.parametrize(
    "text", ["a", "a.b", "*", ">", "a.*.c", "a.>", "foo*", "f>", "$JS.{x}", "zürich.é"]
)
def test_pattern_is_valid(text: str) -> None:
    assert subject.is_valid(text)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", ">.a", "a b", "a\tb", "a.b\n", "a\f", "\ra"]
)
def test_pattern_is_invalid(text: str) -> None:
    assert not subject.is_valid(text)


@pytest.mark.parametrize(
    ("text", "literal"), [("a.b", True), ("a*.>b", True), ("a.*", False), (">", False)]
)
def test_a_subject_is_literal_when_no_whole_token_is_a_wildcard(text: str, literal: bool) -> None:
    assert subject.is_literal(text) is literal


@pytest.mark.parametrize(
    ("text", "ok"), [("a.b", True), ("a..b", False), ("a.>", False), ("foo*", True)]
)
def test_a_pedantic_client_may_publish_to_plain_subjects_only(text: str, ok: bool) -> None:
    assert subject.is_publishable(text) is ok


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("foo.*", "foo.bar", True),
        ("foo.*", "foo.*", True),
        ("foo.bar", "foo.*", False),
        ("foo.>", "foo", False),
        ("foo.>", "foo.a.b", True),
        (">", "a..b", False),
        ("a..b", "a..b", False),
        ("foo*", "foobar", False),
        ("foo*", "foo*", True),
    ],
)
def test_matching_follows_whole_tokens(pattern: str, text: str, expected: bool) -> None:
    assert subject.matches(pattern, text) is expected


@given(patterns, any_subject)
def test_matches_equals_the_naive_matcher(pattern: str, text: str) -> None:
    assert subject.matches(pattern, text) == naive(pattern, text)


@given(st.lists(patterns, max_size=12), any_subject)
@example(["foo.>", "foo.*", ">"], "foo.bar.baz")
def test_the_trie_equals_the_naive_matcher(stored: list[str], text: str) -> None:
    trie: Trie[int] = Trie()
    for number, pattern in enumerate(stored):
        trie.insert(pattern, number)

    assert sorted(trie.match(text)) == [n for n, p in enumerate(stored) if naive(p, text)]
    assert sorted(trie) == sorted((p, n) for n, p in enumerate(stored))


@given(st.lists(patterns, max_size=12), st.randoms(use_true_random=False), any_subject)
def test_what_is_removed_from_the_trie_no_longer_matches(
    stored: list[str], random: object, text: str
) -> None:
    trie: Trie[int] = Trie()
    for number, pattern in enumerate(stored):
        trie.insert(pattern, number)
    gone = {n for n in range(len(stored)) if n % 2}
    for number in gone:
        assert trie.remove(stored[number], number)
        assert not trie.remove(stored[number], number)

    left = [n for n, p in enumerate(stored) if n not in gone and naive(p, text)]
    assert sorted(trie.match(text)) == left
    assert len(trie) == len(stored) - len(gone)


def test_an_empty_trie_keeps_no_nodes() -> None:
    trie: Trie[str] = Trie()
    trie.insert("a.b.c", "x")
    trie.insert("a.>", "y")

    trie.remove("a.b.c", "x")
    trie.remove("a.>", "y")

    assert not trie._root.children


@given(patterns, patterns)
def test_patterns_collide_when_some_literal_matches_both(a: str, b: str) -> None:
    witness = any(naive(a, text) and naive(b, text) for text in EVERY_LITERAL)

    if witness:
        assert subject.collides(a, b)
    assert subject.collides(a, b) == subject.collides(b, a)


@given(patterns, patterns)
def test_a_subset_matches_nothing_its_superset_does_not(inner: str, outer: str) -> None:
    if subject.is_subset(inner, outer):
        assert all(naive(outer, text) for text in EVERY_LITERAL if naive(inner, text))


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("a.b", "a.*", True),
        ("a.*", "a.*", True),
        ("a.>", "a.*", False),
        ("a.*", "a.>", True),
        ("a", "a.>", False),
        ("*", "a", False),
        (">", ">", True),
        ("a.b.c", "a.>", True),
        (">", "*", False),
    ],
)
def test_subset_vectors(inner: str, outer: str, expected: bool) -> None:
    assert subject.is_subset(inner, outer) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a.*", "*.b", True),
        ("a", "a.>", False),
        ("a.>", "a.b.*", True),
        ("a.b", "a.c", False),
        ("*.*", "a", False),
        (">", "x", True),
    ],
)
def test_collision_vectors(a: str, b: str, expected: bool) -> None:
    assert subject.collides(a, b) is expected
