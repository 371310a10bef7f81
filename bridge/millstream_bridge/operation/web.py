"""``/metrics`` and ``/healthz`` of a running bridge."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from millstream_coordinator import GroupError
from millstream_coordinator.operation.settings import http_address
from millstream_coordinator.operation.web import Health, MetricsPage, Pages

from ..errors import BridgeError, ConfigurationError
from ..moving.progress import State

WELL = frozenset({State.MOVING, State.STANDING_BY, State.STANDING_BACK})


@asynccontextmanager
async def serving(address: str, metrics: MetricsPage, health: Health) -> AsyncIterator[str]:
    """Serve on ``HOST:PORT`` while the block runs; gives the URL, with the real port for port 0.

    ConfigurationError: it is no address, or it is taken.
    """
    try:
        host, port = http_address(address)
        async with Pages(metrics, health).serve(host, port) as url:
            yield url
    except ValueError as error:
        raise ConfigurationError(f"--http {address!r}: {error}") from error
    except GroupError as error:
        raise ConfigurationError(str(error)) from error


def health(
    routes: Mapping[str, tuple[State, BridgeError | None]],
) -> tuple[bool, dict[str, object]]:
    """Whether every route is being moved, here or by others, and the document that says so."""
    is_well = bool(routes) and all(state in WELL for state, _ in routes.values())
    return is_well, {
        "schema": "millstream.bridge.healthz/1",
        "status": "ok" if is_well else "trouble",
        "routes": {
            name: {"state": str(state), "error": None if error is None else str(error)}
            for name, (state, error) in sorted(routes.items())
        },
    }
