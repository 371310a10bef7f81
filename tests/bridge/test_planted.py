"""The proof finds every planted difference and where it is, and nothing where there is none.

More than a thousand cases of either kind, each from its own seed.
"""

import copy
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from millstream_bridge import ConfigurationError, Record
from millstream_bridge.jetstream.api import StreamInfo
from millstream_bridge.jetstream.connection import Message
from millstream_bridge.jetstream.stream import GAPS
from millstream_bridge.model import TimestampType, Watermarks
from millstream_bridge.proof import returns
from millstream_bridge.proof.check import Check
from millstream_bridge.proof.decode import Decoder
from millstream_bridge.proof.parts import parts_of
from millstream_bridge.proof.seen import Seen
from millstream_bridge.proof.sides import Bounds, Part
from millstream_bridge.proof.values import Proof
from millstream_bridge.records.chunks import pieces
from millstream_bridge.records.headers import NatsHeaders
from millstream_bridge.records.mapping import Mapping, any_source
from millstream_bridge.records.origin import Return, marks
from millstream_bridge.records.poison import mark
from tests.bridge.moves import a_route
from tests.bridge.planted import (
    FOREIGN,
    MAPPING,
    PLANTS,
    MemorySides,
    Stored,
    message_of,
    some_kafka,
    stored_of,
)

CASES = 120
ALL = range(CASES)
SOME = range(CASES // 4)


async def proof_of(sides: MemorySides) -> Proof:
    return await Check(sides, MAPPING).full()


@pytest.mark.parametrize("kind", PLANTS)
async def test_a_planted_difference_is_found_where_it_is(kind: str) -> None:
    for seed in ALL:
        chance = random.Random(f"{kind} {seed}")
        kafka = some_kafka(chance)
        spoiled, partition, offset = PLANTS[kind](kafka, chance)

        proof = await proof_of(MemorySides(kafka, stored_of(spoiled, chance)))

        found = {p: it.difference for p, it in proof.partitions.items() if it.difference}
        assert list(found) == [partition], (kind, seed)
        assert found[partition].offset == offset, (kind, seed, found)
        assert not proof.equal


@pytest.mark.parametrize("batch", range(9))
async def test_where_nothing_is_planted_nothing_is_found(batch: int) -> None:
    for seed in ALL:
        chance = random.Random(f"clean {batch} {seed}")
        kafka = some_kafka(chance)

        proof = await proof_of(MemorySides(kafka, stored_of(kafka, chance)))

        assert proof.equal, (batch, seed, proof.difference)
        assert proof.records == len(kafka)


async def test_both_records_of_a_difference_are_at_hand() -> None:
    chance = random.Random(1)
    kafka = some_kafka(chance)
    spoiled, _, offset = PLANTS["flipped byte of the value"](kafka, chance)

    difference = (await proof_of(MemorySides(kafka, stored_of(spoiled, chance)))).difference

    assert difference is not None
    assert difference.kafka is not None
    assert difference.nats is not None
    assert (difference.kafka.offset, difference.nats.offset) == (offset, offset)
    assert difference.kafka.value != difference.nats.value
    assert difference.what == "different value"


def newest_of(records: list[Record], keeps: int) -> list[Record]:
    """What a stream has that keeps so many messages per subject."""
    kept: list[Record] = []
    seen: dict[str, int] = {}
    for record in reversed(records):
        subject = MAPPING.subject(record)
        seen[subject] = seen.get(subject, 0) + 1
        if seen[subject] <= keeps:
            kept.insert(0, record)
    return kept


@pytest.mark.parametrize("keeps", [1, 2])
async def test_a_stream_that_keeps_the_newest_is_equal_with_just_those(keeps: int) -> None:
    for seed in ALL:
        chance = random.Random(f"newest {keeps} {seed}")
        kafka = some_kafka(chance)
        kept = newest_of(kafka, keeps)
        limit = {"max_msgs_per_subject": keeps}

        proof = await proof_of(MemorySides(kafka, stored_of(kept, chance), limit))
        victim = chance.choice([it for it in kept if MAPPING.subject(it) != FOREIGN])
        without = [it for it in kept if it is not victim]
        spoiled = await proof_of(MemorySides(kafka, stored_of(without, chance), limit))

        assert proof.equal, (seed, proof.difference)
        assert spoiled.difference is not None, seed
        assert spoiled.difference.kafka_partition == victim.kafka_partition


async def test_a_record_that_changed_is_found_among_the_newest() -> None:
    for seed in ALL:
        chance = random.Random(f"changed among the newest {seed}")
        kafka = some_kafka(chance)
        spoiled, partition, offset = PLANTS["flipped byte of the value"](kafka, chance)
        kept = newest_of(spoiled, 1)
        is_kept = any((it.kafka_partition, it.offset) == (partition, offset) for it in kept)

        proof = await proof_of(
            MemorySides(kafka, stored_of(kept, chance), {"max_msgs_per_subject": 1})
        )

        assert proof.equal is not is_kept, seed
        if proof.difference is not None:
            assert (proof.difference.offset, proof.difference.what) == (offset, "different value")


async def test_a_record_that_only_the_stream_has_is_found_among_the_newest() -> None:
    found = 0
    for seed in ALL:
        chance = random.Random(f"only the stream {seed}")
        records = some_kafka(chance)
        subjects = Counter(map(MAPPING.subject, records))
        ends = {(p, at) for p, mark in MemorySides(records, []).marks.items() for at in mark}
        alone = [
            it
            for it in records
            if subjects[MAPPING.subject(it)] == 1
            and not {(it.kafka_partition, at) for at in (it.offset, it.offset + 1)} & ends
        ]
        if not alone:
            continue
        lost = chance.choice(alone)
        kafka = [it for it in records if it is not lost]
        stored = stored_of(newest_of(records, 1), chance)

        proof = await proof_of(MemorySides(kafka, stored, {"max_msgs_per_subject": 1}))

        assert proof.difference is not None, seed
        assert proof.difference.what == "the stream has a record that Kafka does not have"
        assert proof.difference.offset == lost.offset
        found += 1
    assert found > CASES // 10


@pytest.mark.parametrize("keeps", [1, 2])
async def test_what_a_native_message_pushed_out_is_not_missing(keeps: int) -> None:
    """It may have, if it came behind the record that was stored before the missing one."""
    limit = {"max_msgs_per_subject": keeps}
    for seed in SOME:
        chance = random.Random(f"native {keeps} {seed}")
        kafka = some_kafka(chance)
        kept = newest_of(kafka, keeps)
        subject = MAPPING.subject(chance.choice(kept))
        left = [(n, it) for n, it in enumerate(kept, 100) if MAPPING.subject(it) != subject]
        first_gone, *_ = (n for n, it in enumerate(kept, 100) if MAPPING.subject(it) == subject)
        partition = kept[first_gone - 100].kafka_partition
        stored = [(n, message_of(it, n)) for n, it in left]
        native = Message(subject, "", b"", b"native")
        before, after = ([(at + n, native) for n in range(keeps)] for at in (1, 1_000))

        behind = await proof_of(MemorySides(kafka, [*stored, *after], limit))
        too_few = await proof_of(MemorySides(kafka, [*stored, *after[1:]], limit))
        in_front = await proof_of(MemorySides(kafka, [*before, *stored], limit))

        assert behind.equal, (seed, behind.difference)
        assert too_few.equal is False, seed
        if any(it.kafka_partition == partition and n < first_gone for n, it in left):
            assert in_front.equal is False, seed


@pytest.mark.parametrize("keeps", [1, 2])
async def test_what_a_bridge_at_work_or_a_producer_pushes_out_meanwhile_is_not_missing(
    keeps: int,
) -> None:
    """Before the stream is read, while it is, and where what did so is pushed out, too."""
    limit = {"max_msgs_per_subject": keeps}
    pushed_out = 0
    for seed in ALL:
        chance = random.Random(f"at work {keeps} {seed}")
        kafka = some_kafka(chance)
        sides = MemorySides(kafka, [], limit, ends=dict.fromkeys((0, 1), Watermarks(0, 9_999)))
        for n, record in enumerate(kafka):
            sides.store(message_of(record, n))
        before = [*sides.stored]
        touched = set()
        for n, batches in enumerate(sorted(chance.choices(range(-3, 9), k=chance.randrange(40)))):
            record = chance.choice(kafka)._replace(offset=2_000 + n)
            native = Message(MAPPING.subject(record), "", b"", b"native")
            message = native if chance.random() < 0.3 else message_of(record, n)
            touched.add(message.subject)
            if batches < 0:
                sides.store(message)
            else:
                sides.stores.setdefault(batches, []).append(message)
        lost = chance.choice(before)
        spoiled = copy.deepcopy(sides)
        spoiled.stored = [it for it in sides.stored if it != lost]

        proof = await proof_of(sides)
        difference = (await proof_of(spoiled)).difference

        assert proof.equal, (seed, proof.difference)
        pushed_out += sum(it not in sides.stored for it in before)
        if lost[1].subject not in touched:
            assert difference is not None, seed
            assert difference.kafka is not None
            assert MAPPING.subject(difference.kafka) == lost[1].subject
    assert pushed_out > len(ALL)


async def test_a_record_that_is_stored_after_all_was_read_does_not_explain_itself() -> None:
    """Nor does the first difference go unseen behind those that are explained."""
    kafka = [Record(0, n, 0, TimestampType.CREATE, b"k%d" % n, b"v") for n in range(4)]
    stored = [(n, message_of(it, n)) for n, it in enumerate(kafka, 1)]
    first, *_, last = (message for _, message in stored)
    native = Message(first.subject, "", b"", b"native")
    sides = MemorySides(kafka, stored[:-1], {"max_msgs_per_subject": 1})
    sides.stores = {0: [native], 1: [native, last]}  # 1: when all is read but the first native one

    difference = (await proof_of(sides)).difference

    assert [it.subject for _, it in sides.stored[-2:]] == [first.subject, last.subject]
    assert difference is not None
    assert (difference.offset, difference.what) == (3, "the stream does not have this record")


async def test_what_an_expired_tombstone_pushed_out_is_not_missing() -> None:
    mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))
    limit = {"max_msgs_per_subject": 1}
    for seed in SOME:
        chance = random.Random(f"tombstone {seed}")
        kafka = some_kafka(chance)
        kept = newest_of(kafka, 1)
        stored = stored_of([it for it in kept if it.value is not None], chance)
        stored = [it for it in stored if b"Millstream-Source" in it[1].block]
        ends = {p: mark.high for p, mark in MemorySides(kafka, stored).marks.items()}
        lost = chance.choice([it for it in kept if it.value is not None])
        spoiled = stored_of([it for it in kept if it.value is not None and it is not lost], chance)

        clean = await Check(MemorySides(kafka, stored, limit, reached_to=ends), mapping).full()
        found = await Check(MemorySides(kafka, spoiled, limit, reached_to=ends), mapping).full()

        assert clean.equal, (seed, clean.difference)
        assert found.difference is not None
        assert found.difference.offset <= lost.offset


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nMillstream-Large: chunks\r\n\r\n",
        b"NATS/1.0\r\nnote: no Millstream-Large\r\n\r\n",
        b"NATS/1.0\r\nMillstream-Poison: parked it\r\n\r\n",
        b"NATS/1.0\r\nMillstream-Source: flights\r\n\r\n",
    ],
)
@pytest.mark.parametrize("place", ["flights.0.N1", "flights.0.\udcff", "flights._poison.0.7"])
async def test_a_message_that_looks_like_a_bridges_and_is_none_is_no_difference(
    block: bytes, place: str
) -> None:
    """Of any bytes: a server stores what it is given."""
    kafka = some_kafka(random.Random(3))
    stored = stored_of(kafka, random.Random(3))
    sides = MemorySides(kafka, [*stored, (len(stored) + 1, Message(place, "", block, b""))])

    proof = await proof_of(sides)

    assert proof.equal, proof.difference


