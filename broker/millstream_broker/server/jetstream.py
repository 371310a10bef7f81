"""JetStream put together: the account's bus, the stores and the engine."""

import importlib
from typing import Any

from ..errors import StartError
from ..routing.account import Account
from .options import ServerOptions


def open_jetstream(account: Account, options: ServerOptions) -> tuple[Any, Any]:
    """Open engine and storage. Raises StartError when the folder can't be used."""
    try:
        importlib.import_module("..jetstream.engine", __package__)
    except ModuleNotFoundError as error:
        raise StartError("JetStream", "is not in this build") from error
    raise StartError(str(account), str(options))
