"""The model of a server that the simulation rests on does what servers do.

Every scenario runs on `MemoryServer`, on the embedded broker and on nats-server, through the same
`Port`. A claim of the simulation is only as good as this.
"""

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from millstream_coordinator.memory import MemoryServer
from millstream_coordinator.model import LetterReason, Message, Retention
from millstream_coordinator.ports import (
    Ack,
    Acks,
    Alive,
    Announce,
    Beat,
    BucketGone,
    ClosePull,
    Conflict,
    ConsumerNames,
    ConsumerRead,
    DeleteConsumer,
    DeleteKey,
    DeleteLetter,
    Disconnected,
    Done,
    DoubleAck,
    Failed,
    Failure,
    Heard,
    KeyChanged,
    KeyNames,
    KeyRead,
    Letters,
    ListConsumers,
    Listen,
    ListKeys,
    Overlap,
    Prepare,
    Prepared,
    Probe,
    PullEnded,
    PullIdle,
    ReadKey,
    ReadLetters,
    Reconnected,
    Stale,
    StoreLetter,
    Watch,
    WatchCaughtUp,
    WriteKey,
    Written,
)
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

from .port_bench import Bench, Member, bench

MEMORY = "memory"
_numbers = itertools.count(1)


@pytest.fixture(
    scope="module", params=[MEMORY, EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server | None]:
    kind = str(request.param)
    if kind == MEMORY:
        yield None
        return
    if kind == REAL:
        require.need("nats")
    with Server(kind, tmp_path_factory.mktemp(f"store-{kind}")) as opened:
        yield opened


@pytest.fixture
async def side(server: Server | None) -> AsyncIterator[Bench]:
    memory = MemoryServer() if server is None else None
    url = None if server is None else server.url
    async with bench(f"c{next(_numbers)}", memory, url) as made:
        yield made


async def write(member: Member, key: str, value: bytes, revision: int) -> int:
    """Write a key; its new revision."""
    reply = await member.ask(lambda id_: WriteKey(id=id_, key=key, value=value, revision=revision))
    assert isinstance(reply, Written), reply
    return reply.revision


async def read(member: Member, key: str) -> KeyRead:
    reply = await member.ask(lambda id_: ReadKey(id=id_, key=key))
    assert isinstance(reply, KeyRead), reply
    return reply


async def books(member: Member, epoch: int, partition: int = 0) -> ConsumerRead:
    reply = await member.books(epoch, partition)
    assert isinstance(reply, ConsumerRead), reply
    return reply


async def double_ack(member: Member, message: Message) -> object:
    return await member.ask(lambda id_: DoubleAck(id=id_, message=message))


def seqs(messages: list[Message]) -> list[int]:
    return [message.seq for message in messages]


# ---- the bucket ----------------------------------------------------------------------------------


async def test_what_is_written_is_read_under_its_revision(side: Bench) -> None:
    member = await side.member(has_stream=False)

    first = await write(member, "part.0", b"one", 0)
    second = await write(member, "part.0", b"two", first)

    found = await read(member, "part.0")
    assert (found.value, found.revision) == (b"two", second)
    assert second > first


async def test_a_key_that_never_was_has_no_value_and_revision_0(side: Bench) -> None:
    member = await side.member(has_stream=False)

    found = await read(member, "part.7")

    assert (found.value, found.revision) == (None, 0)


@pytest.mark.parametrize("wrong", [0, 1 << 40])
async def test_a_write_with_another_revision_is_a_conflict(side: Bench, wrong: int) -> None:
    member = await side.member(has_stream=False)
    await write(member, "part.0", b"one", 0)

    reply = await member.ask(
        lambda id_: WriteKey(id=id_, key="part.0", value=b"two", revision=wrong)
    )

    assert isinstance(reply, Conflict)
    assert (await read(member, "part.0")).value == b"one"


async def test_a_deleted_key_has_a_revision_and_can_be_written_again(side: Bench) -> None:
    member = await side.member(has_stream=False)
    first = await write(member, "part.0", b"one", 0)

    wrong = await member.ask(lambda id_: DeleteKey(id=id_, key="part.0", revision=first + 1))
    gone = await member.ask(lambda id_: DeleteKey(id=id_, key="part.0", revision=first))

    assert isinstance(wrong, Conflict)
    assert isinstance(gone, Written)
    found = await read(member, "part.0")
    assert (found.value, found.revision) == (None, gone.revision)
    again = await member.ask(lambda id_: WriteKey(id=id_, key="part.0", value=b"x", revision=0))
    assert isinstance(again, Conflict)
    await write(member, "part.0", b"two", gone.revision)
    assert (await read(member, "part.0")).value == b"two"


async def test_keys_are_listed_by_what_they_begin_with_without_the_deleted(side: Bench) -> None:
    member = await side.member(has_stream=False)
    for key in ("part.0", "part.1", "done.a"):
        await write(member, key, b"v", 0)
    revision = await write(member, "part.2", b"v", 0)
    await member.ask(lambda id_: DeleteKey(id=id_, key="part.2", revision=revision))

    reply = await member.ask(lambda id_: ListKeys(id=id_, prefix="part."))

    assert isinstance(reply, KeyNames)
    assert sorted(reply.keys) == ["part.0", "part.1"]


async def test_a_watch_tells_every_key_then_that_it_has_caught_up_then_changes(
    side: Bench,
) -> None:
    member = await side.member(has_stream=False)
    first = await write(member, "part.0", b"one", 0)
    deleted = await write(member, "part.1", b"v", 0)
    await member.ask(lambda id_: DeleteKey(id=id_, key="part.1", revision=deleted))
    await write(member, "done.a", b"progress", 0)

    member.port.execute(Watch())
    await member.hears(WatchCaughtUp)
    before = {one.key: one.value for one in member.of(KeyChanged)}
    second = await write(member, "part.0", b"two", first)
    await write(member, "done.b", b"progress", 0)
    await write(member, "leader", b"me", 0)
    await member.until(lambda: any(one.key == "leader" for one in member.of(KeyChanged)))

    assert before == {"part.0": b"one", "part.1": None}
    changes = [(one.key, one.value) for one in member.of(KeyChanged)[-2:]]
    assert changes == [("part.0", b"two"), ("leader", b"me")]
    assert member.of(KeyChanged)[-2].revision == second


async def test_a_watch_on_an_empty_bucket_has_caught_up_at_once_or_with_the_first_key(
    side: Bench,
) -> None:
    member = await side.member(has_stream=False)
    await write(member, "cfg", b"{}", 0)

    member.port.execute(Watch())
    await member.hears(WatchCaughtUp)
    member.port.execute(Watch())
    await member.hears(WatchCaughtUp, 2)

    assert [one.key for one in member.of(KeyChanged)] == ["cfg", "cfg"]


async def test_a_key_with_a_time_to_live_runs_out_and_the_watch_tells(side: Bench) -> None:
    member = await side.member(has_stream=False)
    member.port.execute(Watch())
    await write(member, "cfg", b"{}", 0)

    written = await member.ask(
        lambda id_: WriteKey(id=id_, key="leader", value=b"me", revision=0, ttl_s=1.0)
    )
    await member.until(
        lambda: any(one.key == "leader" and one.value is None for one in member.of(KeyChanged))
    )

    assert isinstance(written, Written)
    found = await read(member, "leader")
    assert found.value is None
    assert found.revision > written.revision


async def test_a_lost_bucket_is_said_in_answer_to_everything_that_needs_it(side: Bench) -> None:
    member = await side.member(has_stream=False)
    revision = await write(member, "part.0", b"one", 0)
    await side.delete_bucket()

    answers = [
        await member.ask(lambda id_: ReadKey(id=id_, key="part.0")),
        await member.ask(lambda id_: WriteKey(id=id_, key="part.0", value=b"", revision=revision)),
        await member.ask(lambda id_: DeleteKey(id=id_, key="part.0", revision=revision)),
        await member.ask(lambda id_: ListKeys(id=id_, prefix="part.")),
    ]
    member.port.execute(Watch())

    assert {one.reason for one in answers if isinstance(one, Failed)} == {Failure.BUCKET_GONE}
    assert all(isinstance(one, Failed) for one in answers)
    await member.hears(BucketGone)


async def test_a_watch_whose_bucket_goes_tells_so_by_itself(side: Bench) -> None:
    member = await side.member(has_stream=False)
    await write(member, "cfg", b"{}", 0)
    member.port.execute(Watch())
    await member.hears(WatchCaughtUp)

    await side.delete_bucket()

    await member.hears(BucketGone)


async def test_a_bucket_made_again_is_another_one_with_higher_revisions(side: Bench) -> None:
    first = await side.member("a", has_stream=False)
    old = await write(first, "part.0", b"one", 0)
    await side.delete_bucket()

    second = await side.member("b", has_stream=False)
    new = await write(second, "part.0", b"two", 0)
    first.port.execute(Watch())

    assert new > old
    await first.hears(BucketGone)
    again = await first.ask(lambda id_: Prepare(id=id_))
    assert isinstance(again, Prepared)
    assert old < again.begins_at <= new
    first.port.execute(Watch())
    await first.hears(WatchCaughtUp)
    assert first.of(KeyChanged)[-1].value == b"two"


# ---- consumers -----------------------------------------------------------------------------------


async def test_a_consumer_that_is_not_there_is_not_there(side: Bench) -> None:
    await side.add_stream()
    member = await side.member()

    found = await books(member, 1)

    assert found == ConsumerRead(id=found.id, is_there=False)
    deleted = await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(1)))
    assert isinstance(deleted, Done)