@pytest.mark.parametrize("limit", [{}, {"max_msgs_per_subject": 100}])
async def test_what_the_stream_has_behind_kafkas_end_is_a_difference(limit: dict[str, int]) -> None:
    """After an unclean election, or where the topic was made anew: not what was produced since."""
    for seed in SOME:
        chance = random.Random(f"end {seed}")
        kafka = some_kafka(chance)
        stored = stored_of(kafka, chance)
        cut = kafka[: -chance.randrange(1, 20)]
        lost = kafka[-1]

        proof = await proof_of(MemorySides(cut, stored, limit))
        whole = MemorySides(kafka, stored)
        grown = await proof_of(MemorySides(cut, stored, limit, ends=whole.marks))
        alone = [it for it in cut if it.kafka_partition == 0]
        fewer = await proof_of(MemorySides(alone, stored, limit))

        assert grown.equal, (seed, grown.difference)
        difference = proof.partitions[lost.kafka_partition].difference
        assert difference is not None, seed
        assert difference.offset == lost.offset
        assert "the stream has a record that Kafka does not have" in difference.what
        assert fewer.partitions[1].difference is not None


async def test_online_a_log_that_ends_before_what_a_round_has_compared_is_a_difference() -> None:
    """As after an unclean election, or where the topic was made anew."""
    for seed in SOME:
        chance = random.Random(f"fallen {seed}")
        kafka = some_kafka(chance)
        stored = stored_of(kafka, chance)
        whole, seen = MemorySides(kafka, stored), Seen()
        fallen = MemorySides(kafka[: -chance.randrange(1, 20)], stored)
        alone = MemorySides([it for it in kafka if it.kafka_partition == 0], stored)

        one = await Check(whole, MAPPING).round(ends_of(whole), seen)
        still = await Check(whole, MAPPING).round(ends_of(whole), copy.deepcopy(seen))
        other = await Check(fallen, MAPPING).round(ends_of(fallen), copy.deepcopy(seen))
        fewer = await Check(alone, MAPPING).round(ends_of(alone), seen)

        assert (one.equal, still.equal) == (True, True), (seed, one, still)
        p = kafka[-1].kafka_partition
        difference = other.partitions[p].difference
        assert difference is not None, seed
        assert difference.offset == fallen.marks[p].high
        assert fewer.partitions[1].difference is not None


