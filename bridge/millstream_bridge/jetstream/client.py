"""A connection by nats-py, for what needs no speed and should come back by itself."""

import asyncio
import logging
from typing import Final

import nats.errors
from nats.aio.client import Client

from ..errors import Unreachable
from .target import NatsTarget

logger = logging.getLogger(__name__)

CONNECT_S: Final = 5


async def connect(target: NatsTarget, *, name: str) -> Client:
    """Connect; afterwards it returns however long the server is away.

    Unreachable, when it cannot be had at once. ConfigurationError: a file cannot be used.
    """
    options = target.nats_py_options()
    # Whole seconds, nats-py says of the pause, and takes fractions.
    options |= {"connect_timeout": CONNECT_S, "reconnect_time_wait": 0.1}
    connection = Client()
    try:
        async with asyncio.timeout(CONNECT_S):
            # A client that never gives up also swallows now and then that it was cancelled.
            await connection.connect(
                **options, name=name, max_reconnect_attempts=1, error_cb=_on_error
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        await connection.close()
        reason = str(error) or type(error).__name__
        raise Unreachable("NATS", str(target), reason) from error
    connection.options["max_reconnect_attempts"] = -1
    return connection


async def _on_error(error: Exception) -> None:
    logger.debug("nats-py: %s", error, extra={"event": "client_error"})