async def test_a_new_consumer_stands_before_its_start(side: Bench) -> None:
    await side.add_stream()
    for _ in range(5):
        await side.publish(0, "k")
    member = await side.member()

    assert isinstance(await member.create(1, start_seq=4), Done)

    found = await books(member, 1)
    assert (found.is_there, found.ack_floor, found.delivered) == (True, 3, 0)
    assert (found.num_ack_pending, found.level) == (0, 2)


async def test_making_the_same_consumer_again_is_done_and_another_start_is_refused(
    side: Bench,
) -> None:
    await side.add_stream()
    member = await side.member()
    await member.create(1, start_seq=1)

    same = await member.create(1, start_seq=1)
    other = await member.create(1, start_seq=2)

    assert isinstance(same, Done)
    assert isinstance(other, Failed)
    assert other.reason is Failure.REFUSED


async def test_consumers_are_listed(side: Bench) -> None:
    await side.add_stream()
    member = await side.member()
    await member.create(1)
    await member.create(3, partition=1)

    reply = await member.ask(lambda id_: ListConsumers(id=id_))

    assert isinstance(reply, ConsumerNames)
    assert sorted(reply.names) == sorted((member.consumer(1), member.consumer(3, 1)))


@pytest.mark.parametrize("retention", [Retention.LIMITS, Retention.WORK_QUEUE])
async def test_a_work_queue_takes_one_consumer_per_subject_and_a_limits_stream_any(
    side: Bench, retention: Retention
) -> None:
    await side.add_stream(retention)
    member = await side.member()
    await member.create(1)

    second = await member.create(2)
    other = await member.create(1, partition=1)

    assert isinstance(second, Done if retention is Retention.LIMITS else Overlap)
    assert isinstance(other, Done)
    await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(1)))
    await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(2)))
    assert isinstance(await member.create(3), Done)