def ends_of(sides: MemorySides) -> dict[int, int]:
    return {p: mark.high for p, mark in sides.marks.items()}


async def test_online_a_record_of_an_earlier_round_that_is_stored_again_is_a_difference() -> None:
    for seed in SOME:
        chance = random.Random(f"again {seed}")
        kafka = some_kafka(chance)
        stored = stored_of(kafka, chance)
        at = chance.randrange(len(stored) // 2, len(stored))
        sides = MemorySides(kafka, stored[:at])
        moved = {p: first_left(stored[at:], p) for p in (0, 1)}
        goal = {p: min(moved[p], mark.high) for p, mark in sides.marks.items()}
        seen, rest = Seen(), {p: mark.high for p, mark in sides.marks.items()}
        earlier = chance.choice([it for it in stored[:at] if b"Millstream-Source" in it[1].block])

        one = await Check(sides, MAPPING).round(goal, seen)
        also = copy.deepcopy(seen)
        other = await Check(MemorySides(kafka, stored), MAPPING).round(rest, seen)
        again = [*stored, (len(stored) + 1, earlier[1])]
        repeated = await Check(MemorySides(kafka, again), MAPPING).round(rest, also)

        assert one.equal, (seed, one.difference)
        assert other.equal, (seed, other.difference)
        assert repeated.equal is False, seed


async def test_online_what_kafka_removed_of_a_new_partition_is_not_stored_again() -> None:
    """Its log start moved before the first round that knew of it; from then on nothing is new."""
    records = [
        Record(p, n, 0, TimestampType.CREATE, b"k%d" % n, b"v") for p in (0, 1) for n in range(6)
    ]
    stored = [(n, message_of(it, n)) for n, it in enumerate(records, 1)]
    again = [*stored, (13, stored[7][1])]
    left = [it for it in records if it.kafka_partition == 0 or it.offset >= 3]
    seen = Seen()

    one = await Check(MemorySides(records[:6], stored[:6]), MAPPING).round({0: 6}, seen)
    grown = await Check(MemorySides(left, stored), MAPPING).round({0: 6, 1: 6}, seen)
    repeated = await Check(MemorySides(left, again), MAPPING).round({0: 6, 1: 6}, seen)

    assert (one.equal, one.records) == (True, 6)
    assert (grown.equal, grown.records) == (True, 3), grown.difference
    assert repeated.difference is not None
    assert (repeated.difference.offset, repeated.difference.what) == (1, "it is stored again")


def plain_records(offsets: range, partitions: int = 1) -> list[Record]:
    return [
        Record(p, n, 0, TimestampType.CREATE, b"k%d" % n, b"v")
        for p in range(partitions)
        for n in offsets
    ]


def numbered(records: list[Record]) -> list[Stored]:
    return [(n, message_of(it, n)) for n, it in enumerate(records, 1)]


async def test_online_a_partition_that_came_after_the_goal_waits_for_the_next_round() -> None:
    records = plain_records(range(6), partitions=2)
    seen = Seen()

    one = await Check(MemorySides(records, numbered(records[:9])), MAPPING).round({0: 6}, seen)
    two = await Check(MemorySides(records, numbered(records)), MAPPING).round({0: 6, 1: 6}, seen)
    lost = [*numbered(records)[:7], *numbered(records)[8:]]
    three = await Check(MemorySides(records, lost), MAPPING).round({0: 6, 1: 6}, Seen())

    assert (one.equal, one.records) == (True, 6), one.difference
    assert (two.equal, two.records) == (True, 6), two.difference
    assert three.partitions[1].difference is not None


async def test_online_what_kafka_removed_before_a_round_is_older_once() -> None:
    records = plain_records(range(9))
    seen = Seen()

    one = await Check(MemorySides(records[1:4], numbered(records[:4])), MAPPING).round({0: 4}, seen)
    two = await Check(MemorySides(records[6:], numbered(records)), MAPPING).round({0: 9}, seen)
    again = [*numbered(records), (10, numbered(records)[2][1])]
    three = await Check(MemorySides(records[6:], again), MAPPING).round({0: 9}, seen)

    assert (one.equal, one.records, one.older) == (True, 3, 1)
    assert (two.equal, two.records, two.older) == (True, 3, 2), two.difference
    assert three.difference is not None
    assert (three.difference.offset, three.difference.what) == (2, "it is stored again")


@pytest.mark.parametrize("keeps", [None, 100])
async def test_a_hole_where_kafka_begins_is_not_taken_for_removed_where_older_ones_are_there(
    keeps: int | None,
) -> None:
    records = plain_records(range(9))
    stored = [it for it in numbered(records)[1:] if it[0] != 5]
    config = {"max_age": 10**9, **({} if keeps is None else {"max_msgs_per_subject": keeps})}

    proof = await proof_of(MemorySides(records[4:], stored, config))
    sides = MemorySides(records[4:], stored, config)
    sample = proof if keeps else await Check(sides, MAPPING).sample(0, random.Random(1))

    for it in (proof, sample):
        assert it.difference is not None
        assert (it.difference.offset, it.apart.expired) == (4, 0)


async def test_online_a_hole_where_a_round_begins_is_not_taken_for_removed() -> None:
    records = plain_records(range(9))
    config, seen = {"max_age": 10**9}, Seen()
    stored = [it for it in numbered(records)[1:] if it[0] != 5]

    one = await Check(MemorySides(records[:4], stored[:3], config), MAPPING).round({0: 4}, seen)
    two = await Check(MemorySides(records, stored, config), MAPPING).round({0: 9}, seen)

    assert (one.equal, one.apart.expired) == (True, 1)
    assert two.difference is not None
    assert (two.difference.offset, two.apart.expired) == (4, 0)


@pytest.mark.parametrize("keeps", [None, 100])
@pytest.mark.parametrize(
    ("gone", "is_equal"),
    [
        ([1], True),
        ([1, 2], True),
        ([1, 2, 3, 4], True),
        ([2], False),
        ([1, 6], False),
        (["while it is read"], True),
        (["reference"], False),
    ],
)
async def test_limits_remove_the_pieces_of_a_large_record_before_it(
    gone: list[Any], is_equal: bool, keeps: int | None
) -> None:
    """Sequences 1 to 4 are a partition's first record, 5 to 8 its second."""
    mapping = Mapping(a_route("flights", shared=True, large="chunks"))
    records = [
        Record(0, n, 0, TimestampType.CREATE, b"k", bytes(range(250)) * 10, ()) for n in range(3)
    ]
    messages = [
        Message(it.subject, "", f"NATS/1.0\r\n{it.lines}\r\n".encode(), it.payload)
        for record in records
        for it in pieces(mapping, record, 2_024) or []
    ]
    config = {"max_age": 10**9, **({} if keeps is None else {"max_msgs_per_subject": keeps})}
    stored = [it for it in enumerate(messages, 1) if it[0] not in gone]
    others = [(seq, Message("others", "", b"", b"")) for seq in (20, 22)]

    class Sides(MemorySides):
        async def whole(self, *arguments: Any) -> tuple[NatsHeaders, bytes]:
            if "while it is read" in gone:
                self.stored = [it for it in self.stored if it[0] > 1]
            return await super().whole(*arguments)

    if gone == ["reference"]:
        broken = stored[3][1].block.replace(b"Large: chunks 3", b"Large: chunks x")
        stored[3] = 4, stored[3][1]._replace(block=broken)
    sides = Sides(records, [*stored, *others], config, reached_to={0: 3}, mapping=mapping)

    proof = await Check(sides, mapping).full()

    assert proof.equal is is_equal, proof.difference
    assert proof.apart.expired == (is_equal or 1 in gone)
    assert proof.apart.older == 0


async def test_a_large_record_whose_pieces_are_removed_has_its_place_still() -> None:
    mapping = Mapping(a_route("flights", shared=True, large="chunks"))
    record = Record(0, 0, 0, TimestampType.CREATE, b"k", bytes(range(250)) * 10, ())
    *_, head = [
        Message(it.subject, "", f"NATS/1.0\r\n{it.lines}\r\n".encode(), it.payload)
        for it in pieces(mapping, record, 2_024) or []
    ]
    stored: list[Stored] = [(4, head), (20, Message("others", "", b"", b""))]
    config = {"max_age": 10**9}
    once = MemorySides([record], stored, config, reached_to={0: 1}, mapping=mapping)
    again = MemorySides([record], [*stored, (21, head)], config, reached_to={0: 1}, mapping=mapping)

    assert (await Check(once, mapping).full()).equal
    difference = (await Check(again, mapping).full()).difference
    assert difference is not None
    assert (difference.seq, difference.what) == (21, "it is stored again")


@pytest.mark.parametrize("keeps", [None, 100])
async def test_no_more_records_than_messages_that_are_gone_have_been_removed(
    keeps: int | None,
) -> None:
    """Where the stream begins, a hole is told from what its limits removed only by the number."""
    config = {"max_age": 10**9, **({} if keeps is None else {"max_msgs_per_subject": keeps})}
    for seed in ALL:
        chance = random.Random(f"gone {seed}")
        kafka = some_kafka(chance)
        strays = chance.randrange(3)
        places = [*kafka, *[None] * strays]
        chance.shuffle(places)
        order = iter(kafka)
        moved = [None if it is None else next(order) for it in places]
        removed = chance.randrange(len(moved) // 2)
        lost = next((it for it in moved[removed:] if it is not None), kafka[-1])
        messages = [
            Message("flights.9.x", "", b"", b"") if it is None else message_of(it, 1)
            for it in moved
        ]
        whole = list(enumerate(messages, 1))[removed:]
        holey = list(enumerate([it for it in messages if it != message_of(lost, 1)], 1))[removed:]
        records_gone = sum(it is not None for it in moved[:removed])
        reached_to = {p: it.high for p, it in MemorySides(kafka, []).marks.items()}

        clean = await proof_of(MemorySides(kafka, whole, config, reached_to=reached_to))
        found = await proof_of(MemorySides(kafka, holey, config, reached_to=reached_to))

        assert clean.equal, (seed, clean.difference)
        assert records_gone <= clean.apart.expired <= removed
        assert sum(it.expired for it in clean.partitions.values()) == clean.apart.expired
        if removed == records_gone:
            assert found.difference is not None, seed
            assert found.difference.kafka is not None
            assert "messages were ever removed from it" in found.difference.what or removed == 0


async def test_a_dense_streams_sequences_are_no_offsets_any_more_where_it_says_so() -> None:
    chance = random.Random(8)
    kafka = some_kafka(chance, partitions=1)
    stored = [(n, message_of(it, n)) for n, it in enumerate(kafka, 1)]
    mapping = Mapping(a_route("flights", mode="dense", stream="FLIGHTS-{partition}"))
    noted = {"metadata": {GAPS: "yes"}}

    proof = await Check(MemorySides(kafka, stored, noted), mapping).full()
    plain = await Check(MemorySides(kafka, stored), mapping).full()

    assert proof.equal, proof.difference
    assert plain.difference is not None
    assert "its sequence is not offset + 1" in plain.difference.what


async def test_what_kafka_compacted_since_is_counted_and_what_it_has_must_be_there() -> None:
    for seed in ALL:
        chance = random.Random(f"compacted {seed}")
        records = some_kafka(chance)
        kafka = [*newest_of(records, 1)]
        lows = {p: min(it.offset for it in records if it.kafka_partition == p) for p in (0, 1)}
        kafka = [it for it in records if it in kafka or it.offset == lows[it.kafka_partition]]

        proof = await proof_of(MemorySides(kafka, stored_of(records, chance), is_compact=True))
        plain = await proof_of(MemorySides(kafka, stored_of(records, chance)))
        lost = chance.choice(kafka[2:])
        stored = stored_of([it for it in records if it is not lost], chance)
        spoiled = await proof_of(MemorySides(kafka, stored, is_compact=True))

        assert proof.equal, (seed, proof.difference)
        assert proof.older > 0
        assert plain.equal is False
        assert spoiled.difference is not None, seed
        assert spoiled.difference.offset == lost.offset


def compacted(records: list[Record], chance: random.Random) -> list[Record]:
    """What Kafka's cleaner leaves of a closed log, but for each partition's ends."""
    newest = {(it.kafka_partition, it.key): it for it in records}
    of_partition: dict[int, list[Record]] = {}
    for it in records:
        of_partition.setdefault(it.kafka_partition, []).append(it)
    ends = [end for it in of_partition.values() for end in (it[0], it[-1])]
    return [
        it
        for it in records
        if it in ends
        or (
            it.key is not None
            and newest[it.kafka_partition, it.key] is it
            and (it.value is not None or chance.random() < 0.5)
        )
    ]


async def test_a_record_that_compaction_would_not_have_removed_is_found() -> None:
    """Of what only the stream has: the newest of its key, and no tombstone behind it."""
    found = 0
    for seed in ALL:
        chance = random.Random(f"invented {seed}")
        records = some_kafka(chance, each=60)
        kafka = compacted(records, chance)
        limit = chance.choice([{}, {"max_msgs_per_subject": 100}])
        lost = chance.choice([it for it in records if it.value is not None and it not in kafka])
        key = chance.choice([b"N%d" % chance.randrange(9), b"unheard", lost.key])
        changed = lost._replace(key=key, value=chance.choice([b"", b"v"]))
        if MAPPING.subject(changed) == FOREIGN:
            continue  # a native tombstone may be behind it
        spoiled = [changed if it is lost else it for it in records]
        behind = [
            it
            for it in spoiled
            if it.kafka_partition == lost.kafka_partition
            and it.key == key
            and it.offset > lost.offset
        ]
        explained = (
            key is None
            or any(it in kafka for it in behind)
            or (any(it.value is None for it in behind))
        )

        clean = await proof_of(MemorySides(kafka, stored_of(records, chance), limit, True))
        proof = await proof_of(MemorySides(kafka, stored_of(spoiled, chance), limit, True))

        assert clean.equal, (seed, clean.difference)
        assert clean.older == len(records) - len(kafka)
        assert proof.equal is explained, (seed, proof.difference)
        if proof.difference is not None:
            found += 1
            assert (proof.difference.kafka_partition, proof.difference.offset) == lost[:2]
            assert "nor a newer one of its key" in proof.difference.what
    assert found > CASES // 4


@pytest.mark.parametrize(
    ("newer", "is_equal"),
    [
        ([], False),
        ([Record(0, 6, 0, TimestampType.CREATE, b"other", b"v")], False),
        ([Record(0, 6, 0, TimestampType.CREATE, b"k1", b"v")], True),
        ([Record(1, 6, 0, TimestampType.CREATE, b"k1", b"v")], False),
        (
            [
                Record(
                    0,
                    6,
                    0,
                    TimestampType.CREATE,
                    b"k1",
                    b"v",
                    marks("flights", Return("FLIGHTS", 99)),
                )
            ],
            True,
        ),
    ],
)
async def test_a_record_may_be_compacted_for_one_that_came_since(
    newer: list[Record], is_equal: bool
) -> None:
    """Also for one that came from NATS."""
    records = plain_records(range(6))
    kafka = [*records[:1], *records[2:]]

    class Grown(MemorySides):
        async def records(self, bounds: Bounds) -> AsyncIterator[Sequence[Record]]:
            self.kafka = [*kafka, *newer]
            async for it in super().records(bounds):
                yield it

    sides = Grown(kafka, numbered(records), is_compact=True)
    sides.ends = dict.fromkeys((0, 1), Watermarks(0, 7))

    proof = await proof_of(sides)

    assert proof.equal is is_equal, proof.difference


@pytest.mark.parametrize(("keeps", "is_equal"), [(1, True), (2, False)])
async def test_what_pushed_a_record_out_may_be_compacted_since(keeps: int, is_equal: bool) -> None:
    """Where records of several keys have one subject."""
    mapping = Mapping(a_route("flights", subject="flights.{partition}"))
    older = Record(0, 0, 0, TimestampType.CREATE, b"a", b"v", ())
    tombstone = Record(0, 1, 0, TimestampType.CREATE, b"b", None, ())
    block = f"NATS/1.0\r\n{mapping.header_lines(tombstone)}\r\n".encode()
    stored = [(2, Message(mapping.subject(tombstone), "", block, b""))]

    class Sides(MemorySides):
        @property
        def marks(self) -> Bounds:
            return {0: Watermarks(0, 2)}

    limit = {"max_msgs_per_subject": keeps}
    proof = await Check(
        Sides([older], stored, limit, is_compact=True, mapping=mapping), mapping
    ).full()

    assert proof.equal is is_equal, proof.difference


@pytest.mark.parametrize(
    ("behind", "is_equal"),
    [
        ("nothing", False),
        ("a mark", True),
        ("a mark of a record that is there", False),
        ("a native message", True),
        ("a native message of another subject", False),
        ("a tombstone that expired", True),
        ("a tombstone that would have expired before", False),
    ],
)
async def test_a_tombstone_that_the_stream_does_not_have_may_explain_what_is_before_it(
    behind: str, is_equal: bool
) -> None:
    """Kafka has removed 2, the newest of its key that is stored, and 3; the stream never had 3."""
    records = plain_records(range(6))
    kafka = [*records[:2], *records[4:]]
    stored = numbered(records)
    mapping, reached_to = MAPPING, {0: 6}
    there: list[Stored] = []
    if behind.startswith("a mark"):
        of = records[1] if "is there" in behind else records[3]
        piece = mark(MAPPING, of, "skipped", "")
        block = f"NATS/1.0\r\n{piece.lines}\r\n".encode()
        there = [(4, Message(piece.subject, "", block, b""))]
    if behind.startswith("a native"):
        of = records[5] if "another" in behind else records[2]
        there = [(4, Message(MAPPING.subject(of), "", b"", b""))]
    if behind.startswith("a tombstone"):
        mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))
        reached_to = {0: 3 if "before" in behind else 6}
    stored = [*stored[:3], *there, *stored[4:]]
    sides = MemorySides(kafka, stored, is_compact=True, reached_to=reached_to)

    proof = await Check(sides, mapping).full()

    assert proof.equal is is_equal, proof.difference
    if proof.difference is not None and "there" not in behind:
        assert (proof.difference.offset, proof.difference.seq) == (2, 3)


