"""Subject transforms of streams: partition vectors, the other functions, and what is refused.

The partition numbers are what nats-server 2.15.1 stored; they are the contract between everything
that computes a partition, so they are written out and not computed.
"""

import pytest

from tests.conformance.client import ApiError, Client

BUCKETS = (3, 4, 5, 8, 10, 16, 64, 256, 1000)
VECTORS = {
    "0": (0, 3, 3, 7, 3, 15, 47, 175, 63),
    "1": (1, 0, 4, 4, 4, 12, 28, 28, 444),
    "2": (1, 1, 1, 5, 1, 5, 21, 213, 301),
    "3": (2, 2, 2, 2, 2, 2, 2, 66, 682),
    "42": (2, 3, 1, 3, 1, 3, 3, 131, 11),
    "alice": (2, 3, 4, 7, 9, 7, 39, 231, 479),
    "bob": (2, 0, 4, 4, 4, 4, 20, 212, 244),
    "carol": (2, 2, 2, 2, 2, 2, 18, 18, 162),
    "order-1001": (1, 0, 2, 4, 2, 12, 12, 140, 572),
    "customer_7": (1, 3, 4, 7, 9, 15, 31, 223, 959),
    "AAPL": (1, 3, 0, 3, 5, 11, 11, 11, 955),
    "MSFT": (1, 3, 3, 3, 3, 3, 51, 115, 683),
    "zürich": (0, 0, 4, 0, 4, 0, 0, 64, 984),
    "a": (1, 0, 0, 4, 0, 12, 44, 44, 220),
    "foo": (0, 3, 3, 7, 3, 7, 23, 215, 223),
    "hello": (0, 3, 3, 3, 3, 11, 43, 171, 723),
    "00000000-0000-0000-0000-000000000001": (1, 2, 3, 6, 8, 14, 62, 62, 38),
}
MULTI = {
    "foo.bar": (3, 2, 0, 2, 4),
    "bar.foo": (2, 3, 2, 0, 0),
    "ab.c": (6, 8, 1, 5, 7),
    "a.bc": (0, 6, 1, 7, 5),
    "alice.1001": (9, 7, 5, 9, 5),
    "eu.42": (3, 1, 3, 7, 3),
}


async def stored_as(client: Client, stream: str, subject: str, source: str, dest: str) -> str:
    """The subject under which a stream with this transform stores ``subject``."""
    await client.stream(stream, subjects=[source], subject_transform={"src": source, "dest": dest})
    await client.stored(subject)
    return (await client.subjects_of(stream))[-1]


@pytest.mark.parametrize(("index", "buckets"), list(enumerate(BUCKETS)))
async def test_partition_of_one_token_into(
    client: Client, name: str, index: int, buckets: int
) -> None:
    source, dest = f"{name}.*", f"out.{{{{wildcard(1)}}}}.{{{{partition({buckets},1)}}}}"
    await client.stream(name, subjects=[source], subject_transform={"src": source, "dest": dest})
    for key in VECTORS:
        await client.stored(f"{name}.{key}")

    assert await client.subjects_of(name) == [
        f"out.{key}.{numbers[index]}" for key, numbers in VECTORS.items()
    ]


@pytest.mark.parametrize(
    ("index", "arguments"), list(enumerate(["10,1", "10,2", "10,1,2", "10,2,1"]))
)
async def test_partition_of_tokens_joined_without_a_separator(
    client: Client, name: str, index: int, arguments: str
) -> None:
    source = f"{name}.*.*"
    dest = f"out.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.{{{{partition({arguments})}}}}"
    await client.stream(name, subjects=[source], subject_transform={"src": source, "dest": dest})
    for key in MULTI:
        await client.stored(f"{name}.{key}")

    assert await client.subjects_of(name) == [
        f"out.{key}.{numbers[index]}" for key, numbers in MULTI.items()
    ]


async def test_partition_without_an_index_takes_the_whole_subject(client: Client) -> None:
    source, dest = "p.*.*", "pwhole.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(10)}}"
    await client.stream("PW", subjects=[source], subject_transform={"src": source, "dest": dest})
    for key in MULTI:
        await client.stored(f"p.{key}")

    assert await client.subjects_of("PW") == [
        f"pwhole.{key}.{numbers[4]}" for key, numbers in MULTI.items()
    ]


async def test_partition_of_the_whole_subject_before_a_tail(client: Client) -> None:
    source, dest = "p.>", "ptail.{{partition(10)}}.>"
    await client.stream("PT", subjects=[source], subject_transform={"src": source, "dest": dest})
    for subject in ("p.foo", "p.foo.bar", "p.a.b.c"):
        await client.stored(subject)

    assert await client.subjects_of("PT") == ["ptail.5.foo", "ptail.4.foo.bar", "ptail.7.a.b.c"]


@pytest.mark.parametrize(
    ("subject", "buckets", "stored"), [("zlit", 10, "zout.2"), ("zlit.a", 16, "zout.3")]
)
async def test_partition_of_a_literal_subject(
    client: Client, name: str, subject: str, buckets: int, stored: str
) -> None:
    dest = f"zout.{{{{partition({buckets})}}}}"
    assert await stored_as(client, name, subject, subject, dest) == stored


