"""DB-API 2.0 (PEP 249) as far as the SQL sink needs it: its protocols, and one form of parameters.

Statements are written with ``:name`` here; `Statements` writes them in a module's own paramstyle.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Parameters = Mapping[str, str | int]
_NAMES = re.compile(r":([a-z]+)")
_PLACEHOLDERS: Mapping[str, Callable[[int, str], str]] = {
    "qmark": lambda place, name: "?",
    "numeric": lambda place, name: f":{place}",
    "named": lambda place, name: f":{name}",
    "format": lambda place, name: "%s",
    "pyformat": lambda place, name: f"%({name})s",
}
PARAMSTYLES = tuple(_PLACEHOLDERS)
_BY_NAME = ("named", "pyformat")


class Cursor(Protocol):
    """PEP 249's Cursor."""

    @property
    def rowcount(self) -> int:
        """How many rows the last statement touched."""

    def execute(self, operation: Any, parameters: Any = ..., /) -> object:
        """Run one statement."""

    def fetchone(self) -> Any:
        """Next row of a query, None at its end."""

    def fetchall(self) -> Sequence[Any]:
        """The rows that are left."""

    def close(self) -> object:
        """Give its resources back."""


class Connection(Protocol):
    """PEP 249's Connection."""

    def cursor(self) -> Any:
        """A `Cursor`; its first statement begins a transaction."""

    def commit(self) -> object:
        """End the transaction, keep what it did."""

    def rollback(self) -> object:
        """End the transaction, take back what it did."""

    def close(self) -> object:
        """End the connection."""


class Module(Protocol):
    """PEP 249's module: ``sqlite3`` or ``psycopg``, for two."""

    @property
    def apilevel(self) -> str:
        """``"2.0"``."""

    @property
    def paramstyle(self) -> str:
        """One of `PARAMSTYLES`."""

    @property
    def Error(self) -> type[Exception]:  # noqa: N802 - PEP 249's name
        """Base of the module's errors."""

    @property
    def IntegrityError(self) -> type[Exception]:  # noqa: N802 - PEP 249's name
        """Raised, for one, for a primary key that is there already."""

    @property
    def OperationalError(self) -> type[Exception]:  # noqa: N802 - PEP 249's name
        """Raised for what may pass: deadlocks, other transactions, lost connections."""


MODULE_NAMES = ("apilevel", "paramstyle", "Error", "IntegrityError", "OperationalError")


class Statements:
    """Runs statements with ``:name`` parameters in one paramstyle."""

    def __init__(self, paramstyle: str) -> None:
        self._placeholder = _PLACEHOLDERS[paramstyle]
        self._is_by_name = paramstyle in _BY_NAME
        self._rendered: dict[str, tuple[str, tuple[str, ...]]] = {}

    def render(self, statement: str) -> tuple[str, tuple[str, ...]]:
        """The statement in the module's paramstyle, and the names of its parameters in order."""
        found = self._rendered.get(statement)
        if found is None:
            names: list[str] = []

            def placeholder(match: re.Match[str]) -> str:
                names.append(match[1])
                return self._placeholder(len(names), match[1])

            found = _NAMES.sub(placeholder, statement), tuple(names)
            self._rendered[statement] = found
        return found

    def run(self, cursor: Cursor, statement: str, parameters: Parameters) -> None:
        """Execute one statement; of ``parameters`` those it names are handed over."""
        text, names = self.render(statement)
        if self._is_by_name:
            cursor.execute(text, {name: parameters[name] for name in names})
        else:
            cursor.execute(text, tuple(parameters[name] for name in names))