async def test_what_a_streams_own_limits_removed_is_counted() -> None:
    chance = random.Random(3)
    kafka = some_kafka(chance)
    stored = stored_of(kafka, chance)[20:]

    limits = {"max_age": 1_000_000_000}
    limited = await proof_of(MemorySides(kafka, stored, limits))
    sample = await Check(MemorySides(kafka, stored, limits), MAPPING).sample(1, chance)
    unlimited = await proof_of(MemorySides(kafka, stored))

    assert (limited.equal, sample.equal) == (True, True), sample.difference
    assert limited.apart.expired == sample.apart.expired > 0
    assert unlimited.difference is not None
    assert unlimited.difference.what == "the stream does not have this record"


@pytest.mark.parametrize(("reached_to", "is_equal"), [(None, False), (1_000, False), (9_999, True)])
async def test_of_a_partition_nothing_is_left_of_all_that_was_stored_is_counted_and_no_more(
    reached_to: int | None, is_equal: bool
) -> None:
    chance = random.Random(4)
    kafka = some_kafka(chance)
    stored = [it for it in stored_of(kafka, chance) if not it[1].subject.startswith("flights.0")][
        5:
    ]
    sides = MemorySides(kafka, stored, {"max_age": 1_000_000_000})
    sides.reached_to = {} if reached_to is None else {0: reached_to}

    proof = await proof_of(sides)

    assert proof.equal is is_equal
    assert proof.partitions[1].difference is None
    missing = proof.partitions[0].difference
    assert (missing is None) is is_equal
    if missing is not None:
        assert missing.what == "the stream does not have this record"
        assert missing.offset >= (reached_to or 0)


