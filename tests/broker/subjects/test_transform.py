"""Vectors are from nats-server 2.15.1: streams with a subject_transform, one message each."""

import pytest
from hypothesis import given, strategies as st

from millstream_broker.errors import TransformError
from millstream_broker.subjects.transform import Transform, fnv1a

BUCKETS = (3, 4, 5, 8, 10, 16, 64, 256, 1000)
KEYS = """
0 0x350ca8af 0 3 3 7 3 15 47 175 63
1 0x340ca71c 1 0 4 4 4 12 28 28 444
2 0x370cabd5 1 1 1 5 1 5 21 213 301
3 0x360caa42 2 2 2 2 2 2 2 66 682
42 0x87e38583 2 3 1 3 1 3 3 131 11
alice 0x872213e7 2 3 4 7 9 7 39 231 479
bob 0x86c6a0d4 2 0 4 4 4 4 20 212 244
carol 0x67088f12 2 2 2 2 2 2 18 18 162
order-1001 0x916f3d8c 1 0 2 4 2 12 12 140 572
customer_7 0x807bebdf 1 3 4 7 9 15 31 223 959
AAPL 0x58cd330b 1 3 0 3 5 11 11 11 955
MSFT 0xc9ad9a73 1 3 3 3 3 3 51 115 683
zürich 0xaeca5e40 0 0 4 0 4 0 0 64 984
a 0xe40c292c 1 0 0 4 0 12 44 44 220
foo 0xa9f37ed7 0 3 3 7 3 7 23 215 223
hello 0x4f9f2cab 0 3 3 3 3 11 43 171 723
00000000-0000-0000-0000-000000000001 0xbd478d3e 1 2 3 6 8 14 62 62 38
"""
MULTI = """
p.foo.bar 3 2 0 2 4
p.bar.foo 2 3 2 0 0
p.ab.c 6 8 1 5 7
p.a.bc 0 6 1 7 5
p.alice.1001 9 7 5 9 5
p.eu.42 3 1 3 7 3
"""


@pytest.mark.parametrize("row", KEYS.strip().splitlines())
def test_partition_of_one_token(row: str) -> None:
    key, hashed, *expected = row.split()

    assert fnv1a(key.encode()) == int(hashed, 16)
    for count, bucket in zip(BUCKETS, expected, strict=True):
        rule = Transform("p.*", f"out.{{{{wildcard(1)}}}}.{{{{partition({count},1)}}}}")
        assert rule.apply(f"p.{key}") == f"out.{key}.{bucket}"


@pytest.mark.parametrize("row", MULTI.strip().splitlines())
def test_partition_of_several_tokens_has_no_separator(row: str) -> None:
    text, *expected = row.split()

    for arguments, bucket in zip(("10,1", "10,2", "10,1,2", "10,2,1", "10"), expected, strict=True):
        assert Transform("p.*.*", f"o.{{{{partition({arguments})}}}}").apply(text) == f"o.{bucket}"


@pytest.mark.parametrize(
    ("source", "destination", "text", "expected"),
    [
        ("p.>", "out.{{partition(10)}}.>", "p.foo", "out.5.foo"),
        ("p.>", "out.{{partition(10)}}.>", "p.foo.bar", "out.4.foo.bar"),
        ("p.>", "out.{{partition(10)}}.>", "p.a.b.c", "out.7.a.b.c"),
        ("zlit", "out.{{partition(10)}}", "zlit", "out.2"),
        ("zlit.a", "out.{{partition(16)}}", "zlit.a", "out.3"),
        ("lit", "lit.{{partition(7)}}", "lit", "lit.4"),
        ("m.*", "mm.{{partition(5)}}.{{wildcard(1)}}", "m.abc", "mm.0.abc"),
        ("q", "z.{{partition(10,1)}}", "q", "z.4"),
        ("p.*", "o.{{partition(0,1)}}", "p.a", "o.0"),
        ("p.*", "o.{{partition(-3,1)}}", "p.a", "o.3826002220"),
        ("p.*", "o.{{partition(10,0)}}", "p.a", "o.3"),
        ("p.*", "o.{{ Partition (3, 1) }}", "p.a", "o.1"),
        ("p.*", "o.{{wildcard(0)}}", "p.a", "o.p"),
        ("p.*", "o.{{wildcard(-1)}}", "p.a", "o.p"),
        ("p.*", "o.{{wildcard(+1)}}", "p.a", "o.a"),
        ("p.*", "o.$1", "p.a", "o.a"),
        ("p.*", "o.$x", "p.a", "o.$x"),
        ("p.*", "o.pre{{partition(3,1)}}", "p.a", "o.pre{{partition(3,1)}}"),
        ("p.*", "o.{{}}", "p.a", "o.{{}}"),
        ("p.*", "o.{{wildcard(1)", "p.a", "o.{{wildcard(1)"),
        ("p.*", "o.{{splitfromleft(1,3)}}", "p.abcdef", "o.abc.def"),
        ("p.*", "o.{{SplitFromLeft(1,9)}}", "p.abcdef", "o.abcdef"),
        ("p.*", "o.{{splitfromright(1,3)}}", "p.abcdefg", "o.abcd.efg"),
        ("p.*", "o.{{slicefromleft(1,3)}}", "p.abcdefgh", "o.abc.def.gh"),
        ("p.*", "o.{{slicefromleft(1,3)}}", "p.abcdef", "o.abc.def"),
        ("p.*", "o.{{slicefromright(1,3)}}", "p.abcdefgh", "o.ab.cde.fgh"),
        ("p.*", "o.{{slicefromright(1,0)}}", "p.abcdefgh", "o.abcdefgh"),
        ("p.*", "o.{{split(1,-)}}", "p.-a--b-", "o.a.b"),
        ("p.*", "o.{{split(1,-)}}", "p.--", "o."),
        ("p.*", "o.{{split(1,-)}}", "p.--a", "o..a"),
        ("p.*", "o.{{split(1,)}}", "p.abc", "o.a.b.c"),
        ("p.*", "o.{{split(1,ü)}}", "p.zürich", "o.z.rich"),
        ("p.*", "o.{{left(1,3)}}", "p.abcdef", "o.abc"),
        ("p.*", "o.{{right(1,3)}}", "p.abcdef", "o.def"),
        ("p.*", "o.{{left(1,2)}}", "p.zürich", "o.z\udcc3"),
        ("p.*.>", "z.{{wildcard(1)}}.>", "p.a.b.c", "z.a.b.c"),
        ("p.*.*", "z.{{wildcard(2)}}.{{wildcard(1)}}", "p.a.b", "z.b.a"),
        ("", "z.>", "a.b", "z.a.b"),
        (">", ">", "a.b", "a.b"),
    ],
)
def test_transform_gives(source: str, destination: str, text: str, expected: str) -> None:
    assert Transform(source, destination).apply(text) == expected


