"""The states a group goes through, as simulated groups were seen to go through them.

The code has no table of transitions: a member's phase, a partition's state and an ownership's are
set where something happens. So the diagrams of the explanation are what some thousand simulated
groups did under faults (SEEDS). A transition that is drawn has happened; one that is possible and
never happened is missing. The test looks at some of the runs (SOME): nothing may happen in them
that is not drawn.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from typing import Any

from millstream_coordinator.errors import BadRecord
from millstream_coordinator.events import PartitionLost, PartitionRevoked
from millstream_coordinator.machine.context import Context
from millstream_coordinator.machine.group import GroupMachine, Phase
from millstream_coordinator.machine.ownership import Ownership, OwnershipState
from millstream_coordinator.model import PartitionRecord, PartitionState, decode
from tests.simulation.checkers import Checkers, Violation
from tests.simulation.world import World

SEEDS = range(3000)
SOME = range(40)
BEGIN = "[*]"

Arrow = tuple[str, str]


class Seen:
    """The transitions of one kind of thing."""

    def __init__(self) -> None:
        self.arrows: set[Arrow] = set()
        self._now: dict[Any, str] = {}

    def note(self, thing: object, state: str) -> None:
        """The thing is in this state now."""
        before = self._now.get(thing, BEGIN)
        if before != state:
            self.arrows.add((before, state))
        self._now[thing] = state

    def forget(self) -> None:
        """Another run begins."""
        self._now.clear()


def observed(seeds: range) -> dict[str, set[Arrow]]:
    """Transitions of member phases, partition states and ownerships, seen in some runs."""
    phases, ownerships, partitions = Seen(), Seen(), Seen()
    newest: dict[tuple[int, int], Ownership] = {}

    def on_phase(machine: GroupMachine, phase: Phase) -> None:
        phases.note(machine, phase.name)

    def on_state(one: Ownership, state: OwnershipState) -> None:
        newest[one.partition, one.epoch] = one
        ownerships.note(one, state.name)

    def on_event(_: Context, event: object) -> None:
        if isinstance(event, PartitionRevoked | PartitionLost):
            one = newest.pop((event.partition, event.epoch), None)
            if one is not None:
                end = "given away" if isinstance(event, PartitionRevoked) else "lost"
                ownerships.note(one, end)

    def on_write(_: Checkers, client: object, key: str, value: bytes | None) -> None:
        if value is not None and key.startswith("part."):
            with suppress(BadRecord):
                record = decode(PartitionRecord, value)
                partitions.note((key, record.level), record.state.value)

    with ExitStack() as stack:
        stack.enter_context(_attribute(GroupMachine, "phase", on_phase))
        stack.enter_context(_attribute(Ownership, "state", on_state))
        stack.enter_context(_calls(Context, "tell", on_event))
        stack.enter_context(_calls(Checkers, "wrote", on_write))
        for seed in seeds:
            for seen in (phases, ownerships, partitions):
                seen.forget()
            newest.clear()
            world = World(seed)
            if not world.has_stream:
                continue  # its epochs may come again when its bucket is lost: who is who is unclear
            with suppress(Violation):  # the simulation's own tests tell that
                world.run()
    return {
        "member": phases.arrows,
        "partition": partitions.arrows,
        "ownership": ownerships.arrows,
    }


def drawn(diagram: str) -> set[Arrow]:
    """The transitions of a state diagram."""
    return {(one, other) for one, other in re.findall(r"^    (\S+) --> (\S+)$", diagram, re.M)}


def named(arrows: set[Arrow]) -> set[Arrow]:
    """Transitions with the names that states have in a diagram."""
    return {(_name(one), _name(other)) for one, other in arrows}


def mermaid(arrows: set[Arrow], order: list[str]) -> str:
    """A state diagram; ``order`` is that of the states."""
    place = {name: number for number, name in enumerate([BEGIN, *order])}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [
        f"    {_name(one)} --> {_name(other)}"
        for one, other in sorted(arrows, key=lambda it: (place[it[0]], place[it[1]]))
    ]
    return "\n".join([*lines, "```"])


def diagrams() -> dict[str, str]:
    """The three diagrams."""
    arrows = observed(SEEDS)
    return {
        "member": mermaid(arrows["member"], _names(Phase)),
        "partition": mermaid(arrows["partition"], [it.value for it in PartitionState]),
        "ownership": mermaid(arrows["ownership"], [*_names(OwnershipState), "given away", "lost"]),
    }


def _names(kind: type[Enum]) -> list[str]:
    return [it.name for it in kind]


def _name(state: str) -> str:
    return state if state == BEGIN else re.sub(r"\W", "_", state)


@contextmanager
def _attribute(kind: type, name: str, told: Callable[[Any, Any], None]) -> Iterator[None]:
    def setattr_(self: object, attribute: str, value: object) -> None:
        object.__setattr__(self, attribute, value)
        if attribute == name:
            told(self, value)

    kind.__setattr__ = setattr_  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del kind.__setattr__


@contextmanager
def _calls(kind: type, name: str, told: Callable[..., None]) -> Iterator[None]:
    original = getattr(kind, name)

    @functools.wraps(original)
    def called(*arguments: Any) -> object:
        told(*arguments)
        return original(*arguments)

    setattr(kind, name, called)
    try:
        yield
    finally:
        setattr(kind, name, original)
