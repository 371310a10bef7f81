"""A single-node NATS server with JetStream, in Python.

``Broker`` runs one in the caller's loop; the names load on first use, importing the package is
free.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import StartError
    from .server.options import ServerOptions
    from .server.server import Broker

__all__ = ["Broker", "ServerOptions", "StartError"]

_MODULES = {
    "Broker": ".server.server",
    "ServerOptions": ".server.options",
    "StartError": ".errors",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module, __name__), name)
