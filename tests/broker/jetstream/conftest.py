"""Engines for the tests of JetStream."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Disk, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()
