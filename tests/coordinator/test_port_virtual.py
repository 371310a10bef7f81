"""A whole group in virtual time: no server, no waiting, the same run for the same seed."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from millstream_coordinator import Group, MemoryServer, Message, Retention, Stalled, run_virtual
from millstream_coordinator.events import GroupEvent, describe
from millstream_coordinator.virtual import WALL_START_NS, VirtualLoop

Handler = Callable[[Message], Coroutine[None, None, None]]


class Crew:
    """Members of one group on one `MemoryServer`."""

    def __init__(self, server: MemoryServer, handler: Handler) -> None:
        self.server = server
        self.handler = handler
        self.groups: dict[str, Group] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.events: list[str] = []

    def join(self, name: str, **more: object) -> None:
        def note(event: GroupEvent) -> None:
            self.events.append(f"{self.server.now():.6f} {name} {describe(event)}")

        given: dict[str, object] = {"stream": "S", "name": "g", "partitions": 4, **more}
        group = Group(self.server, member=name, on_event=note, **given)  # type: ignore[arg-type]
        group.handler(key="s.*.{key}")(self.handler)
        self.groups[name] = group
        self.tasks[name] = asyncio.get_running_loop().create_task(
            group.run(handle_signals=False), name=name
        )

    def crash(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        del self.groups[name]

    @property
    def owned(self) -> dict[str, list[int]]:
        return {name: sorted(group.partitions) for name, group in self.groups.items()}


@asynccontextmanager
async def crew(server: MemoryServer, handler: Handler, *names: str) -> AsyncIterator[Crew]:
    """Let members run beside the block; an hour of virtual time must do for it."""
    made = Crew(server, handler)
    async with asyncio.timeout(3600):
        for name in names:
            made.join(name)
        try:
            yield made
        finally:
            await asyncio.gather(*(group.stop() for group in made.groups.values()))
            await asyncio.gather(*made.tasks.values())


def fill(server: MemoryServer, count: int, retention: Retention = Retention.LIMITS) -> None:
    server.add_stream("S", retention)
    for number in range(count):
        server.publish("S", f"s.{number % 4}.k{number % 8}", str(number).encode())


# ---- the loop ------------------------------------------------------------------------------------


def test_a_year_passes_in_no_time_and_timers_keep_their_order() -> None:
    async def main() -> list[str]:
        done: list[str] = []

        async def sleep(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            done.append(f"{name} at {asyncio.get_running_loop().time():.0f}")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sleep("year", 365 * 86400))
            tasks.create_task(sleep("second", 1))
            tasks.create_task(sleep("day", 86400))
        return done

    assert run_virtual(main()) == ["second at 1", "day at 86400", "year at 31536000"]


def test_what_waits_for_nothing_is_said_to_have_stalled() -> None:
    async def main() -> None:
        await asyncio.sleep(2)
        await asyncio.Event().wait()

    with pytest.raises(Stalled, match=r"at 2\.000 s"):
        run_virtual(main())


def test_a_timeout_runs_out_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(3600)


def test_a_plain_function_is_called_on_the_loop_in_no_time() -> None:
    async def main() -> tuple[int, float]:
        found = await asyncio.to_thread(lambda: 6 * 7)
        return found, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (42, 0.0)


def test_what_a_plain_function_raises_comes_where_it_is_awaited() -> None:
    async def main() -> None:
        await asyncio.to_thread(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        run_virtual(main())


def test_the_wall_clock_goes_with_the_virtual_one() -> None:
    async def main() -> int:
        await asyncio.sleep(1.5)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.wall_ns()

    assert run_virtual(main()) == WALL_START_NS + 1_500_000_000


# ---- a group -------------------------------------------------------------------------------------


@pytest.mark.parametrize("retention", [Retention.LIMITS, Retention.WORK_QUEUE])
def test_every_message_is_handled_once_in_the_order_of_its_key(retention: Retention) -> None:
    async def main() -> dict[bytes | None, list[int]]:
        server = MemoryServer(seed=1)
        fill(server, 40, retention)
        seen: dict[bytes | None, list[int]] = {}

        async def handle(message: Message) -> None:
            await asyncio.sleep(1)
            seen.setdefault(message.key, []).append(int(message.data))

        async with crew(server, handle, "a", "b"):
            await server.until(lambda: sum(map(len, seen.values())) == 40)
        return seen

    assert run_virtual(main()) == {f"k{key}".encode(): list(range(key, 40, 8)) for key in range(8)}


def test_the_partitions_of_a_crashed_member_go_to_the_others() -> None:
    async def main() -> tuple[dict[str, list[int]], dict[str, list[int]], list[int]]:
        server = MemoryServer(seed=2)
        fill(server, 16)
        seen: list[int] = []

        async def handle(message: Message) -> None:
            await asyncio.sleep(1)
            seen.append(int(message.data))

        async with crew(server, handle, "a", "b") as members:
            await server.until(lambda: all(len(own) == 2 for own in members.owned.values()))
            before = members.owned
            await server.until(lambda: len(seen) >= 4)
            members.crash("b")
            await server.until(lambda: len(set(seen)) == 16)
            after = members.owned
        return before, after, seen

    before, after, seen = run_virtual(main())

    assert sorted(before["a"] + before["b"]) == [0, 1, 2, 3]
    assert after == {"a": [0, 1, 2, 3]}
    assert set(seen) == set(range(16))


def test_redelivery_calls_no_handler_twice() -> None:
    async def main() -> list[int]:
        server = MemoryServer(seed=3)
        fill(server, 8)
        seen: list[int] = []

        async def handle(message: Message) -> None:
            await asyncio.sleep(10)
            seen.append(int(message.data))

        async with crew(server, handle, "a") as members:
            await server.until(lambda: len(members.owned["a"]) == 4)
            await asyncio.sleep(5)
            server.redeliver("S")
            await server.until(lambda: len(seen) == 8)
            await asyncio.sleep(60)
        return seen

    assert sorted(run_virtual(main())) == list(range(8))


def test_a_handler_that_takes_longer_than_ack_wait_keeps_its_message() -> None:
    async def main() -> int:
        server = MemoryServer(seed=3)
        fill(server, 1)
        calls = 0

        async def handle(message: Message) -> None:
            nonlocal calls
            calls += 1
            await asyncio.sleep(2 * 3600)

        made = Crew(server, handle)
        slow = {"heartbeat_interval": timedelta(minutes=1), "heartbeat_timeout": timedelta(hours=1)}
        made.join("a", partitions=1, **slow)
        await asyncio.sleep(2.1 * 3600)
        await made.groups["a"].stop()
        await made.tasks["a"]
        return calls

    assert run_virtual(main()) == 1


def test_a_cut_connection_comes_back_and_moves_nothing() -> None:
    async def main() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        server = MemoryServer(seed=4)
        fill(server, 0)

        async def handle(message: Message) -> None: ...

        async with crew(server, handle, "a", "b") as members:
            await server.until(lambda: all(len(own) == 2 for own in members.owned.values()))
            before = members.owned
            server.disconnect("b", 0.05)
            await asyncio.sleep(10)
            after = members.owned
        return before, after

    before, after = run_virtual(main())

    assert before == after


def test_a_lost_bucket_is_made_again() -> None:
    async def main() -> tuple[int, int]:
        server = MemoryServer(seed=5)
        fill(server, 8)
        seen: list[int] = []

        async def handle(message: Message) -> None:
            seen.append(int(message.data))

        async with crew(server, handle, "a") as members:
            await server.until(lambda: len(seen) == 8)
            before = members.groups["a"].partitions[0]
            server.delete_bucket("g")
            await server.until(lambda: members.groups["a"].partitions.get(0, 0) > before)
            after = members.groups["a"].partitions[0]
        return before, after

    before, after = run_virtual(main())

    assert after > before


def test_a_static_member_that_is_back_in_time_moves_nothing() -> None:
    async def main() -> list[str]:
        server = MemoryServer(seed=6)
        fill(server, 0)

        async def handle(message: Message) -> None: ...

        async with crew(server, handle) as members:
            grace = timedelta(seconds=60)
            members.join("a", static_grace=grace)
            members.join("b", static_grace=grace)
            await server.until(lambda: all(len(own) == 2 for own in members.owned.values()))
            owned = members.owned
            members.crash("b")
            await asyncio.sleep(30)
            members.join("b", static_grace=grace)
            await server.until(lambda: members.owned == owned)
            return members.events

    events = run_virtual(main())

    assert any("member dead" in event for event in events)


async def _eventful(seed: int | None) -> list[str]:
    server = MemoryServer(seed=seed)
    fill(server, 60)
    failures = iter(range(60))

    async def handle(message: Message) -> None:
        await asyncio.sleep(0.05)
        if next(failures, 60) % 7 == 3:
            raise ValueError("now and then")

    async with crew(server, handle, "a", "b", "c") as members:
        await asyncio.sleep(3)
        members.crash("b")
        await asyncio.sleep(3)
        members.join("d")
        server.disconnect("a")
        await asyncio.sleep(10)
        server.delete_bucket("g")
        await asyncio.sleep(20)
    return members.events


def test_the_same_seed_is_the_same_run_to_every_event() -> None:
    first = run_virtual(_eventful(11))

    again = run_virtual(_eventful(11))

    assert len(first) > 30
    assert first == again


def test_another_seed_is_another_run() -> None:
    assert run_virtual(_eventful(11)) != run_virtual(_eventful(12))


def test_without_a_seed_runs_are_equal_as_well() -> None:
    assert run_virtual(_eventful(None)) == run_virtual(_eventful(None))


def test_ten_minutes_of_a_group_waits_for_no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the way sleeps: the selector is never asked to wait."""
    waited: list[float | None] = []
    select = selectors.SelectSelector.select

    def spy(selector: selectors.SelectSelector, timeout: float | None = None) -> object:
        waited.append(timeout)
        return select(selector, timeout)

    monkeypatch.setattr(selectors.SelectSelector, "select", spy)

    async def main() -> float:
        server = MemoryServer()
        fill(server, 4)

        async def handle(message: Message) -> None: ...

        async with crew(server, handle, "a"):
            await asyncio.sleep(600)
        return server.now()

    assert run_virtual(main()) >= 600
    assert set(waited) == {0}