def first_left(stored: list[Stored], partition: int) -> int:
    """The offset of a partition's first record in the stream; far off where there is none."""
    sources = (any_source(Decoder.lines(message.block)) for _, message in stored)
    offsets = (it.offset for it in sources if it is not None and it.kafka_partition == partition)
    return next(offsets, 1 << 60)


@pytest.mark.parametrize("keeps", [None, 100])
@pytest.mark.parametrize("kind", ["nothing", *PLANTS])
async def test_what_is_removed_while_it_is_read_is_told_from_what_is_not_there(
    kind: str, keeps: int | None
) -> None:
    """Also where the stream comes to an age at which it removes messages just then."""
    config = {"max_age": 10**9, **({} if keeps is None else {"max_msgs_per_subject": keeps})}
    blamed = expired = 0
    for seed in SOME:
        chance = random.Random(f"{kind} {seed}")
        kafka = some_kafka(chance)
        spoiled, partition, offset = kafka, 0, 0
        if kind != "nothing":
            spoiled, partition, offset = PLANTS[kind](kafka, chance)
        stored = stored_of(spoiled, chance)
        removes = chance.randrange(3), chance.randrange(1, len(stored))
        is_left = kind != "nothing" and first_left(stored[removes[1] :], partition) < offset
        sides = MemorySides(kafka, stored, config, age_s=chance.choice([0.9, 1.1]), removes=removes)
        sides.reached_to = {p: mark.high for p, mark in sides.marks.items()}

        if keeps is None and kind not in ("doubled", "swapped", "invented") and seed % 2:
            proof = await Check(sides, MAPPING).sample(0, chance)
        else:
            proof = await proof_of(sides)

        if kind == "nothing":
            assert proof.equal, (seed, proof.difference)
        if is_left:
            difference = proof.partitions[partition].difference
            assert difference is not None, seed
            assert difference.offset == offset, (seed, difference)
        blamed += is_left
        expired += proof.apart.expired
    assert expired > len(SOME)
    assert kind == "nothing" or blamed > len(SOME) // 8


