"""Handler calls: beside each other, in threads, in batches, in time; what is kept beside them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from unittest import TestCase

import pytest

from millstream_coordinator import Group, Message
from millstream_coordinator.calls import Threads
from millstream_coordinator.events import HandlerOverdue, MessageGivenUp, MessageRetried
from millstream_coordinator.memory import MemoryServer
from millstream_coordinator.model import PartitionRecord

from .group_in_memory import (
    NAME,
    RULE,
    STREAM,
    Log,
    make,
    open_server,
    publish,
    read,
    virtual,
)
from .members import running

TENANT: ContextVar[str] = ContextVar("TENANT", default="nobody")


def batches(server: MemoryServer, handler: object, **more: object) -> Group:
    group = Group(server, stream=STREAM, name=NAME, partitions=1, member="a")
    group.batch_handler(key=RULE, **more)(handler)  # type: ignore[arg-type, type-var]
    return group


@virtual
async def test_calls_of_different_keys_run_beside_each_other_up_to_the_limit() -> None:
    server = open_server()
    for number in range(40):
        publish(server, f"k{number}", number)
    running_now = 0
    most = 0
    count = 0

    async def handle(_: Message) -> None:
        nonlocal running_now, most, count
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(1)
        running_now -= 1
        count += 1

    group, _ = make(server, handle, max_lanes=10)
    async with running(group):
        await server.until(lambda: count == 40)

    assert most == 10


@virtual
async def test_strict_mode_handles_one_message_of_a_partition_at_a_time() -> None:
    server = open_server()
    for number in range(5):
        publish(server, f"k{number}", number)
    most = 0
    now: set[int] = set()
    order: list[int] = []

    async def handle(message: Message) -> None:
        nonlocal most
        now.add(message.seq)
        most = max(most, len(now))
        await asyncio.sleep(1)
        now.discard(message.seq)
        order.append(message.seq)

    group, _ = make(server, handle, max_ack_pending=1)
    async with running(group):
        await server.until(lambda: len(order) == 5)

    assert most == 1
    assert order == [1, 2, 3, 4, 5]


@virtual
async def test_a_plain_function_is_a_handler_too() -> None:
    server = open_server()
    for number in range(6):
        publish(server, f"k{number % 2}", number)
    seen: list[tuple[bytes | None, int]] = []

    def handle(message: Message) -> None:
        if message.data == b"2" and message.attempt == 1:
            raise ValueError("once")
        seen.append((message.key, int(message.data)))

    group, events = make(server, handle)
    async with running(group):
        await server.until(lambda: len(seen) == 6)

    assert [number for key, number in seen if key == b"k0"] == [0, 2, 4]
    assert sum(isinstance(event, MessageRetried) for event in events) == 1


@virtual
async def test_what_a_plain_function_gives_to_await_is_awaited_before_the_ack() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)
    log.fails = lambda message: message.attempt == 1
    group, events = make(server, lambda message: log(message))  # noqa: PLW0108 - the case meant

    async with running(group):
        await server.until(lambda: len(log.handled) == 1)

    assert [attempt for _, _, attempt in log.calls] == [1, 2]
    assert sum(isinstance(event, MessageRetried) for event in events) == 1


async def test_plain_functions_run_in_threads_beside_each_other() -> None:
    server = open_server()
    for number in range(4):
        publish(server, f"k{number}", number)
    together = threading.Barrier(4, timeout=60)
    names: set[str] = set()

    def handle(_: Message) -> None:
        together.wait()
        names.add(threading.current_thread().name)

    group, _ = make(server, handle, max_lanes=4)
    async with running(group), asyncio.timeout(60):
        await server.until(lambda: len(names) == 4)

    assert threading.current_thread().name not in names


def test_threads_are_bounded_reused_and_daemons() -> None:
    threads = Threads(2)
    seen: set[str] = set()

    def work() -> bool:
        seen.add(threading.current_thread().name)
        return threading.current_thread().daemon

    results = [threads.submit(work).result(timeout=60) for _ in range(20)]
    raised = threads.submit(next, iter(())).exception(timeout=60)
    threads.shutdown(wait=False)

    assert all(results)
    assert len(seen) <= 2
    assert isinstance(raised, RuntimeError)


@virtual
async def test_a_call_past_its_deadline_is_cancelled_told_and_counts_as_a_failed_attempt() -> None:
    server, log = open_server(), Log()
    publish(server, "slow", 0)
    publish(server, "slow", 1)
    was_cancelled: list[int] = []

    async def handle(message: Message) -> None:
        if message.data == b"0":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cancelled.append(message.attempt)
                raise
        await log(message)

    events: list[object] = []
    group = Group(
        server,
        stream=STREAM,
        name=NAME,
        partitions=1,
        on_failure="dead-letter",
        max_attempts=2,
        on_event=events.append,
    )
    group.handler(key=RULE, deadline=timedelta(seconds=5))(handle)
    async with running(group):
        await server.until(lambda: len(log.handled) == 1)

    assert was_cancelled == [1, 2]
    assert sum(isinstance(event, HandlerOverdue) for event in events) == 2
    (given_up,) = [event for event in events if isinstance(event, MessageGivenUp)]
    assert given_up.error == "HandlerDeadlinePassed: not done within 5 s"
    assert group.stats().overdue == 2


@virtual
async def test_the_lane_of_a_call_that_ignores_its_deadline_waits_until_it_ends() -> None:
    server = open_server()
    for number in range(2):
        publish(server, "slow", number)
    order: list[str] = []

    async def handle(message: Message) -> None:
        number = int(message.data)
        order.append(f"begin {number}")
        if number == 0:
            end = asyncio.get_running_loop().time() + 60
            while (left := end - asyncio.get_running_loop().time()) > 0:
                try:
                    await asyncio.sleep(left)
                except asyncio.CancelledError:
                    order.append("ignored")
        order.append(f"end {number}")

    group = Group(server, stream=STREAM, name=NAME, partitions=1)
    group.handler(key=RULE, deadline=timedelta(seconds=5))(handle)
    async with running(group):
        await server.until(lambda: "end 1" in order)

    assert order == ["begin 0", "ignored", "end 0", "begin 1", "end 1"]


@virtual
async def test_extending_begins_the_deadline_anew() -> None:
    server = open_server()
    publish(server, "slow", 0)
    attempts: list[int] = []

    async def handle(message: Message) -> None:
        for _ in range(5):
            await asyncio.sleep(4)
            message.extend()
        attempts.append(message.attempt)

    group = Group(server, stream=STREAM, name=NAME, partitions=1)
    group.handler(key=RULE, deadline=timedelta(seconds=5))(handle)
    async with running(group):
        await server.until(lambda: bool(attempts))

    assert attempts == [1]


@virtual
async def test_a_batch_is_in_order_per_key_and_no_other_call_has_its_keys() -> None:
    server = open_server()
    for number in range(60):
        publish(server, f"k{number % 6}", number)
    seen: list[tuple[bytes | None, int]] = []
    busy: set[bytes | None] = set()
    sizes: list[int] = []

    async def handle(messages: list[Message]) -> None:
        keys = {message.key for message in messages}
        assert not keys & busy
        busy.update(keys)
        await asyncio.sleep(1)
        busy.difference_update(keys)
        sizes.append(len(messages))
        seen.extend((message.key, int(message.data)) for message in messages)

    group = batches(server, handle, max_messages=7)
    async with running(group):
        await server.until(lambda: len(seen) == 60)

    for key in range(6):
        numbers = [number for one, number in seen if one == f"k{key}".encode()]
        assert numbers == list(range(key, 60, 6))
    assert max(sizes) == 7
    assert read(server, PartitionRecord, "part.0").floor == 60


@virtual
async def test_a_batch_waits_for_more_up_to_its_time() -> None:
    server = open_server()
    sizes: list[tuple[float, int]] = []
    loop = asyncio.get_running_loop()

    async def handle(messages: list[Message]) -> None:
        sizes.append((loop.time(), len(messages)))

    group = batches(server, handle, max_messages=10, max_wait=timedelta(seconds=2))
    async with running(group):
        await server.until(lambda: group.partitions == {0: group.partitions.get(0)})
        began = loop.time()
        for number in range(3):
            publish(server, f"k{number}", number)
            await asyncio.sleep(0.5)
        await server.until(lambda: len(sizes) == 1)
        for number in range(10):
            publish(server, f"k{number}", number)
        await server.until(lambda: len(sizes) == 2)

    (first_at, first), (second_at, second) = sizes
    assert (first, second) == (3, 10)
    assert first_at - began == pytest.approx(2, abs=0.1)
    assert second_at - first_at < 1


@virtual
async def test_after_a_failed_batch_only_the_bad_message_is_given_up() -> None:
    server = open_server()
    for number in range(6):
        publish(server, f"k{number % 3}", number)
    handled: list[int] = []

    async def handle(messages: list[Message]) -> None:
        if any(message.data == b"1" for message in messages):
            raise ValueError("bad")
        handled.extend(int(message.data) for message in messages)

    group = Group(
        server, stream=STREAM, name=NAME, partitions=1, on_failure="dead-letter", max_attempts=3
    )
    group.batch_handler(key=RULE, max_messages=10)(handle)
    async with running(group):
        await server.until(lambda: len(handled) == 5 and len(server.letters(NAME)) == 1)

    assert sorted(handled) == [0, 2, 3, 4, 5]
    assert [number for number in handled if number % 3 == 0] == [0, 3]
    assert server.letters(NAME)[0].message.data == b"1"


class Kept:
    """What a user keeps for a partition; writes down what is called."""

    log: list[str] = []  # noqa: RUF012 - emptied by each test

    def __init__(self, partition: int, epoch: int) -> None:
        self.name = f"{partition}"
        self.count = 0
        self.log.append(f"make {self.name}")

    async def open(self) -> None:
        await asyncio.sleep(1)
        self.log.append(f"open {self.name}")

    def flush(self) -> None:
        self.log.append(f"flush {self.name} {self.count}")

    async def close(self) -> None:
        self.log.append(f"close {self.name}")


@virtual
async def test_state_is_open_before_the_first_message_and_flushed_before_it_is_given_away() -> None:
    server = open_server()
    for number in range(3):
        publish(server, "a", number)
    Kept.log = log = []

    async def handle(message: Message) -> None:
        message.state.count += 1
        log.append(f"message {message.data.decode()}")

    async def on_assigned(partition: int, epoch: int) -> None:
        log.append(f"assigned {partition} {epoch > 0}")

    group, _ = make(
        server,
        handle,
        state=Kept,
        on_assigned=on_assigned,
        on_revoked=lambda partition, _: log.append(f"revoked {partition}"),
    )
    async with running(group):
        await server.until(lambda: "message 2" in log)
        assert group.state(0).count == 3

    assert log == [
        "make 0",
        "open 0",
        "assigned 0 True",
        "message 0",
        "message 1",
        "message 2",
        "flush 0 3",
        "revoked 0",
        "close 0",
    ]


@virtual
async def test_a_lost_partition_is_closed_without_a_flush_before_it_opens_again() -> None:
    server = open_server()
    publish(server, "a", 0)
    Kept.log = log = []

    async def handle(message: Message) -> None:
        log.append(f"message {message.data.decode()}")

    group, _ = make(
        server,
        handle,
        state=Kept,
        on_lost=lambda partition, _: log.append(f"lost {partition}"),
    )
    async with running(group):
        await server.until(lambda: "message 0" in log)
        server.delete_bucket(NAME)
        await server.until(lambda: log.count("open 0") == 2)
        during = list(log)

    assert during == ["make 0", "open 0", "message 0", "lost 0", "close 0", "make 0", "open 0"]


@virtual
async def test_what_opening_raises_comes_out_of_run_and_nothing_was_handled() -> None:
    server, log = open_server(), Log()
    publish(server, "a", 0)

    async def on_assigned(_partition: int, _epoch: int) -> None:
        raise ZeroDivisionError("in the callback")

    group, _ = make(server, log, on_assigned=on_assigned)
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        await group.run(handle_signals=False)

    assert log.calls == []


@virtual
async def test_a_stop_waits_for_calls_and_acks_only_what_was_handled() -> None:
    server = open_server()
    for number in range(4):
        publish(server, f"k{number}", number)
    ended: list[int] = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(int(message.data) * 100)
        ended.append(int(message.data))

    group, _ = make(server, handle, drain_timeout=timedelta(seconds=150))
    task = asyncio.create_task(group.run(handle_signals=False))
    await server.until(lambda: ended == [0])
    await group.stop()
    await task

    assert ended == [0, 1]
    log = Log()
    again, _ = make(server, log, member="b")
    async with running(again):
        await server.until(lambda: len(log.handled) == 2)
    assert sorted(number for _, number in log.handled) == [2, 3]


@virtual
async def test_a_handler_that_swallows_its_cancellation_does_not_hold_up_the_end() -> None:
    server = open_server()
    publish(server, "a", 0)
    begun = asyncio.Event()
    swallowed: list[int] = []

    async def handle(_: Message) -> None:
        begun.set()
        for attempt in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(attempt)

    group, _ = make(server, handle, drain_timeout=timedelta(seconds=1))
    task = asyncio.create_task(group.run(handle_signals=False))
    await begun.wait()
    with TestCase().assertLogs("millstream_coordinator.worker", "WARNING") as told:
        async with asyncio.timeout(10):
            await group.stop()
            await task

    assert swallowed == [0, 1, 2]
    assert [it.getMessage().split(": ", 1)[1] for it in told.records] == [
        "handler calls that did not end in time: 1; the next owner handles their messages"
    ]
    log = Log()
    again, _ = make(server, log, member="b")
    async with running(again):
        await server.until(lambda: len(log.handled) == 1)


async def test_a_function_in_a_thread_extends_its_deadline_and_sees_it_pass() -> None:
    server = open_server()
    publish(server, "a", 0)
    seen: list[bool] = []
    events: list[object] = []
    is_told = threading.Event()

    def handle(message: Message) -> None:
        message.extend()
        seen.append(message.is_overdue)
        is_told.wait(60)
        seen.append(message.is_overdue)

    def on_event(event: object) -> None:
        events.append(event)
        if isinstance(event, HandlerOverdue):
            is_told.set()

    group = Group(server, stream=STREAM, name=NAME, partitions=1, on_event=on_event)
    group.handler(key=RULE, deadline=timedelta(seconds=1))(handle)
    async with running(group), asyncio.timeout(60):
        await server.until(lambda: group.stats().handled == 1)

    assert seen == [False, True]
    assert sum(isinstance(event, HandlerOverdue) for event in events) == 1


@virtual
async def test_a_member_counts_what_it_does() -> None:
    server, log = open_server(), Log()
    for number in range(5):
        publish(server, f"k{number % 2}", number)
    log.fails = lambda message: message.data == b"0" and message.attempt == 1
    group, _ = make(server, log)

    async with running(group):
        await server.until(lambda: len(log.handled) == 5)
        stats = group.stats()

    assert (stats.handled, stats.retries, stats.moves_in) == (5, 1, 1)
    assert sum(stats.handler_buckets) == 6
    assert stats.partitions[0].in_flight == 0
    assert stats.partitions[0].epoch >= 1
    assert group.stats().moves_out == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_failure": "ignore"},
        {"max_attempts": 0},
        {"max_pending_bytes": 0},
        {"max_parked_keys": 0},
        {"retry_min": timedelta(0)},
        {"retry_min": timedelta(seconds=2), "retry_max": timedelta(seconds=1)},
        {"heartbeat_interval": timedelta(0)},
        {"static_grace": timedelta(seconds=-1)},
        {"drain_timeout": 30},
        {"capacity": "2"},
        {"labels": {"zone": 3}},
    ],
)
def test_a_setting_out_of_range_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* must be|above"):
        make(open_server(), Log(), **wrong)


async def yields_later(message: Message) -> AsyncIterator[None]:
    yield


def yields_at_once(message: Message) -> Iterator[None]:
    yield


class Yielding:
    async def __call__(self, message: Message) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(
    "handler",
    [yields_later, yields_at_once, Yielding(), partial(yields_later)],
    ids=["async", "plain", "object", "partial"],
)
def test_a_handler_that_yields_and_would_never_run_is_refused_at_once(handler: object) -> None:
    with pytest.raises(ValueError, match="must not yield"):
        make(open_server(), handler)


def test_what_cannot_be_called_is_no_handler() -> None:
    with pytest.raises(ValueError, match="a handler is a function, not 'bill'"):
        make(open_server(), "bill")


def test_a_batch_of_one_a_deadline_of_nothing_and_no_key_are_refused_at_once() -> None:
    group = Group(open_server(), stream=STREAM, name=NAME, partitions=1)

    with pytest.raises(ValueError, match="max_messages"):
        group.batch_handler(key=RULE, max_messages=1)
    with pytest.raises(ValueError, match="deadline"):
        group.handler(key=RULE, deadline=timedelta(0))
    with pytest.raises(ValueError, match="deadline must be a timedelta"):
        group.handler(key=RULE, deadline=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not None"):
        group.handler(key=None)  # type: ignore[arg-type]


@virtual
async def test_what_a_call_sets_in_its_context_is_gone_with_it() -> None:
    assert await _tenants(None) == await _tenants(timedelta(seconds=9)) == ["nobody"] * 6


async def _tenants(deadline: timedelta | None) -> list[str]:
    """What each of six calls of one key found in its context, having set it for itself."""
    server = open_server()
    for number in range(6):
        publish(server, "a", number)
    found: list[str] = []

    async def handle(message: Message) -> None:
        before = TENANT.get()
        TENANT.set(f"tenant {message.seq}")
        await asyncio.sleep(message.seq % 2)
        assert await asyncio.create_task(_tenant()) == f"tenant {message.seq}"
        found.append(before)

    group = Group(server, stream=STREAM, name=NAME, partitions=1)
    group.handler(key=RULE, deadline=deadline)(handle)
    async with running(group):
        await server.until(lambda: len(found) == 6)
    return found


async def _tenant() -> str:
    return TENANT.get()


async def test_a_function_in_a_thread_sees_the_context_of_the_group_and_leaves_nothing() -> None:
    server = open_server()
    for number in range(3):
        publish(server, "a", number)
    found: list[str] = []

    def handle(message: Message) -> None:
        found.append(TENANT.get())
        TENANT.set(f"tenant {message.seq}")

    group, _ = make(server, handle)
    TENANT.set("everybody")
    async with running(group):
        await server.until(lambda: len(found) == 3)

    assert found == ["everybody"] * 3


@virtual
async def test_a_call_that_is_cut_short_is_cleaned_up_in_its_own_context() -> None:
    server = open_server()
    publish(server, "a", 0)
    cleaned: list[str] = []

    async def handle(message: Message) -> None:
        token = TENANT.set(f"attempt {message.attempt}")
        try:
            await asyncio.sleep(60 if message.attempt == 1 else 0)
        finally:
            cleaned.append(TENANT.get())
            TENANT.reset(token)

    group = Group(server, stream=STREAM, name=NAME, partitions=1)
    group.handler(key=RULE, deadline=timedelta(seconds=1))(handle)
    async with running(group):
        await server.until(lambda: len(cleaned) == 2)

    assert cleaned == ["attempt 1", "attempt 2"]
