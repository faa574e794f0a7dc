"""The password of Redis, read from its file for each connection: a new password needs no restart."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from app.server_errors import ConfigurationError
from app.settings import Settings


class PasswordFile(CredentialProvider):
    """The user of `REDIS_URL`, with the current password in `REDIS_PASSWORD_FILE`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The user, if there is one, and the password.

        Raises:
            redis.exceptions.AuthenticationError: The file is not usable; the next connection reads it again.
        """
        try:
            parts = urlsplit(self._settings.effective_redis_url)
        except ConfigurationError as error:
            raise AuthenticationError(error.detail) from None
        password = unquote(parts.password or "")
        return (unquote(parts.username), password) if parts.username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same; the file is a few bytes on this machine."""
        return self.get_credentials()


def read_at_each_connect(pool: Any, settings: Settings) -> None:
    """Make a redis-py pool's connections read the password again, if it is in a file."""
    if settings.redis_password_file:
        pool.connection_kwargs.pop("username", None)
        pool.connection_kwargs.pop("password", None)
        pool.connection_kwargs["credential_provider"] = PasswordFile(settings)
