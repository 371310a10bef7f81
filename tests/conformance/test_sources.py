"""Streams that source other streams: order, filters, transforms, provenance."""

import pytest

from tests.conformance.client import Client, Json, eventually


async def holds(client: Client, name: str, count: int) -> None:
    async def is_so() -> bool:
        return bool((await client.state(name))["messages"] == count)

    await eventually(is_so, timeout_s=20)


async def read(client: Client, name: str, count: int) -> list[tuple[str, bytes]]:
    await client.consumer(name, "reader", ack_policy="none")
    return [(m.subject, m.payload) for m in await client.fetch(name, "reader", count)]


async def sourcing(client: Client, name: str, *sources: Json, **config: object) -> str:
    """A stream without subjects of its own that sources the given streams."""
    target = f"{name}SUM"
    await client.stream(target, subjects=None, sources=list(sources), **config)
    return target


async def test_a_source_brings_what_is_there_and_what_comes(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)
    target = await sourcing(client, name, {"name": name})
    await holds(client, target, 2)
    await client.stored(f"{name}.b", b"3")
    await holds(client, target, 3)

    assert await read(client, target, 3) == [
        (f"{name}.a", b"1"),
        (f"{name}.a", b"2"),
        (f"{name}.b", b"3"),
    ]


async def test_a_sourced_message_tells_where_it_comes_from(client: Client, name: str) -> None:
    await client.stream(name)
    await client.stored(f"{name}.a", b"x", {"K": "v"})
    target = await sourcing(client, name, {"name": name})
    await holds(client, target, 1)
    await client.consumer(target, "reader", ack_policy="none")

    [message] = await client.fetch(target, "reader", 1)

    assert message.headers[0] == ("K", "v")
    provenance = (message.header("Nats-Stream-Source") or "").split(" ")
    assert provenance[:5] == [name, "1", ">", ">", f"{name}.a"]
    assert len(provenance) == 6
    assert message.reply is not None


async def test_a_source_may_be_filtered(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in "abab":
        await client.stored(f"{name}.{subject}", subject.encode())

    target = await sourcing(client, name, {"name": name, "filter_subject": f"{name}.b"})

    await holds(client, target, 2)
    assert await read(client, target, 2) == [(f"{name}.b", b"b")] * 2


async def test_a_source_may_start_at_a_sequence(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 4)

    target = await sourcing(client, name, {"name": name, "opt_start_seq": 3})

    await holds(client, target, 2)
    assert [payload for _, payload in await read(client, target, 2)] == [b"3", b"4"]


async def test_a_source_may_transform_subjects_into_partitions(client: Client, name: str) -> None:
    await client.stream(name)
    for key in ("alice", "bob", "foo"):
        await client.stored(f"{name}.{key}", key.encode())
    transform = {"src": f"{name}.*", "dest": f"{name}p.{{{{partition(3,1)}}}}.{{{{wildcard(1)}}}}"}

    target = await sourcing(client, name, {"name": name, "subject_transforms": [transform]})

    await holds(client, target, 3)
    assert await client.subjects_of(target) == [
        f"{name}p.2.alice",
        f"{name}p.2.bob",
        f"{name}p.0.foo",
    ]


async def test_a_transform_without_a_destination_is_a_filter(client: Client, name: str) -> None:
    await client.stream(name)
    for subject in "abc":
        await client.stored(f"{name}.{subject}")
    transforms = [{"src": f"{name}.a", "dest": ""}, {"src": f"{name}.c", "dest": f"{name}x.c"}]

    target = await sourcing(client, name, {"name": name, "subject_transforms": transforms})

    await holds(client, target, 2)
    assert await client.subjects_of(target) == [f"{name}.a", f"{name}x.c"]


async def test_the_order_within_each_source_is_kept(client: Client, name: str) -> None:
    one, two = f"{name}ONE", f"{name}TWO"
    for stream in (one, two):
        await client.stream(stream)
        await client.fill(stream, 50)

    target = await sourcing(client, name, {"name": one}, {"name": two})

    await holds(client, target, 100)
    got = await read(client, target, 100)
    expected = [b"%d" % n for n in range(1, 51)]
    for stream in (one, two):
        assert [payload for subject, payload in got if subject == f"{stream}.a"] == expected


async def test_a_sourcing_stream_may_have_subjects_of_its_own(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 1)
    target = f"{name}SUM"
    await client.stream(target, sources=[{"name": name}])
    await holds(client, target, 1)

    assert await client.stored(f"{target}.own", b"own") == 2


async def test_info_shows_the_sources(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)
    target = await sourcing(client, name, {"name": name})
    await holds(client, target, 2)

    [source] = (await client.ok(f"STREAM.INFO.{target}"))["sources"]

    assert (source["name"], source["lag"]) == (name, 0)
    assert source["active"] >= 0


async def test_a_source_is_not_behind_before_its_first_message(client: Client, name: str) -> None:
    await client.stream(name)
    await client.fill(name, 2)

    target = f"{name}SUM"
    created = await client.ok(
        f"STREAM.CREATE.{target}", {"name": target, "sources": [{"name": name}]}
    )

    assert created["sources"] == [{"name": name, "lag": 0, "active": -1}]


REFUSED: dict[str, tuple[list[Json], int]] = {
    "the same source twice": ([{"name": "O"}, {"name": "O"}], 10140),
    "a filter and transforms": (
        [{"name": "O", "filter_subject": "a", "subject_transforms": [{"src": "b", "dest": ""}]}],
        10144,
    ),
    "overlapping transforms": (
        [
            {
                "name": "O",
                "subject_transforms": [{"src": "a.*", "dest": ""}, {"src": "a.b", "dest": ""}],
            }
        ],
        10147,
    ),
    "a transform to nowhere": (
        [{"name": "O", "subject_transforms": [{"src": "a.*", "dest": "{{wildcard(3)}}"}]}],
        10146,
    ),
    "a bad name": ([{"name": "a.b"}], 10141),
}


@pytest.mark.parametrize(("sources", "err_code"), REFUSED.values(), ids=REFUSED.keys())
async def test_create_refuses(
    client: Client, name: str, sources: list[Json], err_code: int
) -> None:
    error = await client.error(f"STREAM.CREATE.{name}", {"name": name, "sources": sources})

    assert error.err_code == err_code


async def test_a_source_that_comes_later_is_found(client: Client, name: str) -> None:
    target = await sourcing(client, name, {"name": name})
    await client.stream(name)
    await client.fill(name, 1)

    await holds(client, target, 1)
