"""Who asks, and what they may: API keys as the controller goes by them.

`Gate` lets nothing but `OPEN_PATHS` pass without a valid key; a route says with `require` which role it needs.
Where there are no keys, everybody is an operator without a name.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api_keys import ApiKey, Role, holder, read_keys
from app.errors import ConfigurationError, ForbiddenError, UnauthenticatedError
from app.settings import ControllerSettings

logger = logging.getLogger(__name__)

# What a load balancer asks, and what the published source says anyhow; a browser that opens a page sends no key.
DOCUMENTATION_PATHS = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json"})
DOCUMENTATION_FILES = "/static-offline-docs/"
HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/readyz/read", "/ping", "/health", "/version"})
OPEN_PATHS = DOCUMENTATION_PATHS | HEALTH_PATHS
# Spellings of valid keys, such as `bearer` for `Bearer`: there is no need for more.
CACHED_CALLERS = 1024
CACHED_BYTES = 256  # of a header; longer ones hold spaces
_HOW = "send it as `Authorization: Bearer <key>`; the client and `modelyard` read it from MODELYARD_API_KEY"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: Name of their API key, to which their jobs belong; empty where there are no keys.
        is_operator: Whether they may read every job and see the pool.
    """

    name: str
    is_operator: bool

    def may_read(self, owner: str) -> bool:
        """Whether a job of this owner is theirs to read and cancel."""
        return self.is_operator or owner == self.name


ANONYMOUS = Caller("", is_operator=True)


class Access:
    """Recognises callers by the keys of the settings.

    Args:
        settings: Where the keys are.

    Raises:
        ConfigurationError: They are malformed.
    """

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._stamp = self._file_stamp()  # before it is read: a change in between is seen at the next look
        self._keys: tuple[ApiKey, ...] = read_keys(settings)
        self._callers: dict[bytes, Caller] = {}

    @property
    def is_guarded(self) -> bool:
        """Whether callers need a key."""
        return bool(self._keys)

    def caller(self, authorization: bytes) -> Caller:
        """Who sent this `Authorization` header, empty where there was none.

        Raises:
            UnauthenticatedError: There are keys, and none of them was sent.
        """
        if not self._keys:
            return ANONYMOUS
        return self._callers.get(authorization) or self._recognise(authorization)

    async def watch(self) -> None:
        """Until cancelled, look each heartbeat whether the file of keys has changed."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            self.refresh()

    def refresh(self) -> None:
        """Read the file of keys again if it has changed. One that cannot be read leaves the keys as they were."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._settings)
        except ConfigurationError as error:
            logger.error("%s; the %d API keys read before stay valid", error.detail, len(self._keys))
            return
        self._callers = {}
        logger.info("read %d API keys", len(self._keys))

    def _recognise(self, authorization: bytes) -> Caller:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise UnauthenticatedError(f"the API key is missing; {_HOW}")
        known = holder(self._keys, key.strip())
        if known is None:
            raise UnauthenticatedError(f"the API key is invalid; {_HOW}")
        # Only valid ones are kept, so nobody fills this without a key.
        if len(self._callers) >= CACHED_CALLERS:
            self._callers.clear()
        caller = Caller(known.name, known.role == "operate")
        if len(authorization) <= CACHED_BYTES:
            self._callers[authorization] = caller
        return caller

    def _file_stamp(self) -> tuple[int, int, int] | None:
        path = self._settings.api_keys_file
        try:
            found = path.stat() if path else None
        except OSError:
            return None
        return found and (found.st_ino, found.st_ctime_ns, found.st_size)


def caller_of(request: Request) -> Caller:
    """Who sent a request that `Gate` let in."""
    caller: Caller = request.state.caller
    return caller


# The scheme is there for /docs, which asks for a key where one of its routes names it.
_bearer = HTTPBearer(
    auto_error=False, scheme_name="API key", description="required if the controller has API keys"
)


async def _check_operator(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    if not caller_of(request).is_operator:
        raise ForbiddenError("this request requires an API key with the role `operate`")


def require(role: Role) -> Any:
    """Dependency of a route that only this role may use: `dependencies=[require("operate")]`.

    Raises:
        ForbiddenError: When called without the role.
    """
    return Depends(_check_operator if role == "operate" else _bearer)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(DOCUMENTATION_FILES) or is_page(path)


def is_page(path: str) -> bool:
    """Whether a path is the page or one of its files, which are the same for all."""
    return path == "/" or path.startswith("/page/")
