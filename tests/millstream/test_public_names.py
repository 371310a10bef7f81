"""The front door's public names: all there, each loaded only when asked for."""

import subprocess
import sys

import pytest

import millstream


@pytest.mark.parametrize("name", millstream.__all__)
def test_every_public_name_can_be_loaded(name: str) -> None:
    assert getattr(millstream, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        millstream.Nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("Group", "confluent_kafka"),
        ("Group", "millstream_broker"),
        ("Broker", "nats"),
        ("Broker", "pydantic"),
        ("Broker", "typer"),
    ],
)
def test_loading_one_part_does_not_import_another(name: str, unwanted: str) -> None:
    code = f"import sys; from millstream import {name}; sys.exit({unwanted!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
