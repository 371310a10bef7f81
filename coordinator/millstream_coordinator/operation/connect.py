"""An operator's connection: bounded at first, patient afterwards.

What a connection needs (TLS, credentials, nkeys) comes from the settings; users of the library
bring a connection of their own.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import nats.errors
from nats.aio.client import Client

from ..errors import GroupError, ServerUnreachable
from ..jetstream.wire import Complaints, without_password
from .settings import CoordinatorSettings


@asynccontextmanager
async def connected(
    settings: CoordinatorSettings, *, name: str = "millstream coordinator"
) -> AsyncIterator[Client]:
    """A connection that stays: it comes back by itself however long the server is away.

    Only the first connect is bounded, by ``connect_timeout``. Raises ServerUnreachable, and
    GroupError for credentials or certificates that cannot be used.
    """
    servers = [url.strip() for url in settings.nats_url.split(",")]
    timeout_s = settings.connect_timeout.total_seconds()
    # nats-py types these two as whole seconds and takes fractions.
    options: dict[str, Any] = {"connect_timeout": timeout_s, "reconnect_time_wait": 0.1}
    options |= _identity(settings)
    connection = Client()
    complaints = Complaints(connection)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect(
                servers=servers,
                name=name,
                max_reconnect_attempts=-1,
                error_cb=complaints.note,
                **options,
            )
    except (TimeoutError, nats.errors.Error, OSError, ValueError) as error:
        await connection.close()
        reason = complaints.first or str(error) or "no answer"
        raise ServerUnreachable(without_password(settings.nats_url), reason) from error
    complaints.has_connected = True
    try:
        yield connection
    finally:
        with suppress(OSError):  # what is to be sent first, to a server that is away
            await connection.close()


def _identity(settings: CoordinatorSettings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if settings.creds is not None:
        options["user_credentials"] = str(settings.creds)
    if settings.nkey is not None:
        options["nkeys_seed"] = str(settings.nkey)
    if settings.tls_ca is not None or settings.tls_cert is not None:
        try:
            context = ssl.create_default_context(cafile=settings.tls_ca)
            if settings.tls_cert is not None:
                context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            file = settings.tls_cert or settings.tls_ca
            raise GroupError(f"certificate {file} cannot be used: {error}") from error
        options["tls"] = context
    return options


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the first GroupError of a task group's in place of the group, if it holds no others.

    No ``except*``: what is raised inside one comes out in another group before Python 3.11.4.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        ours, others = errors.split(GroupError)
        if ours is None or others is not None:
            raise
        raise _first(ours) from errors


def _first(errors: BaseExceptionGroup[GroupError]) -> GroupError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
