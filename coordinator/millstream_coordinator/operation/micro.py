"""The coordinator as a NATS micro service: ``nats micro ls``, and each command a plain request.

Service ``millstream-coordinator``. Every endpoint is a request to ``millstream.coordinator.<name>``
with a JSON object; one of the running coordinators answers (queue group ``q``). The answer is the
document the command line prints with ``--json``. Any client in any language can ask::

    nats request millstream.coordinator.pause '{"group": "delays", "partitions": [3]}'

======================= ========================================================== ================
request                 fields (``group`` first in all but ``ls``)                 needs ``yes``
======================= ========================================================== ================
``ls``
``describe``
``members``
``lag``
``events``
``pause``               partitions, dry_run
``resume``              partitions, skip, dry_run
``drain``               member, undo, dry_run
``move``                partitions, to (null: unpin), dry_run
``resize``              partitions (a number), dry_run                             yes
``reset``               to, partitions; or positions {"0": "sequence:5"}; dry_run  yes
``delete``              dead_letters, work_stream, dry_run                         yes
``dlq.ls``              partition, key, limit
``dlq.show``            letter
``dlq.replay``          letters, partition, key, all, dry_run
``dlq.drop``            letters, partition, key, all, dry_run                      yes
======================= ========================================================== ================

What cannot be undone is done with ``"yes": true`` only. An error is an empty answer with the
headers of the micro protocol: ``Nats-Service-Error`` says in one line what is wrong,
``Nats-Service-Error-Code`` is 400 (the request is wrong), 404 (no such group, member, partition,
letter or stream), 409 (it does not fit the group as it is, or others write), 403 (this coordinator
lacks a permission) or 503 (JetStream does not answer).

Who may publish to ``millstream.coordinator.>`` may do all of this: give that to operators only.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, TypeVar

import msgspec
import nats.micro
from nats.aio.client import Client
from nats.micro.request import Request, ServiceError
from nats.micro.service import EndpointConfig, ServiceConfig

from ..errors import (
    BadName,
    GroupError,
    GroupMissing,
    LetterMissing,
    MemberMissing,
    PartitionMissing,
    PermissionMissing,
    ServerUnreachable,
    StreamMissing,
)
from ..naming import REQUESTS
from ..partitioning.topic import Start
from . import admin, letters
from .admin import Outcome
from .history import read_history
from .letters import Choice, list_letters, read_letter
from .overview import list_groups, read_overview
from .positions import reset
from .service import Service
from .target import Target

NAME = "millstream-coordinator"

Document = Mapping[str, Any]


class _Ask(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request about a group has."""

    group: str


class _Change(_Ask, kw_only=True):
    dry_run: bool = False


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Pause(_Change, kw_only=True):
    partitions: list[int] | None = None


class _Resume(_Pause, kw_only=True):
    skip: bool = False


class _Drain(_Change, kw_only=True):
    member: str
    undo: bool = False


class _Move(_Change, kw_only=True):
    partitions: list[int]
    to: str | None


class _Grave(_Change, kw_only=True):
    """What cannot be undone."""

    yes: bool = False


class _Resize(_Grave, kw_only=True):
    partitions: int


class _Reset(_Grave, kw_only=True):
    to: str | None = None
    partitions: list[int] | None = None
    positions: dict[int, str] | None = None


class _Delete(_Grave, kw_only=True):
    dead_letters: bool = False
    work_stream: bool = False


class _Letters(_Ask, kw_only=True):
    partition: int | None = None
    key: str | None = None
    limit: int | None = 100


class _Letter(_Ask, kw_only=True):
    letter: int


class _Choice(_Change, kw_only=True):
    letters: list[int] = []
    partition: int | None = None
    key: str | None = None
    all: bool = False

    def choice(self) -> Choice:
        is_chosen = bool(self.letters) or self.key is not None or self.partition is not None
        if is_chosen == self.all:
            raise ValueError("say which: letters, key, partition, or all")
        return Choice(seqs=tuple(self.letters), partition=self.partition, key=self.key)


class _Drop(_Choice, kw_only=True):
    yes: bool = False


A = TypeVar("A", bound=msgspec.Struct)


