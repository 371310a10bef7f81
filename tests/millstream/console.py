"""Run commands as a user does, and take their output apart."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.client import Client

MILLSTREAM = (sys.executable, "-m", "millstream")
TIMEOUT_S = 30.0
TIME_OF_DAY = re.compile(r"^\d\d:\d\d:\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class Finished:
    """A command's end. ``said`` is standard error without the times of day."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return TIME_OF_DAY.sub("", self.err)


async def run(*command: str, given: bytes | None = None) -> Finished:
    """Run a command to its end, with ``given`` (or nothing at all) as standard input."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return await _end(process, given)


async def millstream(*arguments: str, given: bytes | None = None) -> Finished:
    """``run`` for the command under test."""
    return await run(*MILLSTREAM, *arguments, given=given)


class Listener:
    """A command that runs until it has what it wants, such as ``sub --count 2``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def finished(self) -> Finished:
        """Wait for its end."""
        return await _end(self.process, None)


@asynccontextmanager
async def listening(client: Client, probe: str, *command: str) -> AsyncIterator[Listener]:
    """Start a command that subscribes, and wait until ``probe``, a subject of it, is heard.

    It receives exactly one message for that, a request with the body ``probe``.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not await _is_heard(client, probe):  # noqa: ASYNC110  nothing tells us
                await asyncio.sleep(0.02)
        yield Listener(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _is_heard(client: Client, subject: str) -> bool:
    """That nobody hears it is said before a PING is answered that was sent behind it."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    await client.publish(subject, b"probe", reply=inbox)
    for _ in range(2):  # nats-py writes the first one before what it has not sent yet
        await client.flush()
    answer = await answers.next_msg() if answers.pending_msgs else None
    await answers.unsubscribe()
    return answer is None or (answer.headers or {}).get("Status") != "503"


async def _end(process: asyncio.subprocess.Process, given: bytes | None) -> Finished:
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(given)
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())
