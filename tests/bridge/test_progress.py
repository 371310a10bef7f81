"""The lines a running bridge prints."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
import typer

from millstream_bridge import Bridge
from millstream_bridge.moving import progress


async def test_a_reader_that_went_away_ends_the_lines_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody_reads(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(typer, "echo", nobody_reads)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.001)
    figures = SimpleNamespace(records=7, lag=0, sessions=1)
    route = SimpleNamespace(topic="t", stream="S")
    bridge = cast(Bridge, SimpleNamespace(progress=figures, route=route))

    async with asyncio.timeout(10):
        await progress.progress_lines(bridge)
