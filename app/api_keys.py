"""API keys: creation, storage format, look-up, and the check whether a server needs keys.

Only a key's SHA-256 is stored. A slow hash (bcrypt, Argon2) protects passwords, which can be guessed. A key has 256
random bits and cannot be guessed at any speed; a slow hash would only let strangers load the controller with invalid
keys.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

from app.server_errors import ConfigurationError
from app.settings import ControllerSettings

Role = Literal["predict", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)
KEYS_REMEDY = "create API keys with `modelyard key` and set MODELYARD_API_KEYS_FILE"
KEY_PREFIX = "modelyard_"  # so that secret scanners recognise a key
_LINE = re.compile(
    rf"(?P<name>[A-Za-z0-9][\w.-]{{0,63}})[ \t]+(?P<role>{'|'.join(ROLES)})[ \t]+sha256:(?P<hash>[0-9a-f]{{64}})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The stored data of a key.

    Attributes:
        name: The client that owns the key; several keys may share a name, so that a key can be rotated.
        role: Its role; `operate` includes `predict`.
        digest: SHA-256 of the key.
    """

    name: str
    role: Role
    digest: bytes

    def line(self) -> str:
        """The key's line in a key file."""
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


def new_key(name: str, role: Role) -> tuple[str, ApiKey]:
    """Create a key: the key itself, which is not stored anywhere, and its stored data.

    Raises:
        ConfigurationError: The name is invalid.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(name, role, sha256(key.encode()).digest())
    if not _LINE.fullmatch(made.line()):
        raise ConfigurationError(
            "a name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit"
        )
    return key, made


def read_keys(settings: ControllerSettings) -> tuple[ApiKey, ...]:
    """The keys of the settings' file and environment variable; empty if neither is set.

    Raises:
        ConfigurationError: One is unreadable, malformed or without any key. The error names the place, never the
            content, which could be a key.
    """
    sources: list[tuple[str, str]] = []
    path = settings.api_keys_file
    if path is not None:
        try:
            sources.append((f"the API keys file {path}", path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"the API keys file {path} cannot be read ({reason})") from None
    if settings.api_keys:
        sources.append(("MODELYARD_API_KEYS", settings.api_keys))
    found: dict[bytes, ApiKey] = {}
    for source, text in sources:
        for key in _parse(source, text):
            if key.digest in found:
                raise ConfigurationError(f"{source} holds a key twice: remove one of its lines")
            found[key.digest] = key
    return tuple(found.values())


def _parse(source: str, text: str) -> Iterator[ApiKey]:
    n_keys = 0
    for number, line in enumerate(text.splitlines(), 1):
        for entry in filter(None, map(str.strip, line.partition("#")[0].split(","))):
            match = _LINE.fullmatch(entry)
            if match is None:
                raise ConfigurationError(
                    f"{source}, line {number}: expected `name role sha256:<64 hex digits>`, the role one of "
                    f"{', '.join(ROLES)}; `modelyard key` prints such lines"
                )
            n_keys += 1
            role: Role = "operate" if match["role"] == "operate" else "predict"
            yield ApiKey(match["name"], role, bytes.fromhex(match["hash"]))
    if not n_keys:
        # Not the same as no file: an empty key file must not disable authentication.
        raise ConfigurationError(f"{source} holds no key; add one with `modelyard key`, or unset it")


def holder(known: Sequence[ApiKey], key: bytes) -> ApiKey | None:
    """The stored data of a received key; None if the key is unknown."""
    digest = sha256(key).digest()
    found = None
    for each in known:  # all keys, each in constant time, so that the duration reveals nothing
        if hmac.compare_digest(each.digest, digest):
            found = each
    return found


def check_exposure(what: str, host: str, is_guarded: bool, remedy: str, settings: ControllerSettings) -> None:
    """Refuse an accidental public listener without authentication.

    Args:
        what: Name of the server, for the message.
        host: Its host; empty for every address.
        is_guarded: Whether callers need credentials.
        remedy: How to require credentials.
        settings: State whether callers without credentials are allowed.

    Raises:
        ConfigurationError: Other machines could reach the server without credentials.
    """
    if is_guarded or settings.allow_anonymous or is_loopback(host):
        return
    raise ConfigurationError(
        f"{what} would listen on {host or 'every address'} without authentication: {remedy}, listen on "
        f"127.0.0.1, or set MODELYARD_ALLOW_ANONYMOUS=true to allow this"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this host. Any name other than localhost counts as no."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
