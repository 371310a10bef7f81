"""What a bridge command needs to know: flags, then ``MILLSTREAM_BRIDGE_*`` in the environment."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ..errors import ConfigurationError
from ..jetstream.target import NatsTarget
from ..model import Route
from ..project.file import Project, load_project
from ..project.rule import Rule

DEFAULT_NATS: Final = "nats://127.0.0.1:4222"

S = TypeVar("S", bound="KafkaSettings")


class KafkaSettings(BaseSettings):
    """Where both sides are. ``kafka_options`` is a JSON object; ``nats`` may be left out.

    User and password, or a token, go in NATS's URL; the rest is as in `NatsTarget`.
    """

    model_config = SettingsConfigDict(
        env_prefix="MILLSTREAM_BRIDGE_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    kafka: str = Field(min_length=1)
    kafka_options: dict[str, str] = Field(default_factory=dict, repr=False)
    nats: str | None = Field(None, repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    domain: str = ""

    @property
    def nats_target(self) -> NatsTarget:
        """Where NATS is and who we are there; ConfigurationError: it contradicts itself."""
        return NatsTarget(
            url=self.nats or DEFAULT_NATS,
            creds=self.creds,
            nkey=self.nkey,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            domain=self.domain,
        )


class BridgeSettings(KafkaSettings):
    """Read once, in the command line, and passed down: both sides and one route."""

    topic: str = Field(min_length=1)
    stream: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    shared: bool = False
    null_key: str = "%null"
    route: str = ""

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


def project_of(
    *,
    project: Path | None,
    route: Sequence[str] | None,
    kafka: str | None,
    nats: str | None,
    **flags: Any,
) -> Project:
    """A project file's project, or that of the one route which flags and environment describe.

    With a file, ``kafka`` and ``nats`` (flags only) put other addresses in place of the file's.
    ConfigurationError.
    """
    names = tuple(route or ())
    if project is None:
        if len(names) > 1:
            raise ConfigurationError("--route: more than one route needs a --project")
        settings = load(kafka=kafka, nats=nats, route="".join(names) or None, **flags)
        return Project(
            kafka=settings.kafka,
            kafka_options=settings.kafka_options,
            nats=settings.nats_target,
            rules=(Rule.of(settings.as_route),),
        )
    for name, value in flags.items():
        if value is not None:
            raise ConfigurationError(f"--{name.replace('_', '-')} is the project's to say")
    found = load_project(project)
    if kafka is not None:
        found = dataclasses.replace(found, kafka=kafka)
    if nats is not None:
        found = dataclasses.replace(found, nats=dataclasses.replace(found.nats, url=nats))
    return found.select(names)


def load(**flags: Any) -> BridgeSettings:
    """Both sides and the route, from flags (None: not given) and environment.

    ConfigurationError names the first option that is missing or wrong.
    """
    return _load(BridgeSettings, flags)


def load_kafka(**flags: Any) -> KafkaSettings:
    """Both sides only; as `load`."""
    return _load(KafkaSettings, flags)


def _load(kind: type[S], flags: dict[str, Any]) -> S:
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
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
            instead = "; or name a file with --project" if kind is BridgeSettings else ""
            raise ConfigurationError(f"{option} is missing (or {variable}){instead}") from error
        raise ConfigurationError(f"{option}: {first['msg']}") from error