async def test_a_finer_level_overlaps_with_every_partition_of_the_first(side: Bench) -> None:
    await side.add_stream(Retention.WORK_QUEUE)
    member = await side.member()
    await member.create(1, partition=0)

    related = await member.create(2, partition=2, level=4)
    other = await member.create(2, partition=1, level=4)

    assert isinstance(related, Overlap)
    assert isinstance(other, Overlap)
    await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(1)))
    assert isinstance(await member.create(2, partition=2, level=4), Done)
    assert (await books(member, 2, 2)).level == 4


async def test_without_the_stream_everything_about_consumers_fails(side: Bench) -> None:
    await side.add_stream()
    await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 1)
    message = (await member.messages(1))[0]
    await side.delete_stream()

    made = await member.create(2)
    found = await member.books(1)
    acked = await double_ack(member, message)

    assert isinstance(made, Failed)
    assert isinstance(found, Failed)
    assert (made.reason, found.reason) == (Failure.STREAM_GONE, Failure.STREAM_GONE)
    assert isinstance(acked, Failed)
    assert acked.reason is Failure.NO_RESPONDERS
    await member.hears(PullEnded)


# ---- deliveries ----------------------------------------------------------------------------------


async def test_a_pull_gets_what_is_there_and_what_comes_of_its_partition_in_order(
    side: Bench,
) -> None:
    await side.add_stream()
    mine = [await side.publish(0, "k1", b"1"), await side.publish(0, "k%2E")]
    await side.publish(1, "k2")
    member = await side.member()

    await member.pull(3, 1)
    await member.messages(2)
    mine.append(await side.publish(0, "k1"))
    messages = await member.messages(3)

    assert seqs(messages) == mine
    assert [one.consumer_seq for one in messages] == [1, 2, 3]
    first = messages[0]
    assert (first.key, first.data, first.partition, first.mark) == (b"k1", b"1", 0, 0)
    assert (first.epoch, first.num_delivered) == (3, 1)
    assert messages[1].key == b"k."


