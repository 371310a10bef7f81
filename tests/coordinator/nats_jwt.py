"""Operator, account and user as JWTs, the way a server with ``operator:`` in its config wants them.

The claims are those of NATS JWT version 2; a token is signed by the key above its subject's.
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]


class Key:
    """An nkey of one kind: operator, account or user."""

    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def token(self, subject: "Key", name: str, claims: dict[str, Any]) -> str:
        """A JWT about ``subject``, signed by this key."""
        body = {"iat": 1_700_000_000, "iss": self.public, "name": name, "sub": subject.public}
        body["nats"] = {**claims, "version": 2}
        digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")
        head = _encoded({"typ": "JWT", "alg": "ed25519-nkey"})
        signed = f"{head}.{_encoded(body)}"
        return f"{signed}.{_text(self._pair.sign(signed.encode()))}"


def write_operator(folder: Path) -> tuple[str, Path]:
    """A config's ``operator`` part with one JetStream account, and its user's creds file."""
    operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    user = Key(nkeys.PREFIX_BYTE_USER)
    limits = {
        **dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1),
        "wildcards": True,
    }
    stores = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    accounts = {
        account: operator.token(account, "A", {"type": "account", "limits": {**limits, **stores}}),
        system: operator.token(system, "SYS", {"type": "account", "limits": limits}),
    }
    user_token = account.token(
        user, "u", {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
    )
    said = operator.token(operator, "O", {"type": "operator", "system_account": system.public})
    preload = ", ".join(f"{key.public}: {token}" for key, token in accounts.items())
    creds = folder / "user.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    config = (
        f"operator: {said}\nsystem_account: {system.public}\n"
        f"resolver: MEMORY\nresolver_preload: {{ {preload} }}\n"
    )
    return config, creds


def _encoded(value: dict[str, Any]) -> str:
    return _text(json.dumps(value, separators=(",", ":")).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
