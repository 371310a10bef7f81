"""One user and password, or one token, for the whole server; or nothing."""

import hmac
from dataclasses import dataclass

from ..protocol.session import ConnectOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What CONNECT must present. All None: everybody may come in."""

    user: str | None = None
    password: str | None = None
    token: str | None = None

    @property
    def is_required(self) -> bool:
        """Whether a client must present anything."""
        return self.user is not None or self.token is not None

    def accepts(self, options: ConnectOptions) -> bool:
        """Compare in constant time; a user without a password logs in with none."""
        if self.token is not None:
            return _same(options.auth_token, self.token)
        if self.user is not None:
            return _same(options.user, self.user) & _same(options.password, self.password or "")
        return True


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(
        given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass")
    )