async def test_a_finer_consumer_delivers_under_the_mark_of_the_first_level(side: Bench) -> None:
    await side.add_stream()
    await side.publish(3, "k")
    member = await side.member()

    await member.create(1, partition=3, level=4)
    member.open_pull(1, 1, partition=3)
    message = (await member.messages(1))[0]

    assert (message.partition, message.mark, message.finest) == (3, 1, 3)


async def test_a_consumer_of_the_first_level_tells_the_finest_partition(side: Bench) -> None:
    await side.add_stream()
    await side.publish(3, "k")
    member = await side.member()

    await member.pull(1, 1, partition=1)
    message = (await member.messages(1))[0]

    assert (message.partition, message.mark, message.finest) == (1, 1, 3)


async def test_deliveries_start_where_the_consumer_does(side: Bench) -> None:
    await side.add_stream()
    for _ in range(5):
        await side.publish(0, "k")
    member = await side.member()

    await member.pull(1, 1, start_seq=4)

    assert seqs(await member.messages(2)) == [4, 5]


async def test_no_more_than_max_ack_pending_are_under_way(side: Bench) -> None:
    await side.add_stream()
    for _ in range(6):
        await side.publish(0, "k")
    member = await side.member(max_ack_pending=2)
    await member.pull(1, 1)

    before = list(await member.messages(2))
    idle = (await member.hears(PullIdle))[-1]
    member.port.execute(Acks(messages=tuple(before)))
    after = await member.messages(4)

    assert idle.consumer_seq == 2
    assert seqs(before) == [1, 2]
    assert seqs(after) == [1, 2, 3, 4]


async def test_an_idle_pull_says_what_was_delivered_last(side: Bench) -> None:
    await side.add_stream()
    await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 7)
    await member.messages(1)

    await member.until(lambda: any(one.consumer_seq == 1 for one in member.of(PullIdle)))

    assert {one.pull for one in member.of(PullIdle)} == {7}


async def test_a_closed_pull_gets_nothing_and_the_next_one_what_follows(side: Bench) -> None:
    await side.add_stream()
    await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 1)
    await member.messages(1)

    member.port.execute(ClosePull(pull=1))
    await member.books(1)
    await side.publish(0, "k")
    member.open_pull(1, 2)
    await member.until(lambda: any(message.seq == 2 for message in member.delivered))

    assert seqs(member.delivered) == [1, 2]


async def test_a_deleted_consumer_ends_its_pull_and_one_that_is_not_there_never_begins(
    side: Bench,
) -> None:
    await side.add_stream()
    member = await side.member()
    await member.pull(1, 1)

    await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(1)))
    first = await member.hears(PullEnded)
    member.open_pull(1, 2)
    both = await member.hears(PullEnded, 2)

    assert first[0].pull == 1
    assert both[1].pull == 2


