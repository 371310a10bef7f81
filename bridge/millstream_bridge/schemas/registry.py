"""A schema registry by its HTTP API, Confluent's, which others speak too. Reads only."""

import asyncio
import base64
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from ..errors import ConfigurationError, Unreachable
from .schema import AVRO, Reference, Schema

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Where the registry is and who we are there: user and password, or a bearer token."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no address of a registry; ConfigurationError."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("a schema registry's URL begins with http:// or https://")
        if parts.username or parts.password:
            raise ConfigurationError("a schema registry's user and password do not go in its URL")

    async def subjects(self) -> list[str]:
        """All subjects, those that were deleted and may come again included.

        Unreachable; ConfigurationError: it refuses us, or is no registry.
        """
        return [str(name) for name in await self._ask("/subjects?deleted=true")]

    async def versions(self, subject: str) -> list[int]:
        """A subject's version numbers, ascending."""
        path = f"/subjects/{quote(subject, '')}/versions?deleted=true"
        found = await self._ask(path, may_be_missing=True)
        return sorted(int(number) for number in found or [])

    async def schema(self, subject: str, version: int) -> Schema | None:
        """One version, whole; None where it was deleted and is shown no more.

        Apicurio lists what is deleted, but shows nothing of a subject that is so as a whole.
        """
        path = f"/subjects/{quote(subject, '')}/versions/{version}?deleted=true"
        found = await self._ask(path, may_be_missing=True)
        if found is None:
            return None
        try:
            references = msgspec.convert(found.get("references") or [], tuple[Reference, ...])
            return Schema(
                id=int(found["id"]),
                subject=subject,
                version=int(found["version"]),
                type=str(found.get("schemaType") or AVRO),
                text=str(found["schema"]),
                references=references,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(path, error) from error

    async def compatibility(self, subject: str | None) -> str | None:
        """What new versions of a subject, or (None) all, are held to; None if nothing is said."""
        path = "/config" if subject is None else f"/config/{quote(subject, '')}"
        found = await self._ask(path, may_be_missing=True)
        if found is None:
            return None
        level = found.get("compatibilityLevel") or found.get("compatibility")
        return None if level is None else str(level)

    async def _ask(self, path: str, *, may_be_missing: bool = False) -> Any:
        return await asyncio.to_thread(self._get, path, may_be_missing)

    def _get(self, path: str, may_be_missing: bool) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self.url.rstrip("/") + path,
            headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        )
        # Not to where it may send us on: that can be another host, or plain text.
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        elif self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        context = None
        if urlsplit(self.url).scheme == "https":
            try:
                context = ssl.create_default_context(cafile=self.ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(f"{self.ca} cannot be used: {error}") from error
        try:
            with urllib.request.urlopen(  # noqa: S310 - see above
                request, timeout=TIMEOUT_S, context=context
            ) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND and may_be_missing:
                return None
            if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Unreachable("schema registry", self.url, f"status {error.code}") from error
            raise ConfigurationError(
                f"schema registry {self.url} answers {path} with {error.code} {error.reason}"
            ) from error
        except (OSError, IncompleteRead) as error:  # urllib's own and time-outs are of the former
            # urllib wraps what it met: "<urlopen error …>".
            reason = getattr(error, "reason", None) or error
            told = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
            raise Unreachable("schema registry", self.url, told) from error
        except (ValueError, HTTPException) as error:
            raise self._strange(path, error) from error

    def _strange(self, path: str, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"schema registry {self.url} answers {path} as no registry does: {error}"
        )
