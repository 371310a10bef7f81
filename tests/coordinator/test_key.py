"""Keys as tokens and back, and the rules that find them in subjects."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import product

import pytest
from hypothesis import example, given, strategies as st

from millstream_coordinator.partitioning.key import (
    EMPTY_TOKEN,
    KEY_BYTES_MAX,
    KEY_HEADER,
    NULL_TOKEN,
    KeyFunction,
    KeyRule,
    KeyRuleError,
    KeyTokenError,
    from_token,
    key_headers,
    to_token,
)
from millstream_coordinator.partitioning.pattern import overlap

# Mostly keys that are nearly something special: one byte more or less decides.
AWKWARD = st.sampled_from(b".*>% $\x00\x1f\x7f\x80\xff%null%empty%-%2E_nul")
KEYS = st.one_of(
    st.none(),
    st.binary(max_size=12),
    st.lists(AWKWARD, max_size=8).map(bytes),
    st.binary(min_size=KEY_BYTES_MAX - 2, max_size=KEY_BYTES_MAX + 40),
    st.text(max_size=10).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
NULL_TOKENS = st.sampled_from([NULL_TOKEN, "_null", "null", "-", "none~"])


@given(KEYS, NULL_TOKENS)
@example(b"_null", "_null")
@example(b"-", "-")
@example(b"%null", NULL_TOKEN)
@example(b"%empty", NULL_TOKEN)
def test_a_key_comes_back_from_its_token(key: bytes | None, null_token: str) -> None:
    token = to_token(key, null_token=null_token)

    assert from_token(token, key_headers(key), null_token=null_token) == key


@given(KEYS, KEYS, NULL_TOKENS)
@example(b"_null", None, "_null")
@example(b"%null", None, NULL_TOKEN)
@example(b"%empty", b"", NULL_TOKEN)
@example(b"%5Fnull", b"_null", "_null")
def test_different_keys_have_different_tokens(
    one: bytes | None, other: bytes | None, null_token: str
) -> None:
    tokens = {to_token(key, null_token=null_token) for key in (one, other)}

    assert len(tokens) == len({one, other})


@given(KEYS, NULL_TOKENS)
def test_a_token_is_always_one_literal_token(key: bytes | None, null_token: str) -> None:
    token = to_token(key, null_token=null_token)

    assert re.fullmatch(r"(?!\$)[!-~]{1,384}", token)
    assert not set(token) & set(".*>")


@pytest.mark.parametrize("byte", range(256))
def test_each_byte_in_the_middle_of_a_key_comes_back_and_is_legal(byte: int) -> None:
    key = b"a" + bytes([byte]) + b"b"

    token = to_token(key)

    assert from_token(token) == key
    assert re.fullmatch(r"[!-~]+", token)
    assert not set(token) & set(".*>")


@pytest.mark.parametrize(
    ("key", "token"),
    [
        (b"N14228", "N14228"),
        (b"eu.customer 7", "eu%2Ecustomer%207"),
        (b"$JS", "%24JS"),
        (b"a$", "a$"),
        ("zürich".encode(), "z%C3%BCrich"),
        (b"100%", "100%25"),
        (b"*", "%2A"),
        (b">", "%3E"),
        (b"a>b*", "a%3Eb%2A"),
        (b"\x7f", "%7F"),
        (b"", EMPTY_TOKEN),
        (None, NULL_TOKEN),
    ],
)
def test_the_written_form_is_fixed(key: bytes | None, token: str) -> None:
    assert to_token(key) == token


def test_a_key_of_the_limit_is_written_out() -> None:
    assert to_token(b"k" * KEY_BYTES_MAX) == "k" * KEY_BYTES_MAX
    assert key_headers(b"k" * KEY_BYTES_MAX) == {}


def test_a_longer_key_is_its_start_and_a_hash_with_the_key_in_a_header() -> None:
    key = b"tenant/7/" + b"k" * KEY_BYTES_MAX

    token = to_token(key)

    assert token.startswith("tenant/7/kkk")
    assert len(token) < KEY_BYTES_MAX
    assert key_headers(key).keys() == {KEY_HEADER}


def test_a_hash_without_its_header_is_refused() -> None:
    with pytest.raises(KeyTokenError, match="holds only a hash"):
        from_token(to_token(b"k" * 200))


def test_a_hash_with_another_keys_header_is_refused() -> None:
    with pytest.raises(KeyTokenError, match="not the escaped form"):
        from_token(to_token(b"k" * 200), key_headers(b"k" * 201))


def test_a_header_that_is_not_base64_is_refused() -> None:
    with pytest.raises(KeyTokenError, match="not base64"):
        from_token(to_token(b"k" * 200), {KEY_HEADER: "k?k"})


@pytest.mark.parametrize("token", ["", "a.b", "*", ">", "a b", "%2e", "%41", "%", "%zz", "ü", "$a"])
def test_a_token_the_escape_does_not_write_is_refused(token: str) -> None:
    with pytest.raises(KeyTokenError):
        from_token(token)


@pytest.mark.parametrize("null_token", ["", "a.b", "*", "%41", "%empty", "$null", "a b", "ü"])
def test_a_null_token_that_is_no_plain_token_is_refused(null_token: str) -> None:
    with pytest.raises(ValueError, match="null token"):
        to_token(None, null_token=null_token)


def test_the_only_bare_wildcard_is_the_partition() -> None:
    rule = KeyRule.parse("flights.*.{key}")

    assert rule.partition_of("flights.7.N14228") == 7
    assert rule.key_of("flights.7.N14228", {}, b"") == b"N14228"
    assert rule.subject_filter() == "flights.*.*"
    assert rule.subject_filter(7) == "flights.7.*"


def test_a_marked_partition_may_stand_beside_other_wildcards() -> None:
    rule = KeyRule.parse("*.{partition}.*.{key}.>")

    assert rule.partition_of("eu.3.x.k.rest.of.it") == 3
    assert rule.key_of("eu.3.x.k.rest.of.it", {}, b"") == b"k"
    assert rule.subject_filter(3) == "*.3.*.*.>"


def test_the_escape_is_undone_in_a_single_key_token() -> None:
    rule = KeyRule.parse("flights.*.{key}")

    assert rule.key_of("flights.0.a%2Eb", {}, b"") == b"a.b"
    assert rule.key_of(f"flights.0.{NULL_TOKEN}", {}, b"") is None


def test_a_long_key_is_read_from_its_header() -> None:
    key = b"k" * 300
    rule = KeyRule.parse("flights.*.{key}")

    assert rule.key_of(f"flights.0.{to_token(key)}", key_headers(key), b"") == key


def test_the_routes_own_null_token_is_no_key() -> None:
    rule = KeyRule.parse("flights.*.{key}", null_token="none")

    assert rule.key_of("flights.0.none", {}, b"") is None


@pytest.mark.parametrize("token", ["%zz", "100%", "ü", to_token(b"k" * 300)])
def test_a_token_of_somebody_elses_making_is_its_own_key(token: str) -> None:
    rule = KeyRule.parse("flights.*.{key}")

    assert rule.key_of(f"flights.0.{token}", {}, b"") == token.encode()


def test_several_key_tokens_are_taken_as_they_stand() -> None:
    rule = KeyRule.parse("orders.*.{region}.{customer}")

    assert rule.key_of("orders.0.eu.a%2Eb", {}, b"") == b"eu.a%2Eb"


def test_a_header_rule_takes_the_headers_value() -> None:
    rule = KeyRule.parse("header:Customer-Id on orders.*.>")

    assert rule.key_of("orders.0.x.y", {"Customer-Id": "c7"}, b"") == b"c7"
    assert rule.key_of("orders.0.x.y", {}, b"") is None
    assert rule.partition_of("orders.4.x.y") == 4


def test_a_function_rule_asks_the_function() -> None:
    def first_byte(subject: str, headers: Mapping[str, str], payload: bytes) -> bytes | None:
        return payload[:1] or None

    rule = KeyRule.for_function(first_byte, "orders.*.>")

    assert rule.key_of("orders.0.x", {}, b"abc") == b"a"
    assert rule.key_of("orders.0.x", {}, b"") is None
    assert rule.subject_filter(2) == "orders.2.>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flights.*.*", "several"),
        ("flights.*.x", "no token is marked"),
        ("flights..{key}", "empty"),
        ("flights.>.{key}", "last"),
        ("flights.*.{key}.{key}", "twice"),
        ("flights.*.{}", "no name in braces"),
        ("flights.*.{a key}", "space"),
        ("flights.*.{key", "no name in braces"),
        ("header:Customer-Id", "reads 'header:"),
        ("header: on flights.*", "reads 'header:"),
        ("header:Id on flights.*.{key}", "not both"),
        ("", "empty"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(KeyRuleError, match=reason) as caught:
        KeyRule.parse(text)

    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("subject", ["flights.1", "flights.1.a.b", "trains.1.a"])
def test_a_subject_outside_the_rule_has_no_partition_and_its_key_is_refused(subject: str) -> None:
    rule = KeyRule.parse("flights.*.{key}")

    assert rule.partition_of(subject) is None
    with pytest.raises(KeyRuleError, match="does not match"):
        rule.key_of(subject, {}, b"")


@pytest.mark.parametrize("token", ["_checkpoint", "01", "-1", "1e3", "²", "٣"])
def test_a_token_that_is_no_plain_number_is_no_partition(token: str) -> None:
    assert KeyRule.parse("flights.*.{key}").partition_of(f"flights.{token}.a") is None


@pytest.mark.parametrize(
    "subjects",
    [
        ["flights.*.*"],
        ["flights.>"],
        [">"],
        ["other", "flights.*.*"],
        ["flights.0.*", "flights.1.*"],
        ["flights.0.>", "flights.*.*"],
        ["flights.*.a"],
        ["*.*.*"],
    ],
)
def test_a_rule_that_can_match_the_streams_subjects_in_each_partition_fits(
    subjects: list[str],
) -> None:
    KeyRule.parse("flights.*.{key}").check(subjects, 2)


@pytest.mark.parametrize(
    "subjects",
    [["flights.*"], ["flights.*.*.*"], ["trains.>"], [], ["flights.0.*"], ["flights.*.*.>"]],
)
def test_a_rule_that_matches_nothing_in_some_partition_is_refused_in_one_line(
    subjects: list[str],
) -> None:
    with pytest.raises(KeyRuleError, match="among the stream's subjects") as caught:
        KeyRule.parse("flights.*.{key}").check(subjects, 2)

    assert "\n" not in str(caught.value)


def test_a_rule_without_a_partition_token_cannot_tell_partitions_apart() -> None:
    rule = KeyRule.parse("flights.{key}")

    rule.check(["flights.*"], 1)
    with pytest.raises(KeyRuleError, match="marks no partition token"):
        rule.check(["flights.*"], 2)


NESTED = KeyRule.parse("orders.{partition}.{partition:16}.{key}")


def test_a_finer_level_has_a_filter_of_its_own() -> None:
    assert NESTED.levels(4) == (4, 16)
    assert NESTED.subject_filter() == "orders.*.*.*"
    assert NESTED.subject_filter(3) == NESTED.subject_filter(3, 4) == "orders.3.*.*"
    assert NESTED.subject_filter(11, 16) == "orders.*.11.*"


def test_a_subject_tells_its_partition_at_each_level() -> None:
    assert NESTED.partition_of("orders.3.11.k") == 3
    assert NESTED.partition_of("orders.3.11.k", 4) == 3
    assert NESTED.partition_of("orders.3.11.k", 16) == 11
    assert NESTED.partition_of("orders.3.x.k", 16) is None


def test_levels_are_no_part_of_the_key() -> None:
    assert NESTED.key_of("orders.3.11.k", {}, b"") == b"k"
    assert KeyRule.parse("o.*.{partition:16}.{a}.{b}").key_of("o.3.11.x.y", {}, b"") == b"x.y"


def test_levels_may_stand_in_any_order_and_beside_a_bare_wildcard() -> None:
    rule = KeyRule.parse("{partition:64}.o.{partition:8}.*.{key}")

    assert rule.levels(2) == (2, 8, 64)
    assert rule.subject_filter(5, 8) == "*.o.5.*.*"
    assert rule.partition_of("7.o.5.1.k") == 1


def test_a_rule_for_a_header_or_a_function_has_levels_too() -> None:
    header = KeyRule.parse("header:Customer-Id on orders.{partition}.{partition:8}.>")
    function = KeyRule.for_function(lambda *_: None, "orders.{partition}.{partition:8}.>")

    assert header.levels(4) == function.levels(4) == (4, 8)


@pytest.mark.parametrize("partitions", [3, 5, 16, 32])
def test_levels_that_do_not_nest_are_refused(partitions: int) -> None:
    with pytest.raises(KeyRuleError, match=f"16 partitions are no multiple of {partitions}"):
        NESTED.levels(partitions)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("orders.{partition:16}.{key}", "without a first one"),
        ("orders.{partition}.{partition:0}.{key}", "no name in braces"),
        ("orders.{partition}.{partition:08}.{key}", "no name in braces"),
        ("orders.{partition}.{partition:x}.{key}", "no name in braces"),
        ("orders.{partition}.{partition:8}.{partition:8}.{key}", "twice"),
        (
            "{partition}." + ".".join(f"{{partition:{2**n}}}" for n in range(1, 9)) + ".{key}",
            "9 levels",
        ),
    ],
)
def test_a_level_that_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(KeyRuleError, match=reason):
        KeyRule.parse(text)


def test_each_partition_of_each_level_must_be_among_the_streams_subjects() -> None:
    NESTED.check(["orders.*.*.*"], 4)
    NESTED.check([f"orders.{n % 4}.{n}.*" for n in range(16)], 4)
    with pytest.raises(KeyRuleError, match=re.escape("of partition 15 ('orders.*.15.*')")):
        NESTED.check([f"orders.{n % 4}.{n}.*" for n in range(15)], 4)


SUBJECTS = st.lists(
    st.one_of(
        st.builds(
            "flights.{}.{}".format, st.sampled_from(["0", "1", "2", "01", "*"]), st.just("*")
        ),
        st.sampled_from(["flights.>", "flights.1.>", "flights.2.a.*", "trains.*.*", ">", "*.0.b"]),
    ),
    max_size=4,
)


@given(SUBJECTS, st.sampled_from(["flights.*.{key}", "flights.{partition}.{key}.>"]))
def test_a_rule_fits_when_each_partitions_filter_meets_some_subject(
    subjects: list[str], text: str
) -> None:
    rule = KeyRule.parse(text)
    filters = [rule.subject_filter(partition) for partition in range(3)]
    fits = all(any(overlap(one, subject) for subject in subjects) for one in filters)

    with nullcontext() if fits else pytest.raises(KeyRuleError, match="among the stream's"):
        rule.check(subjects, 3)


def test_a_stream_of_one_partition_is_looked_at_for_that_one_only() -> None:
    rule = KeyRule.parse("flights.*.{key}")

    rule.check(["flights.3.*"], 4, only=3)
    KeyRule.parse("flights.{key}").check(["flights.*"], 4, only=3)
    with pytest.raises(KeyRuleError, match="no subject of partition 2"):
        rule.check(["flights.3.*"], 4, only=2)


@pytest.mark.parametrize(
    "text", ["orders.{partition}.x.{partition:16}.*.{key}", "header:A on orders.*.>"]
)
def test_the_filters_text_reads_back_as_the_same_places(text: str) -> None:
    rule = KeyRule.parse(text)

    read = KeyRule.for_function(lambda *_: None, rule.filter_text)

    assert read.subject_filter(3) == rule.subject_filter(3)
    assert read.subject_filter(3, 16) == rule.subject_filter(3, 16)
    assert (read.finer, read.partition_place) == (rule.finer, rule.partition_place)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("orders.*.{customer}", "orders.{partition}.{key}"),
        ("o.{partition}.{partition:8}.{a}.*.{b}.>", "o.{partition}.{partition:8}.{key}.*.{key2}.>"),
        ("header:Customer-Id on orders.*.>", "header:Customer-Id on orders.{partition}.>"),
    ],
)
def test_rules_that_read_the_same_key_have_one_text(text: str, canonical: str) -> None:
    rule = KeyRule.parse(text)

    assert rule.canonical == canonical
    assert KeyRule.parse(canonical).canonical == canonical
    assert KeyRule.parse(canonical).key_places == rule.key_places


TOKENS = st.one_of(
    st.sampled_from(["a", "k", "7", "", "%null", "none", "%empty", "%zz", "$x", "ü", "\udc80"]),
    KEYS.map(to_token),
    st.text(alphabet="ak7%$ü", max_size=3),
)
RULES = [
    *(
        KeyRule.parse(text, null_token=null_token)
        for text, null_token in product(
            ["{a}", "a.*.{k}", "{a}.k.*.a", "a.{k}.>", "*.{a}.{k}", "a.7.{partition}.{k}.k.>"],
            [NULL_TOKEN, "none"],
        )
    ),
    NESTED,
    KeyRule.parse("header:K on a.*.>"),
    KeyRule.for_function(lambda subject, headers, payload: payload or None, "a.*.>"),
]


@given(
    st.sampled_from(RULES),
    st.lists(TOKENS, min_size=1, max_size=6),
    st.booleans(),
    st.one_of(
        st.just({}), KEYS.map(key_headers), st.text(max_size=3).map(lambda value: {"K": value})
    ),
    st.binary(max_size=2),
)
@example(KeyRule.parse("a.*.{k}", null_token="none"), ["a", "1", "none"], False, {}, b"")
@example(KeyRule.parse("a.*.{k}"), ["a", "1", to_token(b"k" * 200)], False, {}, b"")
@example(KeyRule.parse("a.*.{k}"), ["a", "1", "%zz"], False, {}, b"")
def test_the_reader_is_the_rule(
    rule: KeyRule, tokens: list[str], is_shaped: bool, headers: dict[str, str], payload: bytes
) -> None:
    if is_shaped:  # as the pattern wants it, with these tokens where it leaves something open
        filled = zip(rule.subject_filter().split("."), tokens, strict=False)
        tokens = [free if wanted in "*>" else wanted for wanted, free in filled]
    subject = ".".join(tokens)

    def outcome(read: KeyFunction) -> object:
        try:
            return read(subject, headers, payload)
        except KeyRuleError as error:
            return str(error)

    assert outcome(rule.reader()) == outcome(rule.key_of)


@given(KEYS)
def test_the_reader_finds_every_key_the_publisher_writes(key: bytes | None) -> None:
    read = NESTED.reader()

    assert read(f"orders.1.5.{to_token(key)}", key_headers(key), b"") == key