# ---- acks ----------------------------------------------------------------------------------------


async def test_the_ack_floor_waits_for_the_lowest_that_is_not_acked(side: Bench) -> None:
    await side.add_stream()
    for _ in range(4):
        await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 1)
    one, two, three, four = await member.messages(4)

    floors = []
    for message in (two, one, four, three):
        assert isinstance(await double_ack(member, message), Done)
        found = await books(member, 1)
        floors.append((found.ack_floor, found.num_ack_pending))

    assert floors == [(0, 3), (2, 2), (2, 1), (4, 0)]


async def test_the_ack_floor_steps_over_what_other_partitions_have(side: Bench) -> None:
    await side.add_stream()
    for partition in (1, 0, 1, 1, 0, 1):
        await side.publish(partition, "k")
    member = await side.member()
    await member.pull(1, 1)
    first, second = await member.messages(2)

    before = (await books(member, 1)).ack_floor
    await double_ack(member, first)
    between = (await books(member, 1)).ack_floor
    await double_ack(member, second)
    after = (await books(member, 1)).ack_floor

    assert (before, between) == (0, 4)
    assert after in (5, 6)


async def test_a_second_ack_is_answered_and_changes_nothing(side: Bench) -> None:
    await side.add_stream()
    await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 1)
    message = (await member.messages(1))[0]

    first = await double_ack(member, message)
    second = await double_ack(member, message)

    assert isinstance(first, Done)
    assert isinstance(second, Done)


@pytest.mark.parametrize("retention", [Retention.LIMITS, Retention.WORK_QUEUE])
async def test_after_another_epoch_the_old_owners_ack_finds_nobody(
    side: Bench, retention: Retention
) -> None:
    await side.add_stream(retention)
    await side.publish(0, "k")
    old, new = await side.member("a"), await side.member("b")
    await old.pull(1, 1)
    stale = (await old.messages(1))[0]

    await new.ask(lambda id_: DeleteConsumer(id=id_, name=new.consumer(1)))
    await new.pull(2, 1)
    again = (await new.messages(1))[0]
    refused = await double_ack(old, stale)
    old.port.execute(Ack(message=stale))

    assert isinstance(refused, Failed)
    assert refused.reason is Failure.NO_RESPONDERS
    assert again.seq == stale.seq
    assert (await books(new, 2)).num_ack_pending == 1
    assert (await old.hears(PullEnded))[0].pull == 1


async def test_a_limits_stream_delivers_again_above_the_start_and_a_work_queue_what_is_left(
    side: Bench,
) -> None:
    await side.add_stream(Retention.WORK_QUEUE)
    for _ in range(5):
        await side.publish(0, "k")
    member = await side.member()
    await member.pull(1, 1)
    messages = await member.messages(5)
    for message in (messages[0], messages[2]):
        await double_ack(member, message)

    await member.ask(lambda id_: DeleteConsumer(id=id_, name=member.consumer(1)))
    await member.pull(2, 2, start_seq=99)
    again = (await member.messages(8))[5:]

    assert seqs(again) == [2, 4, 5]


async def test_what_is_not_acked_in_time_comes_again(side: Bench) -> None:
    await side.add_stream()
    for _ in range(2):
        await side.publish(0, "k")
    member = await side.member(ack_wait_s=1.0)
    await member.pull(1, 1)
    first, _ = await member.messages(2)
    await double_ack(member, first)

    again = (await member.messages(3))[2]

    assert (again.seq, again.num_delivered, again.consumer_seq) == (2, 2, 3)
    found = await books(member, 1)
    assert (found.ack_floor, found.num_ack_pending) == (1, 1)
    assert isinstance(await double_ack(member, again), Done)
    assert (await books(member, 1)).num_ack_pending == 0


