"""The sections run, shortened; what they measure is not asserted."""

from pathlib import Path

import pytest

from tests.benchmarks.bridge import SECTIONS, median
from tests.benchmarks.bridge_ground import Options
from tests.helpers.servers import EMBEDDED

pytestmark = [pytest.mark.benchmark]


@pytest.mark.parametrize("name", ["sizes", "back"])
async def test_the_section_runs(name: str, tmp_path: Path) -> None:
    options = Options(records=400, partitions=4, size=50, sizes=(400,), store=tmp_path)

    assert await SECTIONS[name](options, EMBEDDED)


def test_the_median_is_that_of_each_number() -> None:
    runs = [{"a": {"per_s": n}, "b": "as it is"} for n in (1, 9, 3)]

    assert median(runs) == {"a": {"per_s": 3}, "b": "as it is"}
