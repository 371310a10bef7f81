"""Settings of ``millstream coordinator``: environment variables, overridden by the command line."""

from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _seconds(value: object) -> object:
    """Text that is a number is seconds; pydantic by itself wants a unit."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Duration = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]
Grace = Annotated[timedelta, BeforeValidator(_seconds), Field(ge=timedelta(0))]


class CoordinatorSettings(BaseSettings):
    """Read once by the command line and passed down.

    Each is an environment variable too, such as ``MILLSTREAM_COORDINATOR_NATS_URL``. Durations are
    seconds (``0.25``) or ISO 8601 (``PT0.25S``). The times must be the same for a whole group.
    Where the server is, the command line also takes from ``NATS_URL``, as the nats command does.
    """

    model_config = SettingsConfigDict(
        env_prefix="MILLSTREAM_COORDINATOR_", frozen=True, extra="forbid"
    )

    nats_url: str = Field("nats://127.0.0.1:4222", min_length=1)
    """One URL, or several separated by commas; user and password, or a token, may be in it."""
    connect_timeout: Duration = timedelta(seconds=2)
    member: str | None = None
    """Name of this coordinator in its groups; a random one if not set."""
    heartbeat_interval: Duration = timedelta(milliseconds=250)
    heartbeat_timeout: Duration = timedelta(seconds=1)
    static_grace: Grace = timedelta(0)
    """How long a dead member with a name of its own keeps its partitions."""
    drain_timeout: Duration = timedelta(seconds=30)

    @field_validator("nats_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        """Refuse here what the client would only find out halfway through connecting."""
        for url in value.split(","):
            parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
            if not parts.hostname or (parts.port is not None and parts.port < 1):
                raise ValueError(f"{url!r} has no host")
        return value