def test_a_subject_outside_the_source_gives_nothing() -> None:
    assert Transform("p.*", "o.$1").apply("q.a") is None


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("p.*", "o.{{wildcard(2)}}", "wildcard index out of range in {{wildcard(2)}}: [2]"),
        ("p.*", "o.$2", "wildcard index out of range in $2: [2]"),
        ("q", "o.{{wildcard(1)}}", "wildcard index out of range in {{wildcard(1)}}"),
        ("p.>", "o.{{left(1,2)}}.>", "wildcard index out of range in {{left(1,2)}}: [1]"),
        ("p.*", "o.{{x}}", "unknown function in {{x}}"),
        ("p.*", "o.{{PARTITION(3,1)}}", "unknown function in {{PARTITION(3,1)}}"),
        ("p.*", "o.{{split(1)}}", "not enough arguments passed to the function in {{split(1)}}"),
        (
            "p.*",
            "o.{{wildcard()}}",
            "not enough arguments passed to the function in {{wildcard()}}",
        ),
        (
            "p.*",
            "o.{{wildcard(1,2)}}",
            "too many arguments passed to the function in {{wildcard(1,2)}}",
        ),
        (
            "p.*",
            "o.{{random(1,2)}}",
            "not enough arguments passed to the function in {{random(1,2)}}",
        ),
        (
            "p.*",
            "o.{{partition()}}",
            "function argument is invalid or in the wrong format in {{partition()}}",
        ),
        (
            "p.*",
            "o.{{partition(2147483648,1)}}",
            "function argument is invalid or in the wrong format in {{partition(2147483648,1)}}",
        ),
        (
            "p.*",
            "o.{{wildcard(1)}}{{wildcard(1)}}",
            "function argument is invalid or in the wrong format in {{wildcard(1)}}{{wildcard(1)}}",
        ),
        ("p.*", "o..a", "invalid transform"),
        ("p.*", "o a", "invalid transform"),
        ("p.*.>", "z.>.{{wildcard(1)}}", "invalid transform in {{wildcard(1)}}"),
    ],
)
def test_a_wrong_destination_is_refused_in_the_servers_words(
    source: str, destination: str, error: str
) -> None:
    with pytest.raises(TransformError) as caught:
        Transform(source, destination)

    assert str(caught.value) == f"invalid mapping destination: {error}"


@pytest.mark.parametrize(
    ("source", "destination"), [("p.*", "o.*"), ("p.*", "o.>"), ("p.>", "z"), ("p..a", "z")]
)
def test_wildcards_that_do_not_fit_are_an_invalid_subject(source: str, destination: str) -> None:
    with pytest.raises(TransformError, match=r"^invalid subject$"):
        Transform(source, destination)


def test_a_strict_transform_uses_every_wildcard_and_nothing_else() -> None:
    with pytest.raises(
        TransformError, match=r"not using all of the token wildcard\(s\) in o\.\$1$"
    ):
        Transform("p.*.*", "o.$1", strict=True)
    with pytest.raises(TransformError, match="only mapping function allowed for import transforms"):
        Transform("p.*", "o.{{partition(3,1)}}", strict=True)


def test_random_asks_the_injected_source() -> None:
    rule = Transform("p.*", "o.{{random(7)}}", random=lambda below: below - 1)

    assert rule.apply("p.a") == "o.6"
    assert Transform("p.*", "o.{{random(0)}}", random=lambda below: 1 // 0).apply("p.a") == "o.0"


@given(st.text(max_size=30))
def test_any_destination_is_a_transform_or_a_transform_error(text: str) -> None:
    try:
        rule = Transform("p.*", text, random=lambda below: 0)
    except TransformError:
        return
    assert rule.apply("p.abc") is not None
