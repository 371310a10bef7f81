"""What a running bridge tells people: a line every few seconds, one that moves on a terminal."""

import asyncio
import sys
from contextlib import suppress

import typer

from .runner import Bridge

LINE_EVERY_S = 5.0
_MOVE_EVERY_S = 0.25


async def progress_lines(bridge: Bridge) -> None:
    """Report to stderr until cancelled, or until nobody reads it any more: the run goes on."""
    with suppress(OSError):
        await _report(bridge)


async def _report(bridge: Bridge) -> None:
    is_terminal = sys.stderr.isatty()
    every_s = _MOVE_EVERY_S if is_terminal else LINE_EVERY_S
    before = 0
    try:
        while True:
            await asyncio.sleep(every_s)
            now = bridge.progress.records
            rate = (now - before) / every_s
            line = (
                f"bridge {bridge.route.topic} → {bridge.route.stream}:"
                f" {now} stored, {rate:,.0f}/s, {bridge.progress.lag} behind,"
                f" {bridge.progress.sessions} sessions"
            )
            if is_terminal:
                typer.echo(f"\r{line}\x1b[K", err=True, nl=False)
            elif now != before:
                typer.echo(line, err=True)
            before = now
    finally:
        if is_terminal:
            typer.echo("", err=True)
