"""What is asked of a server about streams, and what its failures mean."""

from typing import Any, Final

from ..jetstream.api import STREAM_NOT_FOUND, Api, RequestFailed
from ..partitioning.difference import ServerTraits

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
