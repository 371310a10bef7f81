"""Membership without a stream, in virtual time and on both servers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from millstream_coordinator import (
    ConfigMismatch,
    Membership,
    MemoryServer,
    SlotChange,
    SlotChangeKind,
    StreamUnfit,
    run_virtual,
)
from tests.helpers import require
from tests.helpers.servers import EMBEDDED, REAL, Server

GAINED, RELEASED = SlotChangeKind.GAINED, SlotChangeKind.RELEASED


def member(server: MemoryServer | str, name: str, **more: object) -> Membership:
    return Membership(server, name="g", slots=6, member=name, **more)  # type: ignore[arg-type]


async def read(members: Membership, into: list[SlotChange]) -> None:
    async for change in members.changes():
        into.append(change)  # noqa: PERF401 - what came before an end counts, too


def test_slots_are_divided_and_handed_over_with_higher_epochs() -> None:
    async def main() -> None:
        server = MemoryServer()
        first, second = member(server, "a"), member(server, "b")
        changes: list[SlotChange] = []
        async with asyncio.timeout(60), first:
            reading = asyncio.create_task(read(first, changes))
            await server.until(lambda: len(first.slots) == 6)
            epochs = first.slots
            async with second:
                await server.until(lambda: len(second.slots) == 3 and len(first.slots) == 3)
                for slot, epoch in second.slots.items():
                    assert epoch == epochs[slot] + 1
                    assert second.holds(slot, epoch)
                    assert not second.holds(slot, epochs[slot])
                    assert not first.holds(slot, epoch)
                moved = set(second.slots)
            await server.until(lambda: len(first.slots) == 6)
        await reading

        kinds = [change.kind for change in changes]
        assert kinds == [GAINED] * 6 + [RELEASED] * 3 + [GAINED] * 3 + [RELEASED] * 6
        assert {change.slot for change in changes[6:9]} == moved
        assert {change.cause for change in changes[9:12]} == {"left"}

    run_virtual(main())


def test_a_slot_is_given_away_when_it_is_flushed() -> None:
    async def main() -> None:
        server = MemoryServer()
        saved: dict[int, float] = {}

        async def save(slot: int, epoch: int) -> None:
            assert not first.holds(slot, epoch)
            await asyncio.sleep(2.0)
            saved.setdefault(slot, server.now())

        gained: dict[int, float] = {}
        first = member(server, "a", flush=save)
        second = member(
            server, "b", on_gained=lambda slot, _: gained.__setitem__(slot, server.now())
        )
        async with asyncio.timeout(120), first:
            await server.until(lambda: len(first.slots) == 6)
            async with second:
                await server.until(lambda: len(second.slots) == 3)

        assert set(gained) <= set(saved)
        assert all(gained[slot] >= saved[slot] for slot in gained)

    run_virtual(main())


def test_a_member_that_is_cut_off_holds_nothing_before_somebody_else_does() -> None:
    async def main() -> None:
        server = MemoryServer()
        first, second = member(server, "a"), member(server, "b")
        async with asyncio.timeout(60), first, second:
            await server.until(lambda: len(first.slots) == len(second.slots) == 3)
            held = dict(first.slots)
            server.disconnect("a", 5.0)
            while len(second.slots) < 6:
                for slot in set(second.slots) & set(held):
                    assert not first.holds(slot, held[slot])
                await asyncio.sleep(0.01)
            assert not any(first.holds(slot, epoch) for slot, epoch in held.items())
            await server.until(lambda: len(first.slots) == len(second.slots) == 3)

    run_virtual(main())


def test_who_reads_late_is_told_what_is_held() -> None:
    async def main() -> None:
        server = MemoryServer()
        members = member(server, "a")
        async with asyncio.timeout(60), members:
            await server.until(lambda: len(members.slots) == 6)
            seen = []
            async for change in members.changes():
                seen.append(change.slot)
                if len(seen) == 6:
                    break
            assert sorted(seen) == list(range(6))

    run_virtual(main())


def test_another_number_of_slots_is_refused() -> None:
    async def main() -> None:
        server = MemoryServer()
        async with asyncio.timeout(60), member(server, "a") as first:
            await server.until(lambda: len(first.slots) == 6)
            other = Membership(server, name="g", slots=7, member="b")
            with pytest.raises(ConfigMismatch, match="exists with 6 partitions, wanted 7"):
                await other.run(handle_signals=False)

    run_virtual(main())


@pytest.fixture(params=[EMBEDDED, pytest.param(REAL, marks=pytest.mark.real_server)])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    kind = str(request.param)
    if kind == REAL:
        require.need("nats")
    with Server(kind, tmp_path) as opened:
        yield opened.url


async def test_slots_are_divided_on_a_server(url: str) -> None:
    quick = timedelta(seconds=0.1)
    async with asyncio.timeout(20):
        async with member(url, "a", heartbeat_interval=quick) as first:
            async with member(url, "b", heartbeat_interval=quick) as second:
                while not len(first.slots) == len(second.slots) == 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            while len(first.slots) < 6:  # noqa: ASYNC110 - what a group shows is polled
                await asyncio.sleep(0.01)


async def test_replicas_that_the_server_cannot_give_are_refused(url: str) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(StreamUnfit, match=r"^JetStream cannot carry the group: replicas > 1"):
            await member(url, "a", replicas=3).run(handle_signals=False)
