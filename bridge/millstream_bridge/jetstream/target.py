"""Where NATS is and who we are there: addresses, credentials, TLS, JetStream's domain.

Files are read when a connection is made, so a rotated credential is used by the next one. Nothing
secret is in a target's text or representation.
"""

import base64
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import ConfigurationError

DEFAULT_PORT = 4222


class Address(NamedTuple):
    """One server: where, and what its URL says of the user and of TLS."""

    url: str
    """Without a password, for people."""
    host: str
    port: int
    credentials: Mapping[str, str]
    is_tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsTarget:
    """A NATS system as one user sees it. ``url`` may be several, with commas: tried in order.

    A user is known by one of: user and password or a token (here or in the URL), ``creds`` (a file
    with a JWT and a seed), ``nkey`` (a file with a seed), or the client certificate ``tls_cert``
    with ``tls_key``. ``tls_ca`` is who must have signed the server's certificate, by default whom
    the system trusts; a URL with ``tls://`` demands TLS, else the server says whether to use it.
    ``tls_first``: the server expects TLS before it says anything. ``domain`` or ``api_prefix``
    say which JetStream; ``inbox_prefix`` under which subjects answers may come.
    """

    url: str = field(default="nats://127.0.0.1:4222", repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_first: bool = False
    domain: str = ""
    api_prefix: str = ""
    inbox_prefix: str = "_INBOX"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself or could be no subject; ConfigurationError."""
        list(self.addresses())
        ways = [bool(self.creds), bool(self.nkey), bool(self.user), bool(self.token)]
        if sum(ways) > 1:
            raise ConfigurationError("NATS: only one of creds, nkey, user and token can be given")
        if self.tls_key and not self.tls_cert:
            raise ConfigurationError("NATS: a TLS key needs its certificate")
        if self.domain and self.api_prefix:
            raise ConfigurationError("NATS: a domain is an API prefix; give one of the two")
        for name in ("domain", "api_prefix", "inbox_prefix"):
            text = getattr(self, name)
            if text and not re.fullmatch(r"[^\s.*>]+(\.[^\s.*>]+)*", text):
                raise ConfigurationError(f"NATS: {name} {text!r} is no subject prefix")

    @classmethod
    def of(cls, target: "str | NatsTarget") -> "NatsTarget":
        """The target itself, or the one that a URL says; ConfigurationError."""
        return target if isinstance(target, cls) else cls(url=str(target))

    def __str__(self) -> str:
        """The addresses, without passwords."""
        return ",".join(address.url for address in self.addresses())

    def addresses(self) -> Iterator[Address]:
        """The servers in their order; ConfigurationError for what is no URL."""
        for text in self.url.split(","):
            yield _address(text.strip())

    def login(self, address: Address, nonce: str) -> dict[str, str]:
        """The fields of CONNECT that say who we are; ``nonce`` is what the server wants signed.

        ConfigurationError: a file cannot be read or used.
        """
        if self.creds is not None:
            text = _read(self.creds)
            jwt, seed = (
                _section(text, kind, self.creds) for kind in ("NATS USER JWT", "USER NKEY SEED")
            )
            return {"jwt": jwt, "sig": _sign(seed, nonce, self.creds)[1]}
        if self.nkey is not None:
            public, signature = _sign(_read(self.nkey).strip(), nonce, self.nkey)
            return {"nkey": public, "sig": signature}
        if self.user:
            return {"user": self.user, "pass": self.password}
        if self.token:
            return {"auth_token": self.token}
        return dict(address.credentials)

    def tls_context(self) -> ssl.SSLContext:
        """What TLS is to check and to show; ConfigurationError names the file that is no good."""
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"NATS: {self.tls_ca} cannot be used: {error}") from error
        if self.tls_cert is not None:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            except (OSError, ssl.SSLError) as error:
                name = self.tls_key or self.tls_cert
                raise ConfigurationError(f"NATS: {name} cannot be used: {error}") from error
        return context

    @property
    def jetstream_prefix(self) -> str:
        """What subjects of JetStream's API begin with."""
        return self.api_prefix or (f"$JS.{self.domain}.API" if self.domain else "$JS.API")

    @property
    def has_tls(self) -> bool:
        """Whether TLS is demanded whatever the server says."""
        return bool(self.tls_ca or self.tls_cert or self.tls_first)

    def nats_py_options(self) -> dict[str, Any]:
        """The same for nats-py: ``await nats.connect(**target.nats_py_options())``."""
        options: dict[str, Any] = {
            "servers": [part.strip() for part in self.url.split(",")],
            "inbox_prefix": self.inbox_prefix.encode(),
        }
        if self.creds is not None:
            options["user_credentials"] = str(self.creds)
        elif self.nkey is not None:
            options["nkeys_seed"] = str(self.nkey)
        elif self.user:
            options |= {"user": self.user, "password": self.password}
        elif self.token:
            options["token"] = self.token
        if self.has_tls or any(address.is_tls for address in self.addresses()):
            options |= {"tls": self.tls_context(), "tls_handshake_first": self.tls_first}
        return options


def _address(text: str) -> Address:
    url = text if "://" in text else f"nats://{text}"
    shown = re.sub(r"//[^@/]*@", "//…@", url)
    if url != text:
        shown = shown.removeprefix("nats://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ConfigurationError(f"{shown!r} is no NATS URL: {error}") from error
    if parts.scheme not in ("nats", "tls") or not host:
        raise ConfigurationError(f"{shown!r} is no NATS URL like nats://host:4222")
    return Address(shown, host, port, _credentials(parts), parts.scheme == "tls")


def _credentials(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    if parts.password is None:
        return {"auth_token": unquote(parts.username)}
    return {"user": unquote(parts.username), "pass": unquote(parts.password)}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"NATS: {path} cannot be read: {reason}") from error


def _section(text: str, kind: str, path: Path) -> str:
    """What stands between the dashes of a credentials file."""
    found = re.search(rf"-+BEGIN {kind}-+\s+(\S+)\s+-+END {kind}-+", text)
    if found is None:
        raise ConfigurationError(f"NATS: {path} is no credentials file: it has no {kind}")
    return found[1]


def _sign(seed: str, nonce: str, path: Path) -> tuple[str, str]:
    """The public key of a seed, and its signature of the nonce as CONNECT wants it."""
    try:
        # Late: only who has such a file needs it.
        import nkeys  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(f"NATS: {path} needs the Python package nkeys") from error
    try:
        keys = nkeys.from_seed(bytearray(seed.encode()))
        signature = keys.sign(nonce.encode())
    except Exception as error:  # the package raises ValueError, binascii's and its own
        raise ConfigurationError(f"NATS: {path} holds no nkey seed") from error
    return keys.public_key.decode(), base64.b64encode(signature).decode()
