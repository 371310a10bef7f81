"""What becomes of a message whose handler fails, by the group's policy; in virtual time."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from millstream_coordinator import Message
from millstream_coordinator.events import (
    KeyReplayed,
    MessageGivenUp,
    MessageRetried,
    PartitionResumed,
    PartitionStopped,
)
from millstream_coordinator.machine.policies import retry_delay_s
from millstream_coordinator.memory import MemoryClient, MemoryServer, Observer
from millstream_coordinator.model import (
    ControlRecord,
    LetterReason,
    ParkedRecord,
    PartitionRecord,
    PartitionState,
    Timing,
    decode,
)
from millstream_coordinator.ports import (
    Command,
    Failed,
    Failure,
    StoreLetter,
    WriteKey,
    Written,
)

from .group_in_memory import Log, make, open_server, publish, read, virtual, write
from .members import running


def stopped_seq(server: MemoryServer) -> int | None:
    is_there = server.value("g", "part.0") is not None
    return read(server, PartitionRecord, "part.0").stopped_seq if is_there else None


def test_the_backoff_doubles_is_bounded_and_spreads_what_failed_together() -> None:
    timing = Timing(retry_min_s=0.1, retry_max_s=10.0)

    delays = [retry_delay_s(timing, attempt, seq=7) for attempt in range(1, 12)]
    beside = {round(retry_delay_s(timing, 3, seq), 4) for seq in range(100)}

    assert all(later >= sooner for sooner, later in pairwise(delays))
    assert 0.09 <= delays[0] <= 0.11
    assert delays[-1] <= 11.0
    assert retry_delay_s(timing, 10**6, seq=1) <= 11.0
    assert len(beside) > 90


@virtual
async def test_a_message_that_fails_is_tried_again_and_only_its_key_waits() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "bad", number)
        publish(server, "good", number)
    log.fails = lambda message: message.key == b"bad" and message.attempt < 4
    group, events = make(server, log)

    async with running(group):
        await server.until(lambda: len(log.handled) == 6)

    assert log.of(b"bad") == log.of(b"good") == [0, 1, 2]
    assert log.handled.index((b"good", 2)) < log.handled.index((b"bad", 0))
    assert sum(isinstance(event, MessageRetried) for event in events) == 9


@virtual
async def test_a_dead_letter_is_stored_once_before_its_ack_and_its_key_goes_on() -> None:
    server, log = open_server(), Log()
    for number in range(4):
        publish(server, "k", number)
    log.fails = lambda message: message.data == b"1"
    group, events = make(server, log, on_failure="dead-letter", max_attempts=3)

    async with running(group):
        await server.until(lambda: len(log.handled) == 3)

    (letter,) = server.letters("g")
    assert log.of(b"k") == [0, 2, 3]
    assert [attempt for _, number, attempt in log.calls if number == 1] == [1, 2, 3]
    assert (letter.message.data, letter.token, letter.attempts) == (b"1", "k", 3)
    assert (letter.reason, letter.error) == (
        LetterReason.DEAD_LETTER,
        "ValueError: cannot handle 1",
    )
    (told,) = [event for event in events if isinstance(event, MessageGivenUp)]
    assert (told.seq, told.reason) == (2, "dead-letter")
    assert group.stats().dead_letters == 1


@virtual
async def test_messages_without_a_key_become_letters_one_by_one() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "%null", number)
    log.fails = lambda message: message.data != b"1"
    group, _ = make(server, log, on_failure="dead-letter", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 2)

    assert sorted(letter.token for letter in server.letters("g")) == ["%null.1", "%null.3"]
    assert log.of(b"k") == []
    assert log.handled == [(None, 1)]


@virtual
async def test_a_parked_key_keeps_its_later_messages_in_order_and_others_go_on() -> None:
    server, log = open_server(), Log()
    for number in range(4):
        publish(server, "bad", number)
        publish(server, "good", number)
    log.fails = lambda message: message.key == b"bad" and message.data == b"1"
    group, _ = make(server, log, on_failure="park", max_attempts=2)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 3 and len(log.handled) == 5)
        publish(server, "bad", 4)
        await server.until(lambda: len(server.letters("g")) == 4)

    assert log.of(b"bad") == [0]
    assert log.of(b"good") == [0, 1, 2, 3]
    assert [letter.message.data for letter in server.letters("g")] == [b"1", b"2", b"3", b"4"]
    assert read(server, ParkedRecord, "parked.0").keys == {"bad": 3}
    assert group.stats().parked == 4


@virtual
async def test_a_new_owner_knows_what_is_parked_before_its_first_message() -> None:
    server, log = open_server(), Log()
    publish(server, "bad", 0)
    log.fails = lambda message: message.data == b"0"
    first, _ = make(server, log, on_failure="park", max_attempts=1)
    async with running(first):
        await server.until(lambda: len(server.letters("g")) == 1)
    publish(server, "bad", 1)

    second, _ = make(server, log, on_failure="park", max_attempts=1, member="b")
    async with running(second):
        await server.until(lambda: len(server.letters("g")) == 2)

    assert log.handled == []
    assert [number for _, number, _ in log.calls] == [0]


@virtual
async def test_a_replay_handles_the_letters_in_order_before_what_came_later() -> None:
    server, log = open_server(), Log()
    is_mended = False
    for number in range(5):
        publish(server, "bad", number)
    log.fails = lambda message: not is_mended and message.data != b"0"
    group, events = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 4)
        is_mended = True
        write(
            server,
            "parked.0",
            replace(read(server, ParkedRecord, "parked.0"), replay=("bad",)),
        )
        for number in range(5, 9):
            publish(server, "bad", number)
        await server.until(lambda: len(log.of(b"bad")) == 9)
        await server.until(lambda: not read(server, ParkedRecord, "parked.0").keys)

    assert log.of(b"bad") == list(range(9))
    assert server.letters("g") == []
    assert KeyReplayed(partition=0, key="bad", count=4, is_parked=False) in events


@virtual
async def test_a_replay_that_fails_again_leaves_the_key_parked_and_nothing_lost() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "bad", number)
    log.fails = lambda message: message.data == b"1" or len(log.calls) < 2
    group, events = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 3)
        record = read(server, ParkedRecord, "parked.0")
        write(server, "parked.0", replace(record, replay=("bad",)))
        await server.until(lambda: any(isinstance(event, KeyReplayed) for event in events))

    assert log.of(b"bad") == [0]
    assert [letter.message.data for letter in server.letters("g")] == [b"1", b"2"]
    assert read(server, ParkedRecord, "parked.0").keys == {"bad": 1}
    assert read(server, ParkedRecord, "parked.0").replay == ()


@virtual
async def test_a_replay_asked_for_while_nobody_works_is_done_by_the_next_owner() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "bad", number)
    log.fails = lambda message: len(log.calls) < 2
    first, _ = make(server, log, on_failure="park", max_attempts=1)
    async with running(first):
        await server.until(lambda: len(server.letters("g")) == 3)
    record = read(server, ParkedRecord, "parked.0")
    write(server, "parked.0", replace(record, replay=("bad",)))

    second, _ = make(server, log, on_failure="park", max_attempts=1, member="b")
    async with running(second):
        publish(server, "bad", 3)
        await server.until(lambda: len(log.handled) == 4)

    assert log.of(b"bad") == [0, 1, 2, 3]


@virtual
async def test_a_move_called_off_begins_no_second_call_of_a_letter_that_is_handled() -> None:
    server = open_server()
    for number in range(2):
        publish(server, "bad", number)
    running_calls, most_calls, num_failed, handled = 0, 0, 0, []

    async def handle(message: Message) -> None:
        nonlocal running_calls, most_calls, num_failed
        if num_failed == 0:
            num_failed += 1
            raise ValueError("not yet")
        running_calls += 1
        most_calls = max(most_calls, running_calls)
        await asyncio.sleep(2)
        running_calls -= 1
        handled.append(message.data)

    group, events = make(server, handle, on_failure="park", max_attempts=1)
    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 2)
        parked = read(server, ParkedRecord, "parked.0")
        write(server, "parked.0", replace(parked, replay=("bad",)))
        await server.until(lambda: running_calls == 1)
        part = read(server, PartitionRecord, "part.0")
        # The leader sees that there is nobody else and calls this off.
        write(server, "part.0", replace(part, state=PartitionState.MOVING, next="b"))
        await server.until(lambda: any(isinstance(event, KeyReplayed) for event in events))

    assert most_calls == 1
    assert list(dict.fromkeys(handled)) == [b"0", b"1"]


@virtual
async def test_too_many_parked_keys_stop_the_partition() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, f"bad{number}", number)
    log.fails = lambda _: True
    group, events = make(
        server, log, on_failure="park", max_attempts=1, max_parked_keys=2, max_lanes=1
    )

    async with running(group):
        await server.until(lambda: any(isinstance(event, PartitionStopped) for event in events))
        await server.until(lambda: stopped_seq(server) is not None)

    assert len(read(server, ParkedRecord, "parked.0").keys) == 2


@virtual
async def test_a_stopped_partition_hands_nothing_out_until_it_is_resumed() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "a", number)
    log.fails = lambda message: message.data == b"1" and len(log.calls) < 4
    group, events = make(server, log, on_failure="stop", max_attempts=2)

    async with running(group):
        await server.until(lambda: stopped_seq(server) == 2)
        publish(server, "b", 9)
        await asyncio.sleep(60)
        calls = len(log.calls)
        record = read(server, PartitionRecord, "part.0")
        write(server, "part.0", replace(record, stopped_seq=None, stopped_error=""))
        await server.until(lambda: len(log.handled) == 4)

    assert record.stopped_error == "ValueError: cannot handle 1"
    assert calls == 3
    assert log.of(b"a") == [0, 1, 2]
    assert PartitionResumed(partition=0) in events


@virtual
async def test_a_stopped_partition_stays_stopped_at_its_next_owner() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    log.fails = lambda _: True
    first, _ = make(server, log, on_failure="stop", max_attempts=1)
    async with running(first):
        await server.until(lambda: stopped_seq(server) == 1)

    second, _ = make(server, log, on_failure="stop", max_attempts=1, member="b")
    async with running(second):
        await server.until(lambda: second.partitions == {0: second.partitions.get(0)})
        await asyncio.sleep(60)

    assert len(log.calls) == 1


@virtual
async def test_a_message_that_is_to_be_skipped_becomes_a_letter_without_a_call() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "a", number)
    log.fails = lambda message: message.data == b"1"
    group, _ = make(server, log, on_failure="stop", max_attempts=1)

    async with running(group):
        await server.until(lambda: stopped_seq(server) == 2)
        record = read(server, PartitionRecord, "part.0")
        skip = replace(record, stopped_seq=None, stopped_error="", skip_seq=2)
        write(server, "part.0", skip)
        await server.until(lambda: log.of(b"a") == [0, 2])
        await server.until(lambda: read(server, PartitionRecord, "part.0").skip_seq is None)

    (letter,) = server.letters("g")
    assert (letter.message.data, letter.reason) == (b"1", LetterReason.SKIP)
    assert [number for _, number, _ in log.calls].count(1) == 1


@virtual
async def test_a_paused_partition_is_kept_and_hands_nothing_out() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    group, _ = make(server, log, partitions=2)

    async with running(group):
        await server.until(lambda: len(log.handled) == 1)
        write(server, "ctl", ControlRecord(paused=(0,)))
        await server.until(lambda: group.stats().partitions[0].is_paused)
        epoch = group.partitions[0]
        publish(server, "a", 1)
        publish(server, "b", 2, partition=1)
        await server.until(lambda: len(log.handled) == 2)
        await asyncio.sleep(60)
        during = list(log.handled)
        write(server, "ctl", ControlRecord())
        await server.until(lambda: len(log.handled) == 3)

        assert group.partitions[0] == epoch

    assert during == [(b"a", 0), (b"b", 2)]
    assert log.of(b"a") == [0, 1]


@virtual
async def test_a_message_published_again_for_another_group_is_acked_and_skipped() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    publish(server, "a", 1, headers={"Millstream-Replay": "other"})
    publish(server, "a", 2, headers={"Millstream-Replay": "g"})
    publish(server, "a", 3)
    group, _ = make(server, log)

    async with running(group):
        await server.until(lambda: len(log.handled) == 3)

    assert log.of(b"a") == [0, 2, 3]
    assert read(server, PartitionRecord, "part.0").floor == 4


@virtual
async def test_a_letter_under_a_higher_epoch_raises_the_owners_and_is_not_overwritten() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    publish(server, "a", 1)
    log.fails = lambda message: True
    first, _ = make(server, log, on_failure="dead-letter", max_attempts=1)
    async with running(first):
        await server.until(lambda: len(server.letters("g")) == 2)
    epoch = server.letters("g")[-1].message.epoch
    server.delete_bucket("g")
    for name in list(server.streams["G"].consumers):
        server.delete_consumer("G", name)
    publish(server, "a", 2)

    second, _ = make(
        server, log, on_failure="dead-letter", max_attempts=1, retry_min=timedelta(seconds=0.01)
    )
    async with running(second):
        await server.until(lambda: len(server.letters("g")) == 3)

    numbers = [int(letter.message.data) for letter in server.letters("g")]
    assert numbers == [0, 1, 2]
    assert server.letters("g")[-1].message.epoch >= epoch


class Refusing(MemoryServer):
    """Refuses the first letters."""

    num_refused = 0

    def execute(self, client: MemoryClient, command: Command) -> None:
        if isinstance(command, StoreLetter) and self.num_refused < 3:
            self.num_refused += 1
            client.send(Failed(id=command.id, reason=Failure.TIMEOUT))
        else:
            super().execute(client, command)


@virtual
async def test_a_letter_is_stored_before_its_message_is_acked_however_often_it_takes() -> None:
    acked_before: list[bool] = []

    class Watching(Observer):
        def acked(self, partition: int, seq: int) -> None:
            acked_before.append(not server.letters("g"))

    server, log = Refusing(observer=Watching()), Log()
    server.add_stream("G")
    publish(server, "a", 0)
    log.fails = lambda _: True
    group, _ = make(server, log, on_failure="dead-letter", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(acked_before) == 1)

    assert acked_before == [False]
    assert server.num_refused == 3


@virtual
async def test_no_call_begins_while_ownership_cannot_be_confirmed() -> None:
    server = open_server()
    for number in range(20):
        publish(server, f"k{number}", number)
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def handle(_: Message) -> None:
        begun.append(loop.time())
        await asyncio.sleep(0.4)

    group, _ = make(server, handle, max_lanes=1)
    async with running(group):
        await server.until(lambda: len(begun) == 2)
        cut_at = loop.time()
        server.disconnect("a", 5.0)
        await server.until(lambda: len(begun) == 20)

    gap = [at for at in begun if cut_at + 1.01 < at < cut_at + 5.0]
    assert gap == []
    assert [at for at in begun if at > cut_at + 5.0]


@virtual
async def test_a_lost_bucket_forgets_no_parked_key() -> None:
    server, log = open_server(), Log()
    for number in range(3):
        publish(server, "bad", number)
    log.fails = lambda message: message.data == b"0"
    group, _ = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 3)
        epoch = group.partitions[0]
        server.delete_bucket("g")
        await server.until(lambda: group.partitions.get(0, 0) > epoch)
        publish(server, "bad", 3)
        publish(server, "good", 4)
        await server.until(lambda: len(server.letters("g")) == 4 and len(log.handled) == 1)

    assert log.handled == [(b"good", 4)]
    assert read(server, ParkedRecord, "parked.0").keys == {"bad": 1}


@virtual
async def test_a_key_parked_after_the_record_was_lost_does_not_make_the_others_forgotten() -> None:
    server, log = open_server(), Log()
    publish(server, "bad", 0)
    log.fails = lambda message: message.data in (b"0", b"1")
    group, _ = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 1)
        server.put("g", "parked.0", None)
        publish(server, "worse", 1)
        await server.until(lambda: len(server.letters("g")) == 2)
        publish(server, "bad", 2)
        publish(server, "good", 3)
        await server.until(lambda: len(log.handled) == 1 and len(server.letters("g")) == 3)

    assert log.handled == [(b"good", 3)]
    assert read(server, ParkedRecord, "parked.0").keys == {"bad": 1, "worse": 2}


@virtual
async def test_what_an_owner_before_parked_into_a_new_record_hides_no_key_of_this_one() -> None:
    server, log = open_server(), Log()
    publish(server, "bad", 0)
    log.fails = lambda message: message.data in (b"0", b"1")
    group, _ = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 1)
        write(server, "parked.0", ParkedRecord(keys={"older": 7}, epoch=0))
        publish(server, "worse", 1)
        await server.until(lambda: len(server.letters("g")) == 2)
        publish(server, "bad", 2)
        await server.until(lambda: len(server.letters("g")) == 3 or log.handled != [])

    assert log.handled == []
    assert read(server, ParkedRecord, "parked.0").keys == {"older": 7, "bad": 1, "worse": 2}


@virtual
async def test_a_lost_record_of_parked_keys_is_written_anew_by_its_owner() -> None:
    server, log = open_server(), Log()
    publish(server, "bad", 0)
    log.fails = lambda message: message.data == b"0"
    group, _ = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 1)
        server.put("g", "parked.0", None)
        await server.until(lambda: server.value("g", "parked.0") is not None)

    assert read(server, ParkedRecord, "parked.0").keys == {"bad": 1}


@virtual
async def test_what_a_resize_handed_on_is_completed_by_what_the_letters_say() -> None:
    server, log = open_server(), Log()
    publish(server, "bad", 0)
    log.fails = lambda message: message.data == b"0"
    first, _ = make(server, log, on_failure="park", max_attempts=1)
    async with running(first):
        await server.until(lambda: len(server.letters("g")) == 1)

    write(server, "parked.0", ParkedRecord(keys={"other": 9}))
    publish(server, "bad", 1)
    second, _ = make(server, log, on_failure="park", max_attempts=1, member="b")
    async with running(second):
        await server.until(lambda: len(server.letters("g")) == 2 or log.handled != [])

    assert log.handled == []
    assert read(server, ParkedRecord, "parked.0").keys == {"other": 9, "bad": 1}


@virtual
async def test_a_message_without_a_key_parks_nothing() -> None:
    server, log = open_server(), Log()
    publish(server, "%null", 0)
    publish(server, "%null", 1)
    log.fails = lambda message: message.data == b"0"
    group, _ = make(server, log, on_failure="park", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(server.letters("g")) == 1 and len(log.handled) == 1)

    assert read(server, ParkedRecord, "parked.0").keys == {}
    assert server.letters("g")[0].reason is LetterReason.DEAD_LETTER


@virtual
async def test_all_that_failed_while_a_partition_stopped_goes_on_with_it() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    publish(server, "b", 1)
    log.fails = lambda message: len(log.calls) <= 2
    group, _ = make(server, log, on_failure="stop", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(log.calls) == 2 and stopped_seq(server) is not None)
        record = read(server, PartitionRecord, "part.0")
        write(server, "part.0", replace(record, stopped_seq=None, stopped_error=""))
        await server.until(lambda: len(log.handled) == 2)

    assert sorted(log.handled) == [(b"a", 0), (b"b", 1)]


class Overtaken(MemoryServer):
    """An operator resumes a partition before its owner has the reply to what it wrote."""

    def execute(self, client: MemoryClient, command: Command) -> None:
        if isinstance(command, WriteKey) and command.key == "part.0":
            record = decode(PartitionRecord, command.value)
            if record.stopped_seq is not None:
                self.put("g", command.key, command.value)
                write(self, command.key, replace(record, stopped_seq=None, stopped_error=""))
                client.send(Written(id=command.id, revision=command.revision + 1))
                return
        super().execute(client, command)


@virtual
async def test_who_resumes_before_the_owner_knows_that_it_stopped_is_obeyed() -> None:
    server, log = Overtaken(), Log()
    server.add_stream("G")
    publish(server, "a", 0)
    log.fails = lambda _: len(log.calls) == 1
    group, events = make(server, log, on_failure="stop", max_attempts=1)

    async with running(group):
        await server.until(lambda: len(log.handled) == 1)

    assert [type(it) for it in events if isinstance(it, PartitionStopped | PartitionResumed)] == [
        PartitionStopped,
        PartitionResumed,
    ]
