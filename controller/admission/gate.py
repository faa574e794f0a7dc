"""Admission of requests: checks the requested host, the web page's origin, the API key and the drain state.

A browser lets any page send simple requests to any host. A page whose name resolves to this machine (DNS rebinding) can
read the answers. API keys exclude such pages. Without keys, a request is answered only under two conditions: it was
sent to an IP address, to localhost or to a name in `MODELYARD_ALLOWED_HOSTS`; and it came from no page, or from a page
of this host or of `MODELYARD_CORS_ORIGINS`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from app.server_errors import DrainingError, HostNotAllowedError, OriginNotAllowedError
from app.settings import ControllerSettings
from controller.admission.audit_log import Client
from controller.admission.authentication import (
    ANONYMOUS,
    HEALTH_PATHS,
    OPEN_FOLDERS,
    OPEN_PATHS,
    REGISTRY_WEBHOOK,
    Access,
    Caller,
)
from controller.admission.rate_limit import RateLimit
from controller.http.draining import Drain

HeaderList = Sequence[tuple[bytes, bytes]]
ANY = "*"
KNOWN_HOSTS = 64  # maximum number of cached hosts; more are not needed
# The value of a Host header: a bracketed IPv6 address or a name, and an optional port (RFC 9110, section 7.2).
_HOST = re.compile(r"(?:\[([^]]*:[^]]*)]|([^][:]*))(?::[0-9]*)?")


class Gate:
    """The admission check that every request passes, on the fast path and in the ASGI application.

    Args:
        settings: Contains the allowed hosts and origins.
        access: Authenticates API keys.
        drain: Whether predictions are still accepted.
        rate_limit: Knows the clients that have used up their limit; None without a rate limit.
    """

    def __init__(
        self, settings: ControllerSettings, access: Access, drain: Drain, rate_limit: RateLimit | None
    ) -> None:
        self._access = access
        self._drain = drain
        self._rate_limit = rate_limit
        self._names = {_name(each) for each in listed(settings.allowed_hosts)} - {""}
        self._suffixes = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._own_hosts: set[str] = set()
        self._origins = frozenset(listed(settings.cors_origins))

    def enter(self, path: str, headers: HeaderList) -> Caller:
        """Admit a request other than a prediction. Health, documentation and MLflow's signed webhook need no key.

        Args:
            path: The path as sent, before it is resolved to a route.

        Raises:
            HostNotAllowedError, OriginNotAllowedError: See `check_site`.
            UnauthenticatedError: The API key is missing or invalid.
        """
        if path == REGISTRY_WEBHOOK:
            return ANONYMOUS
        if path not in HEALTH_PATHS:
            self.check_site(headers)
        if not self._access.is_guarded or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return ANONYMOUS
        return self._access.caller(dict(headers).get(b"authorization", b""))

    def admit(self, authorization: bytes, client: Client) -> Caller:
        """Admit a prediction whose host and origin were checked before.

        Raises:
            DrainingError: The controller is stopping.
            UnauthenticatedError: The API key is missing or invalid.
            RateLimitError: The client is known to have used up its limit.
        """
        if self._drain.has_begun:
            raise DrainingError(
                "this controller is stopping; use another one, or try again shortly", retry_after_s=1
            )
        caller = self._access.caller(authorization) if self._access.is_guarded else ANONYMOUS
        if self._rate_limit:
            self._rate_limit.check(caller, client)
        return caller

    def check_site(self, headers: HeaderList) -> None:
        """Refuse a request that may come from a foreign web page.

        Raises:
            HostNotAllowedError: It was sent to a host name that is not allowed.
            OriginNotAllowedError: A page of another site sent it.
        """
        if self._access.is_guarded:
            return
        hosts, origins = [], []
        for name, value in headers:
            if name == b"host":
                hosts.append(value.decode("latin-1"))
            elif name == b"origin":
                origins.append(value.decode("latin-1"))
        for host in hosts:
            if host not in self._own_hosts and not self._is_own(host):
                raise HostNotAllowedError(
                    "this controller has no API keys and answers only requests to IP addresses, to localhost "
                    "and to the names in MODELYARD_ALLOWED_HOSTS; add this host name there"
                )
        for origin in origins:
            if not self._is_of(origin, hosts):
                raise OriginNotAllowedError(
                    "this controller has no API keys and answers only web pages of its own host and of the "
                    "origins in MODELYARD_CORS_ORIGINS; add the page's origin there"
                )

    def _is_own(self, host: str) -> bool:
        name = _name(host)
        is_own = (
            name == "localhost"
            or name in self._names
            or ANY in self._names
            or name.endswith(self._suffixes)
            or _is_address(name)  # an address cannot be rebound by DNS
        )
        if is_own and len(self._own_hosts) < KNOWN_HOSTS:
            self._own_hosts.add(host)
        return is_own

    def _is_of(self, origin: str, hosts: list[str]) -> bool:
        is_same_site = [origin.partition("://")[2].lower()] == [host.lower() for host in hosts]
        return is_same_site or origin in self._origins or ANY in self._origins


def listed(text: str) -> list[str]:
    """The comma-separated parts of a setting."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _name(host: str) -> str:
    """A host without its port; empty if it is malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2] or "").lower().removesuffix(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