@pytest.mark.parametrize(
    ("arguments", "stored"), [("0,1", "q.0"), ("-3,1", "q.3826002220"), ("10,0", "q.3")]
)
async def test_partition_with_odd_arguments(
    client: Client, name: str, arguments: str, stored: str
) -> None:
    dest = f"q.{{{{partition({arguments})}}}}"
    assert await stored_as(client, name, "p.a", "p.*", dest) == stored


@pytest.mark.parametrize(
    ("dest", "tokens", "stored"),
    [
        ("{{wildcard(2)}}.{{wildcard(1)}}", "a.b", "b.a"),
        ("$2.$1", "a.b", "b.a"),
        ("$2.$x.$1", "a.b", "b.$x.a"),
        ("{{ Wildcard( 2 ) }}.x", "a.b", "b.x"),
        ("pre{{partition(3,1)}}.{{wildcard(1)}}", "a.b", "pre{{partition(3,1)}}.a"),
        ("{{splitfromleft(1,3)}}", "abcdef.b", "abc.def"),
        ("{{SplitFromLeft(1,3)}}", "abc.b", "abc"),
        ("{{splitfromright(1,3)}}", "abcdefg.b", "abcd.efg"),
        ("{{slicefromleft(1,3)}}", "abcdefgh.b", "abc.def.gh"),
        ("{{slicefromright(1,3)}}", "abcdefgh.b", "ab.cde.fgh"),
        ("{{split(1,-)}}", "-a--b-.b", "a.b"),
        ("{{left(1,3)}}", "abcdef.b", "abc"),
        ("{{right(1,3)}}", "abcdef.b", "def"),
        ("{{left(1,0)}}", "abcdef.b", "abcdef"),
        ("{{left(1,9)}}", "abcdef.b", "abcdef"),
        ("{{left(1,4)}}", "züri.b", "zür"),
    ],
)
async def test_the_function_makes(
    client: Client, name: str, dest: str, tokens: str, stored: str
) -> None:
    got = await stored_as(client, name, f"{name}.{tokens}", f"{name}.*.*", f"out.{dest}")
    assert got == f"out.{stored}"


async def test_random_gives_a_number_below_its_argument(client: Client, name: str) -> None:
    source = f"{name}.*"
    transform = {"src": source, "dest": "r.{{random(4)}}.{{wildcard(1)}}"}
    await client.stream(name, subjects=[source], subject_transform=transform)
    for _ in range(60):
        await client.stored(f"{name}.x")

    numbers = {subject.split(".")[1] for subject in await client.subjects_of(name)}
    assert numbers <= {"0", "1", "2", "3"}
    assert len(numbers) > 1


async def test_a_subject_the_source_does_not_match_is_stored_unchanged(
    client: Client, name: str
) -> None:
    transform = {"src": f"{name}.in.*", "dest": "out.{{wildcard(1)}}"}
    await client.stream(name, subject_transform=transform)
    await client.stored(f"{name}.in.a")
    await client.stored(f"{name}.other.a")

    assert await client.subjects_of(name) == ["out.a", f"{name}.other.a"]


async def test_consumers_filter_on_the_transformed_subject(client: Client, name: str) -> None:
    transform = {"src": f"{name}.*", "dest": f"{name}.{{{{partition(3,1)}}}}.{{{{wildcard(1)}}}}"}
    await client.stream(name, subjects=[f"{name}.*"], subject_transform=transform)
    for key in ("alice", "foo", "bob"):
        await client.stored(f"{name}.{key}")
    await client.consumer(name, "c", filter_subject=f"{name}.2.>")

    got = await client.fetch(name, "c", 2)

    assert [message.subject for message in got] == [f"{name}.2.alice", f"{name}.2.bob"]


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        ("{name}.*", "out.*"),
        ("{name}.*", "out.{{{{wildcard(2)}}}}"),
        ("{name}.*", "out.{{{{nothing(1)}}}}"),
        ("{name}.*", "out.{{{{wildcard()}}}}"),
        ("{name}.*", "out.{{{{partition(2147483648,1)}}}}"),
        ("{name}.*", "out.>"),
        ("{name}.>", "out"),
        ("{name}.lit", "out.{{{{wildcard(1)}}}}"),
    ],
)
async def test_the_transform_is_refused(client: Client, name: str, source: str, dest: str) -> None:
    transform = {"src": source.format(name=name), "dest": dest.format(name=name)}
    body = {"name": name, "subjects": [f"{name}.>"], "subject_transform": transform}
    error = await client.error(f"STREAM.CREATE.{name}", body)

    assert (error.err_code, error.code) == (10156, 400)


async def test_a_source_that_is_no_subject_is_refused(client: Client, name: str) -> None:
    body = {"name": name, "subjects": [name], "subject_transform": {"src": "a..b", "dest": "x"}}
    error = await client.error(f"STREAM.CREATE.{name}", body)

    assert error.err_code == 10155


async def test_an_index_out_of_range_is_named(client: Client, name: str) -> None:
    transform = {"src": f"{name}.*", "dest": "out.{{wildcard(3)}}"}
    body = {"name": name, "subjects": [f"{name}.*"], "subject_transform": transform}

    assert await client.error(f"STREAM.CREATE.{name}", body) == ApiError(
        10156,
        400,
        "stream transform: invalid mapping destination: wildcard index out of range"
        " in {{wildcard(3)}}: [3]",
    )
