"""Every section runs, shortened; what it measures is not asserted."""

import argparse

import pytest

from tests.benchmarks.group import ON_A_SERVER, SECTIONS
from tests.helpers import require
from tests.helpers.servers import EMBEDDED

pytestmark = [pytest.mark.benchmark]

OPTIONS = argparse.Namespace(short=True, pairs=1)


@pytest.mark.parametrize("name", sorted(ON_A_SERVER | {"crowd", "scale"}))
def test_the_section_runs(name: str) -> None:
    assert SECTIONS[name](OPTIONS, EMBEDDED)


def test_the_section_runs_on_kafka() -> None:
    require.need("kafka")

    assert SECTIONS["kafka"](OPTIONS, "")
