"""Compiled patterns say what the subject rules say."""

from hypothesis import given, strategies as st

from millstream_broker.store.pattern import compile_patterns
from millstream_broker.subjects.subject import matches

TOKENS = st.sampled_from(["a", "b", "a.b", "x+", "f*", "g>", "é", "$KV", "*x"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda head, last: ".".join([*head, last]),
    st.lists(TOKENS | st.just("*"), max_size=3),
    TOKENS | st.sampled_from(["*", ">"]),
)


@given(patterns=st.lists(PATTERNS, min_size=1, max_size=3), subject=SUBJECTS)
def test_any_pattern_agrees_with_the_rules(patterns: list[str], subject: str) -> None:
    expected = any(matches(pattern, subject) for pattern in patterns)

    assert bool(compile_patterns(patterns)(subject)) == expected


def test_no_pattern_matches_nothing() -> None:
    assert not compile_patterns(())("a")
