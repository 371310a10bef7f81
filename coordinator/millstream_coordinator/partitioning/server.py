"""What is asked of a server about streams, and what its failures mean."""

from typing import Any, Final

from ..errors import GroupError, PermissionMissing, ServerUnreachable
from ..jetstream.api import STREAM_NOT_FOUND, Api, Forbidden, RequestFailed
from ..ports import Failure
from .difference import ServerTraits

TIMEOUT_S: Final = 5.0
OLDEST_SERVER: Final = (2, 10)
"""The first with transforms of streams and sources."""


async def stream_info(api: Api, stream: str) -> dict[str, Any] | None:
    """What STREAM.INFO says; None: there is no such stream. Raises RequestFailed."""
    try:
        return await api.call(f"STREAM.INFO.{stream}")
    except RequestFailed as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise


def server_traits(api: Api) -> ServerTraits:
    """What the connected server is like, by its version."""
    version = api.connection.connected_server_version
    return ServerTraits.of(version.major, version.minor)


def unreachable(api: Api, error: RequestFailed) -> GroupError:
    """Say what a request that failed means; one without an answer names its subject."""
    if isinstance(error, Forbidden):
        return PermissionMissing(None, [error.missing])
    if error.reason is Failure.TIMEOUT:
        reason = f"no answer on {error.detail} (is the user allowed to ask there?)"
        return ServerUnreachable(api.url, reason)
    return ServerUnreachable(api.url, str(error))
