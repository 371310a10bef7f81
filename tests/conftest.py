"""What every test shares: hypothesis profiles, and an environment that names no servers."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

KEPT = {"NATS_CLI", "MILLSTREAM_REQUIRE"}

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci",
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "mutants",
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True, scope="session")
def _scrubbed_environment() -> None:
    """A developer's own NATS or millstream settings must not steer a test."""
    for name in list(os.environ):
        if name.startswith(("NATS_", "MILLSTREAM_")) and name not in KEPT:
            del os.environ[name]