@pytest.mark.parametrize("keeps", [None, 100])
async def test_what_is_stored_during_a_proof_behind_a_removed_partition_is_not_taken_for_removed(
    keeps: int | None,
) -> None:
    chance = random.Random(4)
    kafka = some_kafka(chance)
    stored = [it for it in stored_of(kafka, chance) if not it[1].subject.startswith("flights.0")]
    config = {"max_age": 10**9, **({} if keeps is None else {"max_msgs_per_subject": keeps})}
    last = [it for it in kafka if it.kafka_partition == 0][-1].offset
    sides = MemorySides(kafka, stored, config, reached_to={0: last})
    sides.moves_on = {0: last + 1}

    difference = (await proof_of(sides)).difference

    assert difference is not None
    assert (difference.kafka_partition, difference.offset) == (0, last)
    assert difference.what == "the stream does not have this record"


@pytest.mark.parametrize(
    ("config", "first_seq", "age_s", "expires"),
    [
        ({}, 20, 100.0, False),
        ({"max_age": 5_000_000_000}, 20, 100.0, True),
        ({"max_age": 5_000_000_000}, 20, 4.0, False),  # it is younger than that
        ({"max_age": 5_000_000_000}, 1, 100.0, True),  # its first message may be a checkpoint
        ({"max_bytes": 9}, 1, 100.0, False),  # its first message is there
        ({"max_bytes": 9}, 20, 1.0, True),
        ({"max_msgs": 9, "discard": "new"}, 20, 1.0, False),
        ({"max_msgs": 9, "discard": "new", "max_age": 5_000_000_000}, 20, 100.0, True),
        ({"max_bytes": 9, "first_seq": 20}, 20, 1.0, False),
        ({"max_bytes": 9, "first_seq": 20}, 21, 1.0, True),
    ],
)
def test_limits_may_have_removed_the_oldest_or_cannot_have(
    config: dict[str, Any], first_seq: int, age_s: float, expires: bool
) -> None:
    info = StreamInfo(config, first_seq, 99, age_s)

    assert Part(stream="S", filter="s.>", partitions=[0], info=info).expires is expires


def back_from(message: Message, seq: int, partition: int, offset: int) -> Record:
    """What the way back makes of a plain native message that was stored at ``seq`` milliseconds."""
    key = message.subject.rpartition(".")[2].encode()
    own = tuple((name, value.encode()) for name, value in Decoder.lines(message.block))
    headers = (*marks(MAPPING.route.name, Return("FLIGHTS", seq)), *own)
    return Record(partition, offset, seq, TimestampType.CREATE, key, message.payload, headers)


def with_natives(
    chance: random.Random, config: dict[str, Any], each: int = 30
) -> tuple[MemorySides, list[Record]]:
    """Two sides to which native messages have come, and the records that these are in Kafka."""
    stored: list[Stored] = []
    kafka: list[Record] = []
    back: list[Record] = []
    offsets = [chance.randrange(960, 1_000) for _ in range(2)]
    own = iter(some_kafka(chance, each=each))
    waiting: list[tuple[Message, int]] = []
    for seq in range(1, 2 * each + 1):
        p = chance.randrange(2)
        offsets[p] += 1 + (chance.random() < 0.1)
        if chance.random() < 0.5:
            kafka.append(next(own)._replace(kafka_partition=p, offset=offsets[p]))
            stored.append((seq, message_of(kafka[-1], seq)))
            continue
        block = chance.choice([b"", b"NATS/1.0\r\nNats-Msg-Id: a\r\ntrace: 1\r\n\r\n"])
        message = Message(f"flights.{p}.n{seq % 9}", "", block, b"native %d" % seq)
        stored.append((seq, message))
        waiting.append((message, seq))
        while waiting and chance.random() < 0.7:
            native, at = waiting.pop(0)
            of = int(native.subject.split(".")[1])
            offsets[of] += 1
            back.append(back_from(native, at, of, offsets[of]))
            kafka.append(back[-1])
    sides = MemorySides(kafka, stored, config)
    sides.stored_ns = {seq: seq * 10**6 + 123 for seq, _ in stored}
    return sides, back


LIMITS: list[dict[str, int]] = [{}, {"max_msgs_per_subject": 1_000}]


