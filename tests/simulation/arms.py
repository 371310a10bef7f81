"""Safety rules turned off, one at a time: the checkers must notice, or they prove nothing.

An arm is pieces of functions' sources and what stands there instead. A function is compiled anew
from the changed source and put in the place of the real one while its rule is off; an arm whose
text is not there is refused.
"""

import __future__

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from millstream_coordinator.machine import (
    context,
    handing,
    handoff,
    lanes,
    leader,
    owner,
    ownership,
    parking,
    reconciler,
    resize,
)
from millstream_coordinator.memory import buckets, letters
from millstream_coordinator.ports import DeleteConsumer
from millstream_coordinator.sinks import mark

from . import checkers
from .checkers import Violation
from .crashes import PausingWorld
from .world import World

MODULES = (
    *(buckets, checkers, context, handing, handoff, lanes, leader, letters, mark, owner),
    *(ownership, parking, reconciler, resize),
)


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``function`` of ``module``, ``new`` stands in place of ``old``."""

    module: ModuleType
    function: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Arm:
    """A rule that is off."""

    name: str
    edits: tuple[Edit, ...]
    make: Callable[[int], World] = World
    """The run of a seed in which it shows."""


ARMS = (
    Arm("epoch check at the sink", (Edit(mark, "judge", "epoch < mark.epoch", "False"),)),
    Arm("sequence check at the sink", (Edit(mark, "judge", "seq <= mark.seq", "False"),)),
    Arm(
        "self-fence",
        (
            Edit(
                context,
                "Context.is_fenced",
                "self.now - self.confirmed_at > self.settings.timing.heartbeat_timeout_s",
                "self.confirmed_at < 0",
            ),
            Edit(
                owner,
                "Owner.next_deadline",
                "self.context.confirmed_at + timeout_s + 1e-6",
                "NEVER",
            ),
        ),
    ),
    Arm(
        "acks held while in doubt",
        (
            Edit(handing, "Handing.complete", "one.is_held or self._owner.is_fenced", "False"),
            Edit(
                handing,
                "Handing.send_acks",
                "is_fenced = self.context.is_fenced",
                "is_fenced = False",
            ),
            Edit(handing, "Handing.send_acks", "is_fenced or one.is_held", "False"),
        ),
    ),
    Arm(
        "done-set",
        (
            Edit(
                handoff,
                "_read_progress",
                "one.inherit(position.floor, position.done, position.children)",
                "one.inherit(position.floor, (), ())",
            ),
        ),
    ),
    Arm(
        "lowest floor of a merge",
        (Edit(resize, "_merge", "min(one.floor", "max(one.floor"),),
    ),
    Arm(
        "parked keys known before the first pull",
        (
            Edit(
                parking,
                "claim",
                "claimed = replace(record, epoch=one.epoch)",
                "claimed = ParkedRecord(epoch=one.epoch)",
            ),
        ),
    ),
    Arm(
        "pause",
        (Edit(ownership, "Ownership.is_serving", "and not self.is_paused", ""),),
    ),
    Arm(
        "stop",
        (Edit(ownership, "Ownership.is_serving", "and not self.is_stopped", ""),),
    ),
    Arm(
        "one letter per message",
        (
            Edit(
                letters,
                "MemoryLetters._store",
                "before[-1].message.seq < message.seq",
                "True",
            ),
        ),
    ),
    Arm(
        "order of lanes",
        (Edit(lanes, "Lanes.add", "lane.append(message)", "lane.insert(1, message)"),),
    ),
    Arm(
        "reconciler",
        (Edit(reconciler, "Reconciler._look_at_consumers", "if found is None:", "if True:"),),
    ),
    Arm(
        "second read of part.<n>",
        (
            Edit(
                handoff,
                "_serve_once",
                "    if not (yield from context.refresh(one.partition)):\n        return False\n"
                "    if not owner.is_mine(one):\n        if context.has_stream:",
                "    if False:\n        if context.has_stream:",
            ),
        ),
        # It takes a pause at the right moment, which chance rarely makes.
        lambda seed: PausingWorld(seed, "kill", DeleteConsumer, is_after=True),
    ),
    Arm(
        "epoch + 1 on taking away",
        (Edit(handoff, "_given_to", "epoch=record.epoch + 1", "epoch=record.epoch"),),
    ),
    Arm(
        "compare-and-set",
        (Edit(buckets, "MemoryBuckets._write", "revision != command.revision", "False"),),
    ),
    Arm(
        "holes in deliveries",
        (
            Edit(
                ownership,
                "Ownership.deliver",
                "message.consumer_seq != self.consumer_seq + 1",
                "False",
            ),
        ),
    ),
)


@contextmanager
def off(arm: Arm) -> Iterator[None]:
    """Turn a rule off for a while."""
    edits: dict[tuple[ModuleType, str], list[Edit]] = {}
    for edit in arm.edits:
        edits.setdefault((edit.module, edit.function), []).append(edit)
    with ExitStack() as stack:
        for (module, function), some in edits.items():
            stack.enter_context(_edited(module, function, some))
        yield


@contextmanager
def _edited(module: ModuleType, function: str, edits: list[Edit]) -> Iterator[None]:
    holder: Any = module
    *outer, name = function.split(".")
    for one in outer:
        holder = getattr(holder, one)
    real = inspect.getattr_static(holder, name)
    broken = _changed(real.fget if isinstance(real, property) else real, edits)
    holders = [holder]
    if not outer:  # whoever imported the function has a name of its own for it
        holders = [one for one in MODULES if getattr(one, name, None) is real]
    for one in holders:
        setattr(one, name, property(broken) if isinstance(real, property) else broken)
    try:
        yield
    finally:
        for one in holders:
            setattr(one, name, real)


def _changed(function: Any, edits: list[Edit]) -> Any:
    source = textwrap.dedent(inspect.getsource(function))
    for edit in edits:
        if source.count(edit.old) != 1:
            raise ValueError(f"{edit.old!r} is not once in {edit.function}")
        source = source.replace(edit.old, edit.new)
    flags = __future__.annotations.compiler_flag
    code = compile(source, f"<{function.__name__}>", "exec", flags)
    scope: dict[str, Any] = {}
    exec(code, function.__globals__, scope)
    made = scope[function.__name__]
    return made.fget if isinstance(made, property) else made


def first_failing(arm: Arm, seeds: int) -> tuple[int, str] | None:
    """The first seed at which the checkers notice, and what they say."""
    with off(arm):
        for seed in range(seeds):
            try:
                arm.make(seed).run()
            except Violation as violation:
                return seed, str(violation)
    return None
