"""The packaged flights, and what is said about a file that is none."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from millstream.demo.flights import COLUMNS, PACKAGED, FlightsError, read_flights
from tests.millstream.console import millstream

HEADER = ",".join(COLUMNS)
ROW = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z"
WITHOUT_TAIL = ROW.replace("N14228", "NA")


def test_the_packaged_file_has_ten_thousand_rows_and_some_without_a_tail_number() -> None:
    flights = read_flights()
    assert len(flights) == 10_452
    assert sum(flight.key is None for flight in flights) == 16


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    (flight,) = read_flights(_file(tmp_path, HEADER, ROW))
    assert flight.key == b"N14228"
    assert flight.headers == (("carrier", b"UA"), ("origin", b"EWR"), ("dest", b"IAH"))
    assert flight.timestamp_ms == 1_357_035_300_000  # 2013-01-01 10:15 UTC
    assert flight.value.startswith(b'{"year":2013,"month":1,"day":1,"dep_time":517,')
    assert flight.value.endswith(b'"minute":15,"time_hour":"2013-01-01T10:00:00Z"}')


def test_a_row_without_a_tail_number_has_a_null_key(tmp_path: Path) -> None:
    (flight,) = read_flights(_file(tmp_path, HEADER, WITHOUT_TAIL))
    assert flight.key is None
    assert b'"tailnum":null' in flight.value


@pytest.mark.parametrize(
    ("lines", "line", "what"),
    [
        (["a,b,c", ROW], 1, "the header is not year,month"),
        ([], 1, "the header is not year,month"),
        ([HEADER, ROW, "2013,1,1"], 3, "it has 3 columns, 19 are wanted"),
        ([HEADER, ROW.replace("1545", "UA1545")], 2, "flight is 'UA1545', not a whole number"),
        ([HEADER, ROW, ROW.replace("EWR", "NA")], 3, "origin is 'NA'"),
        ([HEADER, ROW.replace(",15,2013-", ",75,2013-")], 2, "minute is 75, not from 0 to 59"),
        ([HEADER, ROW.replace("10:00:00Z", "10 am")], 2, "time_hour is '2013-01-01T10 am'"),
        ([HEADER, ROW, 'x"y,"' + ROW], 3, "no CSV: "),
        ([HEADER], None, "it has 0 flights"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_reason(
    tmp_path: Path, lines: list[str], line: int | None, what: str
) -> None:
    file = _file(tmp_path, *lines)
    with pytest.raises(FlightsError) as caught:
        read_flights(file)
    assert caught.value.line == line
    assert caught.value.what.startswith(what)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut off"),
        pytest.param(lambda data: data[:5000] + b"????" + data[5004:], id="overwritten"),
        pytest.param(lambda _: b"no gzip at all", id="no gzip"),
        pytest.param(lambda _: gzip.compress(b"\xff\xfe" * 100), id="no text"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "flights.csv.gz"
    file.write_bytes(damage(PACKAGED.read_bytes()))
    with pytest.raises(FlightsError):
        read_flights(file)


def test_more_flights_than_the_file_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlightsError, match="it has 1 flights, 2 are wanted"):
        read_flights(_file(tmp_path, HEADER, ROW), limit=2)


async def test_the_demo_refuses_a_malformed_file_in_one_line_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    file = _file(tmp_path, HEADER, *[ROW] * 150, ROW.replace("1400", "far"))
    done = await millstream("demo", "--flights", str(file), "--records", "151", "--partitions", "2")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"millstream demo: {file}: line 152: distance is 'far', not a whole number\n"
    )


async def test_the_demo_refuses_a_flights_file_that_is_not_there(tmp_path: Path) -> None:
    done = await millstream("demo", "--flights", str(tmp_path / "none.csv"))
    assert (done.code, done.err) == (
        2,
        f"millstream demo: {tmp_path / 'none.csv'}: No such file or directory\n",
    )


def _file(directory: Path, *lines: str) -> Path:
    file = directory / "flights.csv"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file
