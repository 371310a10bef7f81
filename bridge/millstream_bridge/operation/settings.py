"""What a bridge command needs to know: flags, then ``MILLSTREAM_BRIDGE_*`` in the environment."""

from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ..errors import ConfigurationError
from ..model import Route


class BridgeSettings(BaseSettings):
    """Read once, in the command line, and passed down. ``kafka_options`` is a JSON object."""

    model_config = SettingsConfigDict(
        env_prefix="MILLSTREAM_BRIDGE_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    kafka: str = Field(min_length=1)
    nats: str = "nats://127.0.0.1:4222"
    topic: str = Field(min_length=1)
    stream: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    shared: bool = False
    null_key: str = "%null"
    route: str = ""
    kafka_options: dict[str, str] = Field(default_factory=dict)

    @property
    def as_route(self) -> Route:
        """The route these settings describe; ConfigurationError: a name is not usable."""
        return Route(
            topic=self.topic,
            stream=self.stream,
            subject=self.subject,
            shared=self.shared,
            null_token=self.null_key,
            name=self.route,
        )


def load(**flags: Any) -> BridgeSettings:
    """The settings from flags (None: not given) and environment.

    ConfigurationError names the first option that is missing or wrong.
    """
    try:
        return BridgeSettings(**{name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        # Raised for text that should be JSON; the name it gives is the field's.
        reason = str(error.__cause__ or error)
        variable = "MILLSTREAM_BRIDGE_KAFKA_OPTIONS"
        raise ConfigurationError(f"{variable} is no JSON object: {reason}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        option = "--" + name.replace("_", "-")
        if first["type"] == "missing":
            variable = f"MILLSTREAM_BRIDGE_{name.upper()}"
            raise ConfigurationError(f"{option} is missing (or {variable})") from error
        raise ConfigurationError(f"{option}: {first['msg']}") from error
