"""Settings of ``millstream coordinator``: a file, environment variables, the command line.

Each overrides the one before. The file is TOML with the names below (``--config FILE``, or
``MILLSTREAM_COORDINATOR_CONFIG``)::

    nats_url = "nats://n1:4222,nats://n2:4222"
    creds = "/etc/millstream/coordinator.creds"
    groups = ["delays", "billing"]
    http = "0.0.0.0:9464"
    heartbeat_timeout = 1.5
"""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ..jetstream.api import api_prefix
from ..model import Timing


def _seconds(value: object) -> object:
    """Text that is a number is seconds; pydantic by itself wants a unit."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _names(value: object) -> object:
    """Text is names separated by commas, as an environment variable has them."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
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
    creds: Path | None = None
    """File with a user's JWT and seed."""
    nkey: Path | None = None
    """File with a user's nkey seed."""
    tls_ca: Path | None = None
    """PEM file with the certificates to trust in place of the system's."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """PEM files of this client's certificate and key."""
    domain: str | None = None
    """JetStream domain to ask."""
    js_prefix: str | None = None
    """What JetStream's API subjects begin with, where an import changed it; not with `domain`."""
    connect_timeout: Duration = timedelta(seconds=2)
    member: str | None = None
    """Name of this coordinator in its groups; a random one if not set."""
    groups: Names = ()
    """The groups to lead where the command line names none."""
    all_groups: bool = False
    """Lead every group of the account, also those that come later."""
    http: str | None = None
    """``HOST:PORT`` to serve ``/metrics`` and ``/healthz`` on; port 0 takes a free one."""
    log_json: bool = False
    """Tell each event as one JSON object per line."""
    heartbeat_interval: Duration = timedelta(milliseconds=250)
    heartbeat_timeout: Duration = timedelta(seconds=1)
    static_grace: Grace = timedelta(0)
    """How long a dead member with a name of its own keeps its partitions."""
    drain_timeout: Duration = timedelta(seconds=30)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("nats_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        """Refuse here what the client would only find out halfway through connecting."""
        for url in value.split(","):
            parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
            if not parts.hostname or (parts.port is not None and parts.port < 1):
                raise ValueError(f"{url!r} has no host")
        return value

    @field_validator("creds", "nkey", "tls_ca", "tls_cert", "tls_key")
    @classmethod
    def _is_readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                value.open("rb").close()
            except OSError as error:
                raise ValueError(f"cannot read {value}: {error.strerror or error}") from None
        return value

    @field_validator("http")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            http_address(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "CoordinatorSettings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        Timing(
            heartbeat_interval_s=self.heartbeat_interval.total_seconds(),
            heartbeat_timeout_s=self.heartbeat_timeout.total_seconds(),
        )
        api_prefix(self.domain, self.js_prefix)
        return self

    @property
    def api_prefix(self) -> str:
        """What JetStream's API subjects begin with."""
        return api_prefix(self.domain, self.js_prefix)


def load(file: Path | None, **given: Any) -> CoordinatorSettings:
    """Read the settings; ``given`` is what the command line says (None or no items: nothing).

    Raises ValueError (pydantic's ValidationError is one) for a value or a file that is wrong.
    """
    options = {name: value for name, value in given.items() if value not in (None, [])}
    if file is None:
        return CoordinatorSettings(**options)
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{file} is no TOML: {error}") from None

    class FromFile(CoordinatorSettings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile(**options)


def http_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; a host of IPv6 is in brackets. Raises ValueError."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        port = None
        parts = None
    if parts is None or port is None or not parts.hostname or parts.path or parts.username:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return parts.hostname, port