async def all_proofs(sides: MemorySides, chance: random.Random) -> list[Proof]:
    """In full, of a sample, and of two rounds put together."""
    proofs = [await proof_of(sides)]
    if not sides.config.get("max_msgs_per_subject"):
        proofs.append(await Check(sides, MAPPING).sample(0, chance))
        seen = Seen()
        for share in (2, 1):
            goal = {p: it.low + (it.high - it.low) // share for p, it in sides.marks.items()}
            proofs.append(await Check(sides, MAPPING).round(goal, seen))
        if not proofs[-2].equal:
            proofs.pop()
        elif proofs[-1].mode == "online":
            proofs[-1].apart.returned += proofs[-2].apart.returned
            proofs[-1].apart.unpaired += proofs[-2].apart.unpaired
            proofs.pop(-2)
    return proofs


@pytest.mark.parametrize("config", LIMITS)
async def test_records_that_came_from_nats_are_their_messages_and_counted(
    config: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returns, "_RECORDS_MAX", 5)
    for seed in SOME:
        chance = random.Random(f"natives {seed}")
        sides, back = with_natives(chance, config)

        for proof in await all_proofs(sides, chance):
            assert proof.equal, (seed, proof.difference)
            assert (proof.apart.returned, proof.apart.unpaired) == (len(back), 0)


@pytest.mark.parametrize("config", LIMITS)
async def test_a_record_that_came_back_as_another_is_a_difference(config: dict[str, int]) -> None:
    kinds = [it for it in PLANTS if it.startswith(("flipped", "changed header", "changed time"))]
    planted = 0
    for seed in SOME:
        chance = random.Random(f"another {seed}")
        sides, back = with_natives(chance, config)
        kind = chance.choice([*kinds, "another seq", "another partition", "another's mark"])
        victim = chance.choice(back)
        at = sides.kafka.index(victim)
        if kind in PLANTS:
            bare = victim._replace(headers=victim.headers[2:])
            [changed], _, _ = PLANTS[kind]([bare], chance)
            changed = changed._replace(headers=victim.headers[:2] + changed.headers)
        else:
            seq = int((victim.headers[1][1] or b"").split()[1])
            other = {"another seq": 10_000, "another's mark": seq - 1, "another partition": seq}
            headers = (*marks("flights", Return("FLIGHTS", other[kind])), *victim.headers[2:])
            changed = victim._replace(headers=headers)
        if kind == "another partition":
            number = int(victim.headers[1][1].split()[1])  # type: ignore[union-attr]
            message = sides.stored[number - 1][1]
            moved = message.subject.replace(".0.", ".2.").replace(".1.", ".2.")
            sides.stored[number - 1] = number, message._replace(subject=moved)
        if changed.timestamp_type is TimestampType.LOG_APPEND:
            continue
        sides.kafka = [*sides.kafka[:at], changed, *sides.kafka[at + 1 :]]

        for proof in await all_proofs(sides, chance):
            difference = proof.partitions[victim.kafka_partition].difference
            assert difference is not None, (seed, kind)
            assert difference.offset == victim.offset or kind == "another seq", (seed, kind)
            assert "came back" in difference.what or "come back" in difference.what
        planted += 1
    assert planted > len(SOME) // 2


async def test_the_time_of_a_returned_record_is_kafkas_where_the_topic_says_so() -> None:
    sides, back = with_natives(random.Random(3), {})
    kind = TimestampType.LOG_APPEND
    sides.kafka = [
        it._replace(timestamp_ms=7, timestamp_type=kind) if it in back else it for it in sides.kafka
    ]

    proof = await proof_of(sides)

    assert proof.equal, proof.difference


async def test_returned_records_whose_messages_are_gone_are_counted() -> None:
    """Removed by limits, pushed out, deleted; where no message ever went, they never were any."""
    for seed in SOME:
        chance = random.Random(f"natives gone {seed}")
        sides, back = with_natives(chance, {})
        own = [it for it in sides.stored if b"Millstream-Source" in it[1].block]
        lost = chance.sample([it for it in sides.stored[:-1] if it not in own], 5)
        gone = {seq for seq, _ in lost}
        found = sum(int((it.headers[1][1] or b"").split()[1]) in gone for it in back)
        sides.stored = [it for it in sides.stored if it not in lost]
        others = [(seq, Message("others", "", b"", b"")) for seq in gone]
        never = MemorySides(sides.kafka, sorted([*sides.stored, *others], key=lambda it: it[0]))
        never.stored_ns = sides.stored_ns

        proof = await proof_of(sides)
        spoiled = await proof_of(never)

        assert proof.equal, (seed, proof.difference)
        assert (proof.apart.returned, proof.apart.unpaired) == (len(back), found)
        assert (spoiled.equal, spoiled.apart.unpaired) == (found == 0, 0), seed


@pytest.mark.parametrize("config", LIMITS)
async def test_a_record_that_was_returned_is_in_kafka_once_and_in_its_order(
    config: dict[str, int],
) -> None:
    """A consumer that writes what it read, with its headers, makes records nobody moves."""
    for seed in SOME:
        chance = random.Random(f"returned twice {seed}")
        sides, back = with_natives(chance, config)
        one = chance.choice(back)
        p, end = one.kafka_partition, sides.marks[one.kafka_partition].high
        sides.kafka = [*sides.kafka, one._replace(offset=end)]

        for proof in await all_proofs(sides, chance):
            difference = proof.partitions[p].difference
            assert difference is not None, seed
            assert (difference.offset, difference.kafka) == (end, sides.kafka[-1])
            assert "written again by somebody" in difference.what


@pytest.mark.parametrize("again", [False, True])
async def test_returned_records_of_another_stream_than_before_begin_anew(again: bool) -> None:
    sides, back = with_natives(random.Random(6), {})
    p = back[0].kafka_partition
    first, *_ = [n for n, it in enumerate(sides.kafka) if it.kafka_partition == p]
    old = [
        Record(
            p, n, 0, TimestampType.CREATE, b"k", b"v", marks("flights", Return("OLD", 500 + seq))
        )
        for n, seq in enumerate([0, 0 if again else 1])
    ]
    sides.kafka = [*sides.kafka[:first], *old, *sides.kafka[first:]]

    for proof in await all_proofs(sides, random.Random(6)):
        assert proof.equal is not again, proof.difference
        assert proof.apart.unpaired == 2 - again


async def test_tombstones_may_expire_where_the_route_says_so() -> None:
    chance = random.Random(5)
    kafka = some_kafka(chance)
    stored = stored_of([it for it in kafka if it.value is not None], chance)
    mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))

    ends = {p: mark.high for p, mark in MemorySides(kafka, stored).marks.items()}

    may = await Check(MemorySides(kafka, stored, reached_to=ends), mapping).full()
    may_not = await proof_of(MemorySides(kafka, stored, reached_to=ends))
    too_young = await Check(MemorySides(kafka, stored, reached_to=ends, age_s=59.0), mapping).full()

    assert may.equal
    assert may.apart.expired == sum(it.value is None for it in kafka)
    assert (may_not.equal, too_young.equal) == (False, False)


async def test_tombstones_that_were_not_stored_yet_have_not_expired() -> None:
    chance = random.Random(5)
    kafka = some_kafka(chance)
    stored = stored_of([it for it in kafka if it.value is not None], chance)
    mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))
    [*_, last] = [it for it in kafka if it.value is None]
    ends = {p: mark.high for p, mark in MemorySides(kafka, stored).marks.items()}

    sides = MemorySides(kafka, stored, reached_to={**ends, last.kafka_partition: last.offset})
    difference = (await Check(sides, mapping).full()).difference

    assert difference is not None
    assert (difference.kafka_partition, difference.offset) == (last.kafka_partition, last.offset)
    assert difference.what == "the stream does not have this record"


