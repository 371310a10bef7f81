"""Settings: from the environment, overridden, checked, frozen."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from millstream_coordinator.operation.settings import CoordinatorSettings


def test_the_environment_sets_what_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_NATS_URL", "nats://there:4222")

    assert CoordinatorSettings().nats_url == "nats://there:4222"
    assert CoordinatorSettings(nats_url="nats://here").nats_url == "nats://here"


@pytest.mark.parametrize(("text", "seconds"), [("0.25", 0.25), ("3", 3), ("PT0.5S", 0.5)])
def test_a_duration_is_seconds_or_iso(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_HEARTBEAT_TIMEOUT", text)

    assert CoordinatorSettings().heartbeat_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_a_duration_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_HEARTBEAT_TIMEOUT", text)

    with pytest.raises(ValidationError, match="heartbeat_timeout"):
        CoordinatorSettings()


def test_no_grace_is_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_COORDINATOR_STATIC_GRACE", "0")

    assert CoordinatorSettings().static_grace == timedelta(0)


def test_settings_do_not_change() -> None:
    settings = CoordinatorSettings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.nats_url = "nats://elsewhere"  # type: ignore[misc]
