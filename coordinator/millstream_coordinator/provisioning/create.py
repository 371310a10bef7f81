"""Make what a description asks for: a whole `plan`, carried out one harmless step after another.

`apply` refuses a plan with anything in it that cannot be done, or that the user may not do, before
it changes anything. The same plan made and applied again goes on where it stopped; positions that
were written stay. ``cfg`` is written by compare-and-set where none is.

**What the server echoes is compared** with what was asked for: servers before 2.12 take fields they
do not know and drop them (seen on 2.10 and 2.11).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from nats.aio.client import Client

from .. import naming
from ..errors import ConfigMismatch, StreamUnfit
from ..jetstream.api import (
    API_PREFIX,
    MADE_S,
    STREAM_NAME_IN_USE,
    WRONG_LAST_SEQUENCE,
    Api,
    RequestFailed,
)
from ..jetstream.keys import make_room
from ..jetstream.permissions import Grant, Needs, check
from ..model import ConfigRecord, PartitionRecord, decode, encode
from ..partitioning.difference import (
    dropped,
    start_of,
)
from .plan import Action, Plan, PlanRefused, Step, StepKind
from .server import TIMEOUT_S
from .start import forget_start


async def apply(
    connection: Client,
    plan: Plan,
    *,
    prefix: str = API_PREFIX,
    on_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Carry a plan out; ``on_step`` is told each step that was done.

    Raises PlanRefused, before anything is changed or when somebody else was faster; ConfigMismatch
    when the group came to be with another configuration meanwhile; StreamUnfit when the server
    refuses a stream or drops a field of it; PermissionMissing, before anything is changed;
    ServerUnreachable.
    """
    refused = [step for step in plan.steps if step.action is Action.REFUSE]
    if refused:
        raise PlanRefused(refused[0], len(refused) - 1)
    api = Api(connection, TIMEOUT_S, prefix)
    steps = [step for step in plan.steps if step.action is not Action.KEEP]
    grants = tuple(grant for step in steps for grant in _grants(api, step))
    await check(connection, Needs(group=None, publish=grants), TIMEOUT_S)
    for step in steps:
        try:
            await _carry_out(api, step)
        except RequestFailed as error:
            if error.code:
                raise StreamUnfit(step.name, error.detail) from error
            raise api.failure(error) from error
        on_step(step)
    for step in steps:
        if step.kind is StepKind.STREAM and step.action is Action.CREATE and start_of(step.body):
            try:
                await forget_start(api, step.name)
            except RequestFailed as error:
                raise api.failure(error) from error


def _stream_call(step: Step) -> str:
    verb = "CREATE" if step.action is Action.CREATE else "UPDATE"
    return f"STREAM.{verb}.{step.body['name']}"


def _grants(api: Api, step: Step) -> Iterable[Grant]:
    """What the user must be allowed for a step."""
    match step.kind:
        case StepKind.STREAM | StepKind.BUCKET:
            yield Grant.of_call(api.subject(_stream_call(step)))
        case StepKind.START:
            for partition in step.floors:
                yield _key_grant(api, step, naming.partition_key(partition))
        case StepKind.CONFIG:
            yield _key_grant(api, step, naming.CONFIG_KEY)


def _key_grant(api: Api, step: Step, key: str) -> Grant:
    return Grant.of_store(api.key_subject(naming.bucket(step.name), key))


async def _carry_out(api: Api, step: Step) -> None:
    match step.kind:
        case StepKind.STREAM | StepKind.BUCKET:
            try:
                answer = await api.call(_stream_call(step), step.body)
            except RequestFailed as error:
                if step.kind is StepKind.BUCKET and error.code == STREAM_NAME_IN_USE:
                    return  # a member that joined meanwhile made it
                raise
            if step.kind is StepKind.BUCKET and not step.body.get("allow_msg_ttl"):
                await make_room(api, naming.bucket(step.name), answer)
            lost = dropped(step.body, answer["config"])
            if lost:
                reason = f"the server did not take over {', '.join(lost)}: is it too old?"
                raise StreamUnfit(step.body["name"], reason)
        case StepKind.START:
            for partition, (epoch, floor) in step.floors.items():
                assert step.record is not None
                record = PartitionRecord(epoch=epoch, floor=floor, level=step.record.level)
                key = naming.partition_key(partition)
                await _write(api, step, key, encode(record), 0)
        case StepKind.CONFIG:
            assert step.record is not None
            await _write(api, step, naming.CONFIG_KEY, encode(step.record), step.revision)


async def _write(api: Api, step: Step, key: str, value: bytes, revision: int) -> None:
    """Write a key if it is as the plan saw it."""
    bucket = naming.bucket(step.name)
    try:
        await api.write(bucket, key, value, revision, {}, made_s=MADE_S)
    except RequestFailed as error:
        if error.code not in WRONG_LAST_SEQUENCE:
            raise
        entry = await api.read(bucket, key)
        if entry.value == value:
            return
        if key == naming.CONFIG_KEY and entry.value is not None:
            found = decode(ConfigRecord, entry.value)
            raise ConfigMismatch(step.name, str(step.record), str(found)) from error
        reason = f"{key!r} was written by somebody else meanwhile: plan again"
        raise PlanRefused(replace(step, action=Action.REFUSE, reason=reason), 0) from error