async def test_progress_starts_the_ack_timer_anew(side: Bench) -> None:
    await side.add_stream()
    for _ in range(2):
        await side.publish(0, "k")
    member = await side.member(ack_wait_s=2.5)
    await member.pull(1, 1)
    slow, _ = await member.messages(2)

    await member.hears(PullIdle)
    member.port.execute(Ack(message=slow, is_progress=True))
    again = (await member.messages(4))[2:]

    assert seqs(again) == [2, 1]


@pytest.mark.parametrize("retention", [Retention.LIMITS, Retention.WORK_QUEUE])
async def test_what_the_stream_drops_while_it_is_pending_counts_as_acked(
    side: Bench, retention: Retention
) -> None:
    await side.add_stream(retention)
    for _ in range(4):
        await side.publish(0, "k")
    member = await side.member(max_ack_pending=3)
    await member.pull(1, 1)
    await member.messages(3)

    await side.purge(below=3)
    await member.messages(4)

    found = await books(member, 1)
    assert (found.ack_floor, found.num_ack_pending) == (2, 2)


async def test_a_consumer_made_after_a_purge_starts_at_what_is_there(side: Bench) -> None:
    await side.add_stream()
    for _ in range(4):
        await side.publish(0, "k")
    await side.purge(below=3)
    member = await side.member()

    await member.pull(1, 1, start_seq=1)

    assert seqs(await member.messages(2)) == [3, 4]


# ---- heartbeats, probes, the connection ----------------------------------------------------------


async def test_a_member_hears_its_own_heartbeats_and_those_it_listens_to(side: Bench) -> None:
    one = await side.member("a", has_stream=False)
    other = await side.member("b", has_stream=False)

    one.port.execute(Beat(sent_at=1.5, deaf_s=0.25, epoch=7))
    await one.hears(Heard)
    other.port.execute(Listen(member="a"))
    await other.ask(lambda id_: ReadKey(id=id_, key="cfg"))
    one.port.execute(Beat(sent_at=2.5))
    heard = (await other.hears(Heard))[0]

    own = one.of(Heard)[0]
    assert (own.member, own.instance, own.sent_at) == ("a", "a1", 1.5)
    assert (own.deaf_s, own.epoch) == (0.25, 7)
    assert (heard.member, heard.sent_at) == ("a", 2.5)
    other.port.execute(Beat(sent_at=3.5))
    await other.hears(Heard, 2)
    await one.ask(lambda id_: ReadKey(id=id_, key="cfg"))
    assert {beat.member for beat in one.of(Heard)} == {"a"}


async def test_who_listens_to_everybody_hears_each_once(side: Bench) -> None:
    one = await side.member("a", has_stream=False)
    leader = await side.member("b", has_stream=False)
    leader.port.execute(Listen(member=None))
    await leader.ask(lambda id_: ReadKey(id=id_, key="cfg"))

    one.port.execute(Beat(sent_at=1.0))
    one.port.execute(Beat(sent_at=2.0))

    await leader.until(lambda: len([b for b in leader.of(Heard) if b.member == "a"]) == 2)
    assert [beat.sent_at for beat in leader.of(Heard) if beat.member == "a"] == [1.0, 2.0]


async def test_a_probe_is_answered_by_who_is_there_and_refused_for_who_is_not(
    side: Bench,
) -> None:
    asker = await side.member("a", has_stream=False)
    other = await side.member("b", has_stream=False)

    there = await asker.ask(lambda id_: Probe(id=id_, member="b"))
    nobody = await asker.ask(lambda id_: Probe(id=id_, member="c"))
    await side.end(other)
    gone = await asker.ask(lambda id_: Probe(id=id_, member="b"))

    assert there == Alive(id=there.id, instance="b1")
    assert isinstance(nobody, Failed)
    assert isinstance(gone, Failed)
    assert (nobody.reason, gone.reason) == (Failure.NO_RESPONDERS, Failure.NO_RESPONDERS)


