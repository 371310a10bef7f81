"""Whether what an operator asked for has come about: what ``--wait`` waits for.

An operation of `admin` returns when the wish is written; members follow within moments, or, where
handler calls are long or nobody leads, later. A `Pending` looks at the group's records and says
what is still to come; `wait` looks until nothing is. ::

    await drain(target, "worker-3")
    late = await wait(target, drained("worker-3"), timeout_s=60)
    if late is not None:
        print(late)                     # member 'worker-3' still owns partitions 0, 3
"""

import asyncio
from collections.abc import Callable, Collection

from ..errors import NotPossible, ServerUnreachable
from ..model import PartitionRecord, PartitionState
from .target import Target
from .view import GroupView

POLL_S = 0.2
_NAMED = 8
"""So many partitions are named in one line."""

Pending = Callable[[str, GroupView], str | None]
"""Of a group's name and records: what is still to come; None: it is done.

Raises NotPossible when it will not come about any more.
"""


def resized(partitions: int) -> Pending:
    """`admin.resize` to so many partitions."""

    def pending(group: str, view: GroupView) -> str | None:
        now, then = view.config.active, view.config.resize_to
        if now == partitions and then is None:
            return None
        if now != partitions and then != partitions:
            raise NotPossible(group, f"the resize to {partitions} partitions was called off")
        return f"{now} partitions, resizing to {partitions}"

    return pending


def drained(member: str) -> Pending:
    """`admin.drain` of a member."""

    def pending(group: str, view: GroupView) -> str | None:
        owned = [it for it, record in view.partitions.items() if record.owner == member]
        if not owned:
            return None
        if member in view.members and member not in view.control.draining:
            raise NotPossible(group, f"the drain of member {member!r} was taken back")
        return f"member {member!r} still owns {_listed(owned)}"

    return pending


def moved(partitions: Collection[int], member: str) -> Pending:
    """`admin.move` of partitions to a member."""

    def pending(group: str, view: GroupView) -> str | None:
        away = []
        for number in sorted(partitions):
            record = view.partitions.get(number, PartitionRecord(epoch=0))
            if record.owner != member or record.state is not PartitionState.OWNED:
                away.append(number)
        if not away:
            return None
        if any(view.control.pins.get(number) != member for number in away):
            raise NotPossible(group, f"the move of {_listed(away)} was taken back")
        if member not in view.members:
            raise NotPossible(group, f"member {member!r} is gone")
        return f"member {member!r} does not own {_listed(away)} yet"

    return pending


async def wait(target: Target, pending: Pending, *, timeout_s: float) -> str | None:
    """Look again and again until it is done: None. Else what is in the way when time is up.

    Returns at once when it will not come about any more. A server that is away may come back in
    time. Raises GroupMissing, BadRecord, PermissionMissing.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    while True:
        try:
            view = await target.view()
            late = pending(target.group, view)
            if late is None:
                return None
            if view.leader is None:
                late += ", and nobody leads the group"
        except NotPossible as error:
            return str(error)
        except ServerUnreachable as error:
            late = str(error)
        if clock() >= deadline:
            return f"not done after {timeout_s:g} s: {late}"
        await asyncio.sleep(min(POLL_S, max(0.0, deadline - clock())))


def _listed(numbers: Collection[int]) -> str:
    named = ", ".join(map(str, sorted(numbers)[:_NAMED]))
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"{'partition' if len(numbers) == 1 else 'partitions'} {named}{more}"
