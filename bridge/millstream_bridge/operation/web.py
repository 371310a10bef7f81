"""``/metrics`` and ``/healthz`` of a running bridge."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream_coordinator import GroupError
from millstream_coordinator.operation.settings import http_address
from millstream_coordinator.operation.web import Pages

from ..errors import ConfigurationError
from ..moving.runner import State
from .fleet import Fleet
from .metrics import FleetMetrics

WELL = frozenset({State.MOVING, State.STANDING_BY, State.STANDING_BACK})


@asynccontextmanager
async def serving(fleet: Fleet, address: str) -> AsyncIterator[str]:
    """Serve on ``HOST:PORT`` while the block runs; gives the URL, with the real port for port 0.

    ConfigurationError: it is no address, or it is taken.
    """
    try:
        host, port = http_address(address)
        async with Pages(FleetMetrics(fleet).page, lambda: health(fleet)).serve(host, port) as url:
            yield url
    except ValueError as error:
        raise ConfigurationError(f"--http {address!r}: {error}") from error
    except GroupError as error:
        raise ConfigurationError(str(error)) from error


def health(fleet: Fleet) -> tuple[bool, dict[str, object]]:
    """Whether every route is being moved, here or by others, and the document that says so."""
    routes: dict[str, dict[str, object]] = {}
    for bridge in fleet.bridges.values():
        error = fleet.error_of(bridge)
        routes[bridge.route.name] = {
            "state": str(bridge.progress.state),
            "error": None if error is None else str(error),
        }
    states = {it.progress.state for it in fleet.bridges.values()}
    is_well = bool(states) and states <= WELL
    return is_well, {
        "schema": "millstream.bridge.healthz/1",
        "status": "ok" if is_well else "trouble",
        "routes": dict(sorted(routes.items())),
    }