async def test_a_cut_is_told_and_after_it_a_new_watch_tells_what_was_missed(side: Bench) -> None:
    member = await side.member("a", has_stream=False)
    other = await side.member("b", has_stream=False)
    revision = await write(other, "part.0", b"one", 0)
    member.port.execute(Watch())
    await member.hears(WatchCaughtUp)

    await side.cut(member)
    await member.hears(Disconnected)
    await write(other, "part.0", b"two", revision)
    await member.hears(Reconnected)
    member.port.execute(Watch())
    await member.hears(WatchCaughtUp, 2)

    assert [one.value for one in member.of(KeyChanged)][-1] == b"two"
    member.port.execute(Beat(sent_at=9.0))
    await member.hears(Heard)


async def test_what_a_member_listens_to_while_it_is_cut_off_it_hears_when_it_is_back(
    side: Bench,
) -> None:
    one = await side.member("a", has_stream=False)
    leader = await side.member("b", has_stream=False)

    await side.cut(leader)
    await leader.hears(Disconnected)
    leader.port.execute(Listen(member=None))
    await leader.hears(Reconnected)
    await leader.ask(lambda id_: ReadKey(id=id_, key="cfg"))
    one.port.execute(Beat(sent_at=1.0))

    await leader.until(lambda: [beat.member for beat in leader.of(Heard)] == ["a"])


async def test_an_announcement_disturbs_nobody(side: Bench) -> None:
    member = await side.member(has_stream=False)
    before = len(member.told)

    member.port.execute(Announce(value=b"{}"))
    await read(member, "cfg")

    assert len(member.told) == before + 1


# ---- letters -------------------------------------------------------------------------------------


async def store(member: Member, message: Message) -> object:
    """Store a message as a letter of the key ``k``."""
    return await member.ask(
        lambda id_: StoreLetter(
            id=id_,
            message=message,
            token="k",
            reason=LetterReason.PARK,
            error="ValueError: no",
            attempts=5,
            stored_ns=1_700_000_000_000_000_000,
        )
    )


async def _failed_messages(side: Bench, member: Member, count: int) -> list[Message]:
    for number in range(count):
        await side.publish(0, "k", b"%d" % number)
    await member.pull(2, 1)
    return await member.messages(count)


async def test_a_letter_is_stored_once_and_read_as_the_message_was(side: Bench) -> None:
    await side.add_stream()
    member = await side.member()
    first, second = await _failed_messages(side, member, 2)

    for message in (first, first, second, first):
        assert isinstance(await store(member, message), Done)
    found = await member.ask(
        lambda id_: ReadLetters(id=id_, partition=0, token="k", epoch=9, max_count=10)
    )

    assert isinstance(found, Letters)
    got = [one.message for one in found.letters]
    assert [(one.seq, one.data, one.key, one.epoch) for one in got] == [
        (1, b"0", b"k", 9),
        (2, b"1", b"k", 9),
    ]
    assert (got[0].subject, got[0].partition, got[0].reply) == (first.subject, 0, "")
    assert got[0].timestamp_ns == first.timestamp_ns


async def test_a_letter_of_a_stale_owner_is_refused(side: Bench) -> None:
    await side.add_stream()
    member = await side.member()
    first, second = await _failed_messages(side, member, 2)
    await store(member, first)
    second.epoch = 1

    refused = await store(member, second)

    assert isinstance(refused, Stale)
    assert refused.seen_epoch == 2


async def test_a_deleted_letter_is_not_read_any_more(side: Bench) -> None:
    await side.add_stream()
    member = await side.member()
    for message in await _failed_messages(side, member, 3):
        await store(member, message)
    listed = await member.ask(
        lambda id_: ReadLetters(id=id_, partition=0, token="k", epoch=2, max_count=2)
    )
    assert isinstance(listed, Letters)
    first = listed.letters[0]

    for _ in range(2):
        done = await member.ask(lambda id_: DeleteLetter(id=id_, letter_seq=first.letter_seq))
        assert isinstance(done, Done)
    left = await member.ask(
        lambda id_: ReadLetters(id=id_, partition=0, token="k", epoch=2, max_count=9)
    )

    assert isinstance(left, Letters)
    assert [one.message.seq for one in listed.letters] == [1, 2]
    assert [one.message.seq for one in left.letters] == [2, 3]