async def test_tombstones_stored_a_moment_ago_have_not_expired() -> None:
    """Whatever is behind a record that has not lasted so long was stored later still."""
    chance = random.Random(5)
    kafka = some_kafka(chance, partitions=1)
    stored = stored_of([it for it in kafka if it.value is not None], chance)
    mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))
    reached_to = {0: kafka[-1].offset + 1}
    [lost, *_] = [it for it in kafka[len(kafka) // 2 :] if it.value is None]
    now_ns = 1_000 * 10**9
    at = {
        seq: now_ns - 30 * 10**9
        for seq, message in stored
        if (source := any_source(Decoder.lines(message.block))) and source.offset > lost.offset - 2
    }

    sides = MemorySides(kafka, stored, reached_to=reached_to, now_ns=now_ns, stored_ns=at)
    proof = await Check(sides, mapping).full()

    assert proof.difference is not None
    assert proof.difference.offset >= lost.offset - 2
    assert proof.difference.what == "the stream does not have this record"
    sides.stored_ns = dict.fromkeys(at, now_ns - 61 * 10**9)
    assert (await Check(sides, mapping).full()).equal


@pytest.mark.parametrize(("late_s", "is_equal"), [(1, True), (3, False)])
async def test_a_tombstone_that_expires_while_the_stream_is_read_is_not_missing(
    late_s: int, is_equal: bool
) -> None:
    """By the clock of when all was read, it was stored before its time began to count, or after."""
    kafka = some_kafka(random.Random(5), partitions=1)
    stored = stored_of([it for it in kafka if it.value is not None], random.Random(5))
    mapping = Mapping(a_route("flights", shared=True, tombstone_ttl_s=60))
    began_ns = 1_000 * 10**9
    sides = MemorySides(kafka, stored, age_s=59.0, now_ns=began_ns)
    sides.reached_to = {0: kafka[-1].offset + 1}
    sides.stored_ns = {seq: began_ns + (late_s - 60) * 10**9 for seq, _ in stored}
    sides.removes = (1, 0)
    sides.removes_at_ns = began_ns + 2 * 10**9

    proof = await Check(sides, mapping).full()

    assert proof.equal is is_equal
    if is_equal:
        assert proof.apart.expired == sum(it.value is None for it in kafka)


async def test_a_topic_that_was_compacted_is_not_judged_by_a_part_of_it() -> None:
    chance = random.Random(7)
    records = some_kafka(chance)
    kafka = [it for it in records if it is not records[20]]
    sides = MemorySides(kafka, stored_of(records, chance), is_compact=True)
    as_it_was = MemorySides(records, stored_of(records, chance), is_compact=True)

    assert (await Check(as_it_was, MAPPING).sample(1, chance)).equal
    with pytest.raises(ConfigurationError, match=r"is compacted, .* only be verified in full"):
        await Check(sides, MAPPING).sample(1, chance)
    with pytest.raises(ConfigurationError, match=r"is compacted, .* only be verified in full"):
        await Check(sides, MAPPING).round({0: 9_999, 1: 9_999}, Seen())
    assert (await Check(sides, MAPPING).full()).equal


async def test_every_block_of_a_sample_that_is_looked_at_must_be_equal() -> None:
    for seed in ALL:
        chance = random.Random(f"sample {seed}")
        kafka = some_kafka(chance)
        spoiled, partition, _ = PLANTS["changed timestamp"](kafka, chance)

        clean = await Check(MemorySides(kafka, stored_of(kafka, chance)), MAPPING).sample(
            0, random.Random(seed)
        )
        found = await Check(MemorySides(kafka, stored_of(spoiled, chance)), MAPPING).sample(
            0, random.Random(seed)
        )

        assert clean.equal, (seed, clean.difference)
        assert clean.records == len(kafka)
        assert found.difference is not None, seed
        assert found.difference.kafka_partition == partition


async def test_a_message_under_anothers_subject_is_a_difference() -> None:
    chance = random.Random(4)
    kafka = some_kafka(chance, partitions=1)
    stored = stored_of(kafka, chance)
    at = next(n for n, (_, it) in enumerate(stored) if b"Millstream-Source" in it.block)
    seq, message = stored[at]
    stored[at] = seq, Message("flights.0.other", "", message.block, message.payload)

    proof = await proof_of(MemorySides(kafka, stored))

    assert proof.difference is not None
    assert proof.difference.seq == seq


def test_the_quick_reading_and_the_thorough_one_agree() -> None:
    decoder = Decoder(MAPPING)
    read = 0
    for seed in ALL:
        for n, record in enumerate(some_kafka(random.Random(seed))):
            message = message_of(record, n)
            lines = Decoder.lines(message.block)
            thorough = decoder.record(message.subject, lines, message.payload)
            quick = decoder.common(message.subject.encode(), message.block, message.payload)

            assert thorough == record
            assert quick in (None, (record.kafka_partition, record.offset, parts_of(record)))
            read += quick is not None
    assert read > 1_000


@given(
    st.one_of(st.none(), st.binary(max_size=140), st.from_regex(r"[\w-]{1,140}", fullmatch=True)),
    st.sampled_from(["%null", "none"]),
    st.sampled_from(
        [
            "flights.{partition}.{key}",
            "{partition}.x.{key}.z",
            "a.{topic}.{partition}.{key|default(none)}",
            "a.{partition}.{key|lower}",
            "a.{partition}.{key}.{key.part[0]|default(x)}",
        ]
    ),
    st.sampled_from(["", "0", ".", "none"]),
)
@example(b"N1", "%null", "flights.{partition}.{key}", "0")
def test_a_key_is_cut_out_of_a_subject_only_as_it_would_be_read(
    key: bytes | str | None, null_token: str, template: str, damage: str
) -> None:
    """``damage`` goes before the partition: no subject of the route's, then."""
    mapping = Mapping(a_route("flights", subject=template, null_token=null_token))
    key = key.encode("utf-8", "replace") if isinstance(key, str) else key
    record = Record(3, 7, 1_357_034_400_000, TimestampType.CREATE, key, b"v", ())
    head, _, tail = mapping.subject(record).partition("3")
    subject = f"{head}{damage}3{tail}"
    block = f"NATS/1.0\r\n{mapping.header_lines(record)}\r\n".encode()

    quick = Decoder(mapping).common(subject.encode(), block, b"v")

    if quick is not None:
        assert Decoder(mapping).record(subject, Decoder.lines(block), b"v") == record
        assert quick == (3, 7, parts_of(record))


@pytest.mark.parametrize("subject", ["flights.{partition}.{key}", "{partition}.x.{key}.z"])
def test_a_plain_key_is_cut_out_of_a_subject_never_met_before(subject: str) -> None:
    mapping = Mapping(a_route("flights", subject=subject))
    record = Record(3, 7, 1_357_034_400_000, TimestampType.CREATE, b"N-1_x", b"v", ())
    block = f"NATS/1.0\r\n{mapping.header_lines(record)}\r\n".encode()

    quick = Decoder(mapping).common(mapping.subject(record).encode(), block, b"v")

    assert quick == (3, 7, parts_of(record))


def test_the_null_token_is_no_plain_key() -> None:
    mapping = Mapping(a_route("flights", null_token="none"))
    record = Record(3, 7, 1_357_034_400_000, TimestampType.CREATE, b"none", b"v", ())
    block = f"NATS/1.0\r\n{mapping.header_lines(record)}\r\n".encode()

    assert mapping.subject(record) == "flights.3.%6Eone"
    assert Decoder(mapping).common(b"flights.3.none", block, b"v") is None