class Micro:
    """The endpoints of one running coordinator."""

    def __init__(self, connection: Client, service: Service) -> None:
        self._connection = connection
        self._service = service

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Answer while the block runs; gives the service's name."""
        config = ServiceConfig(
            name=NAME,
            version=version("millstream"),
            description="Partitioned consumer groups: look at them, change them.",
        )
        endpoints: tuple[tuple[str, type[Any], Callable[[Any], Awaitable[Document]]], ...] = (
            ("ls", _Nothing, self._ls),
            ("describe", _Ask, self._describe),
            ("members", _Ask, self._members),
            ("lag", _Ask, self._lag),
            ("events", _Ask, self._events),
            ("pause", _Pause, self._pause),
            ("resume", _Resume, self._resume),
            ("drain", _Drain, self._drain),
            ("move", _Move, self._move),
            ("resize", _Resize, self._resize),
            ("reset", _Reset, self._reset),
            ("delete", _Delete, self._delete),
            ("dlq.ls", _Letters, self._letters),
            ("dlq.show", _Letter, self._letter),
            ("dlq.replay", _Choice, self._replay),
            ("dlq.drop", _Drop, self._drop),
        )
        micro = await nats.micro.add_service(self._connection, config)
        try:
            for name, kind, answer in endpoints:
                await micro.add_endpoint(
                    EndpointConfig(
                        name=name.replace(".", "-"),
                        subject=f"{REQUESTS}.{name}",
                        handler=_handler(kind, answer),
                    )
                )
            await self._connection.flush()
            yield NAME
        finally:
            if not self._connection.is_closed:
                await micro.stop()

    def _target(self, ask: _Ask) -> Target:
        return self._service.target(ask.group)

    # ---- looking ----

    async def _ls(self, _: _Nothing) -> Document:
        prefix = self._service.settings.api_prefix
        groups = [asdict(it) for it in await list_groups(self._connection, prefix=prefix)]
        return {"schema": f"{REQUESTS}.ls/1", "groups": groups}

    async def _describe(self, ask: _Ask) -> Document:
        return (await read_overview(self._target(ask))).as_json()

    async def _members(self, ask: _Ask) -> Document:
        return (await read_overview(self._target(ask))).members_json()

    async def _lag(self, ask: _Ask) -> Document:
        return (await read_overview(self._target(ask), listen=False)).lag_json()

    async def _events(self, ask: _Ask) -> Document:
        events = await read_history(self._target(ask))
        return {"schema": f"{REQUESTS}.events/1", "group": ask.group, "events": events}

    async def _letters(self, ask: _Letters) -> Document:
        choice = Choice(partition=ask.partition, key=ask.key)
        return (await list_letters(self._target(ask), choice, limit=ask.limit)).as_json()

    async def _letter(self, ask: _Letter) -> Document:
        letter = await read_letter(self._target(ask), ask.letter)
        schema = f"{REQUESTS}.dlq.show/1"
        return {"schema": schema, "group": ask.group, **letter.as_json(with_body=True)}

    # ---- changing ----

    async def _pause(self, ask: _Pause) -> Document:
        return _told(
            await admin.pause(self._target(ask), partitions=ask.partitions, dry_run=ask.dry_run)
        )

    async def _resume(self, ask: _Resume) -> Document:
        target = self._target(ask)
        return _told(
            await admin.resume(
                target, partitions=ask.partitions, skip=ask.skip, dry_run=ask.dry_run
            )
        )

    async def _drain(self, ask: _Drain) -> Document:
        operation = admin.undrain if ask.undo else admin.drain
        return _told(await operation(self._target(ask), ask.member, dry_run=ask.dry_run))

    async def _move(self, ask: _Move) -> Document:
        target = self._target(ask)
        if ask.to is None:
            return _told(await admin.unpin(target, ask.partitions, dry_run=ask.dry_run))
        return _told(await admin.move(target, ask.partitions, ask.to, dry_run=ask.dry_run))

    async def _resize(self, ask: _Resize) -> Document:
        _check_yes(ask.yes, ask.dry_run)
        return _told(await admin.resize(self._target(ask), ask.partitions, dry_run=ask.dry_run))

    async def _reset(self, ask: _Reset) -> Document:
        _check_yes(ask.yes, ask.dry_run)
        if (ask.to is None) == (ask.positions is None):
            raise ValueError("say either to or positions")
        start: Start | dict[int, Start]
        if ask.to is not None:
            start = Start.parse(ask.to)
        else:
            start = {number: Start.parse(it) for number, it in (ask.positions or {}).items()}
        target = self._target(ask)
        return _told(await reset(target, start, partitions=ask.partitions, dry_run=ask.dry_run))

    async def _delete(self, ask: _Delete) -> Document:
        _check_yes(ask.yes, ask.dry_run)
        return _told(
            await admin.delete(
                self._target(ask),
                with_letters=ask.dead_letters,
                with_work=ask.work_stream,
                dry_run=ask.dry_run,
            )
        )

    async def _replay(self, ask: _Choice) -> Document:
        choice = ask.choice()
        return _told(await letters.replay(self._target(ask), choice, dry_run=ask.dry_run))

    async def _drop(self, ask: _Drop) -> Document:
        _check_yes(ask.yes, ask.dry_run)
        choice = ask.choice()
        return _told(await letters.drop(self._target(ask), choice, dry_run=ask.dry_run))


def _told(outcome: Outcome) -> Document:
    return outcome.as_json()


def _check_yes(yes: bool, dry_run: bool) -> None:
    if not yes and not dry_run:
        raise ValueError('this cannot be undone: say "yes": true, or "dry_run": true to see it')


def _handler(
    kind: type[A], answer: Callable[[A], Awaitable[Document]]
) -> Callable[[Request], Awaitable[None]]:
    decoder = msgspec.json.Decoder(kind)

    async def handle(request: Request) -> None:
        try:
            ask = decoder.decode(request.data or b"{}")
            document = await answer(ask)
        except (msgspec.DecodeError, ValueError) as error:
            raise ServiceError("400", str(error)) from error
        except GroupError as error:
            raise ServiceError(_code(error), " ".join(str(error).split())) from error
        await request.respond(json.dumps(document).encode())

    return handle


def _code(error: GroupError) -> str:
    match error:
        case BadName():
            return "400"
        case PermissionMissing():
            return "403"
        case GroupMissing() | MemberMissing() | PartitionMissing() | LetterMissing():
            return "404"
        case StreamMissing():
            return "404"
        case ServerUnreachable():
            return "503"
        case _:
            return "409"
