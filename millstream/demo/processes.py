"""Child processes: started, made ready, hit, and never left behind.

Every child gets a pipe as standard input whose other end only the scene holds, and ends when it
ends (``--end-with-stdin``). Every child is a process group of its own in the scene's session:

* Ctrl-C in a terminal reaches the scene alone, which then ends its children in order.
* A child that is *stopped* (SIGSTOP) when the scene is killed cannot notice the end of its pipe.
  But with its parent gone its process group is orphaned, and POSIX has the kernel send an orphaned
  group with a stopped member SIGHUP and SIGCONT. With ``setsid`` instead of a group of its own the
  child would lead another session, its group would have been an orphan all along, nothing would
  change when the scene dies, and the stopped process would stay for ever.

What a child prints goes to ``<name>.log`` in the run's directory; when a child ends before it was
ready, the last line of that is the reason given.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

READY_S = 20.0
END_S = 10.0
_POLL_S = 0.005


class ChildFailed(RuntimeError):
    """A child ended, or did not get ready in time; the text names it and its last words."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name, self.what = name, what


class Child:
    """One process. ``facts`` is what its ready file said."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path) -> None:
        self.name = name
        self.ready_file = directory / f"{name}.ready"
        self.log_file = directory / f"{name}.log"
        self.facts: dict[str, Any] = {}
        self.is_stopped = False
        self.ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own commands, no shell
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended (it may be stopped)."""
        return self._process.poll() is None

    async def ready(self) -> None:
        """Wait for the ready file. Raises ChildFailed."""
        try:
            async with asyncio.timeout(READY_S):
                while not self.ready_file.exists():
                    self.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ChildFailed(self.name, f"is not ready after {READY_S:.0f} s") from None
        self.facts = msgspec.json.decode(self.ready_file.read_bytes())

    def check(self) -> None:
        """Raise ChildFailed if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise ChildFailed(self.name, f"ended with code {code}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line it printed."""
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def kill(self) -> int:
        """Send SIGKILL; returns the monotonic nanoseconds right after the system call returned."""
        os.kill(self.pid, signal.SIGKILL)
        killed_ns = time.monotonic_ns()
        self.is_stopped = False
        return killed_ns

    def stop(self) -> int:
        """Send SIGSTOP; returns the time as `kill` does."""
        os.kill(self.pid, signal.SIGSTOP)
        self.is_stopped = True
        return time.monotonic_ns()

    def resume(self) -> int:
        """Send SIGCONT; returns the time as `kill` does."""
        os.kill(self.pid, signal.SIGCONT)
        self.is_stopped = False
        return time.monotonic_ns()

    async def gone(self) -> None:
        """Wait until it has ended, for a while; then kill it."""
        deadline = time.monotonic() + END_S
        while self.is_running:
            if time.monotonic() > deadline:
                self.kill()
                deadline += END_S
            await asyncio.sleep(_POLL_S)
        self._close_pipe()

    async def terminate(self) -> None:
        """Send SIGTERM and wait: it finishes what it has under way."""
        if self.is_running:
            if self.is_stopped:
                self.resume()
            os.kill(self.pid, signal.SIGTERM)
        await self.gone()

    def destroy(self) -> None:
        """End it now and reap it, whatever it is doing; for the way out."""
        if self.is_running:
            self.kill()
        self._process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


class Family:
    """All children of the scene. Leaving the context destroys those that are left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[Child] = []
        self._watched: list[Child] = []

    def __enter__(self) -> "Family":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.destroy()

    def start(self, name: str, *arguments: str) -> Child:
        """Start ``python -m arguments…`` under a name."""
        child = Child(name, arguments, self.directory)
        self._children.append(child)
        self._watched.append(child)
        return child

    def check(self) -> None:
        """Raise ChildFailed if a child ended without being told to."""
        for child in self._watched:
            child.check()

    def dismiss(self, child: Child) -> None:
        """Stop watching over a child that was killed or told to end."""
        self._watched.remove(child)
