"""Authentication and roles by API keys.

Without a valid key, `Gate` admits only requests for `OPEN_PATHS`; a route declares its required role with `require`.
If no keys are configured, every caller is an operator without a name.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api_keys import ApiKey, Role, holder, new_key, read_keys
from app.file_stamp import EditWatch
from app.server_errors import ConfigurationError, ForbiddenError, UnauthenticatedError
from app.settings import ControllerSettings

logger = logging.getLogger(__name__)

# Health checks of load balancers, and pages whose content is public; a browser that opens a page sends no key.
PAGES = frozenset({"/", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
PAGE_FILES = "/page/"
OPEN_FOLDERS = (PAGE_FILES, "/static-offline-docs/")
HEALTH_PATHS = frozenset(
    {"/healthz", "/readyz", "/readyz/read", "/ping", "/health", "/version"}
    | {"/v2", "/v2/", "/v2/health/live", "/v2/health/ready"}
)
OPEN_PATHS = PAGES | HEALTH_PATHS
REGISTRY_WEBHOOK = "/registry/webhook"  # MLflow signs its requests, and sends no key
# Limit for spellings of valid keys, such as `bearer` for `Bearer`; more are not needed.
CACHED_CALLERS = 1024
CACHED_BYTES = 256  # maximum size of a cached header; longer ones contain extra spaces
_HOW = "send it as `Authorization: Bearer <key>`; the client and `modelyard` read it from MODELYARD_API_KEY"


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    Attributes:
        name: Name of the API key that owns the caller's jobs; empty without keys.
        is_operator: Whether the caller may read every job and see the pool.
    """

    name: str
    is_operator: bool

    def may_read(self, owner: str) -> bool:
        """Whether the caller may read the jobs of an owner."""
        return self.is_operator or self.name == owner


ANONYMOUS = Caller("", is_operator=True)


class Access:
    """Authenticates callers with the configured keys.

    Args:
        settings: Contains the keys or their file.

    Attributes:
        is_guarded: Whether callers need a key.

    Raises:
        ConfigurationError: The keys are malformed.
    """

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._edits = EditWatch(settings.api_keys_file)
        self._keys: tuple[ApiKey, ...] = read_keys(settings)
        self._lent: tuple[ApiKey, ...] = ()
        self.is_guarded = bool(self._keys)
        self._callers: dict[bytes, Caller] = {}

    def caller(self, authorization: bytes) -> Caller:
        """The caller with this `Authorization` header (empty if it was missing).

        Raises:
            UnauthenticatedError: Keys are configured, and the header has none of them.
        """
        if not self.is_guarded:
            return ANONYMOUS
        return self._callers.get(authorization) or self._recognise(authorization)

    async def watch(self) -> None:
        """Check each heartbeat whether the key file has changed; runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_s)
            self.refresh()

    def refresh(self) -> None:
        """Read the key file again if it was edited. If it is unreadable, the keys stay unchanged."""
        if not self._edits.is_edited(self._settings.api_keys_file):
            return
        try:
            self._keys = read_keys(self._settings)
        except ConfigurationError as error:
            logger.error("%s; the %d API keys read before stay valid", error.detail, len(self._keys))
            return
        self.is_guarded, self._callers = bool(self._keys), {}
        logger.info("read %d API keys", len(self._keys))

    def lend(self, name: str) -> str:
        """A key for a process of this controller that acts for a client; empty if callers need none.

        It counts until `revoke`, and no longer than the client has a key of its own. It is kept nowhere.
        """
        if not self._is_known(name):
            return ""
        key, made = new_key(name, "predict")
        self._lent = (*self._lent, made)
        return key

    def revoke(self, key: str) -> None:
        """Make a lent key invalid."""
        self._lent = tuple(each for each in self._lent if each is not holder((each,), key.encode()))
        self._callers = {}

    def _is_known(self, name: str) -> bool:
        return any(each.name == name for each in self._keys)

    def _recognise(self, authorization: bytes) -> Caller:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise UnauthenticatedError(f"the API key is missing; {_HOW}")
        known = holder((*self._keys, *self._lent), key.strip())
        if known is None or not self._is_known(known.name):
            raise UnauthenticatedError(f"the API key is invalid; {_HOW}")
        # Only valid headers are cached, so that nobody can fill the cache without a key.
        if len(self._callers) >= CACHED_CALLERS:
            self._callers.clear()
        caller = Caller(known.name, known.role == "operate")
        if len(authorization) <= CACHED_BYTES:
            self._callers[authorization] = caller
        return caller


# The security scheme makes /docs ask for a key on the routes that declare it.
_bearer = HTTPBearer(
    auto_error=False, scheme_name="api_key", description="required if the controller has API keys"
)


async def _check_operator(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    if not request.state.caller.is_operator:
        raise ForbiddenError("this request requires an API key with the role `operate`")


def require(role: Role) -> Any:
    """A dependency for routes that require this role: `dependencies=[require("operate")]`.

    Raises:
        ForbiddenError: Raised by the dependency if the caller lacks the role.
    """
    return Depends(_check_operator if role == "operate" else _bearer)
