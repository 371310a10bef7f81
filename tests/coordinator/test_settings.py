"""Settings: from the environment, overridden, checked, frozen."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from millstream_coordinator.operation.settings import CoordinatorSettings, http_address, load


def test_the_environment_sets_what_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_NATS_URL", "nats://there:4222")

    assert CoordinatorSettings().nats_url == "nats://there:4222"
    assert CoordinatorSettings(nats_url="nats://here").nats_url == "nats://here"


@pytest.mark.parametrize(("text", "seconds"), [("0.25", 0.25), ("3", 3), ("PT0.5S", 0.5)])
def test_a_duration_is_seconds_or_iso(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_DRAIN_TIMEOUT", text)

    assert CoordinatorSettings().drain_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_a_duration_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_HEARTBEAT_TIMEOUT", text)

    with pytest.raises(ValidationError, match="heartbeat_timeout"):
        CoordinatorSettings()


def test_no_grace_is_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_STATIC_GRACE", "0")

    assert CoordinatorSettings().static_grace == timedelta(0)


@pytest.mark.parametrize("text", ["a,b", " a , b,", "a, b"])
def test_groups_are_names_with_commas(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_GROUPS", text)

    assert CoordinatorSettings().groups == ("a", "b")


def test_a_file_is_overridden_by_the_environment_and_that_by_what_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('nats_url = "nats://file"\nmember = "file"\ngroups = ["x", "y"]\n')
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_MEMBER", "environment")

    of_file, given = load(file), load(file, member="given", nats_url=None, groups=[])

    assert (of_file.nats_url, of_file.member) == ("nats://file", "environment")
    assert (given.nats_url, given.member, given.groups) == ("nats://file", "given", ("x", "y"))


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0)), ("host:1", ("host", 1))],
)
def test_an_http_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert http_address(text) == address


@pytest.mark.parametrize("text", ["9464", "host", "host:", ":80", "host:99999", "h:1/x", "u@h:1"])
def test_what_is_no_http_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        http_address(text)


def test_settings_do_not_change() -> None:
    settings = CoordinatorSettings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.nats_url = "nats://elsewhere"  # type: ignore[misc]
