"""Which hosts and which web pages are answered.

A browser lets any page send simple requests anywhere, and a page whose name is made to lead to this machine (DNS
rebinding) reads the answers. API keys keep such pages out. Without keys this does: a request is answered if it was
sent to an IP address, to localhost or to a name in `MODELYARD_ALLOWED_HOSTS`, and came from no page, or from one of
this host or of `MODELYARD_CORS_ORIGINS`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from app.errors import HostNotAllowedError, ModelyardError, OriginNotAllowedError
from app.settings import ControllerSettings
from controller.admission.authentication import HEALTH_PATHS, Access

ANY = "*"
# A host as the Host header spells it: a bracketed IPv6 address or a name, then perhaps a port (RFC 9110, section 7.2).
_HOST = re.compile(r"(?:\[([^]]*:[^]]*)]|([^][:]*))(?::[0-9]*)?")


class Gate:
    """Decides by the headers Host and Origin.

    Args:
        settings: Which hosts and origins are allowed.
        access: Whether there are API keys.
    """

    def __init__(self, settings: ControllerSettings, access: Access) -> None:
        self._access = access
        self._names = {_name(each) for each in listed(settings.allowed_hosts)} - {""}
        self._suffixes = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._origins = frozenset(listed(settings.cors_origins))

    def check(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> None:
        """Refuse a request that may come from a foreign web page. Health is told to everybody.

        Raises:
            HostNotAllowedError: It was sent to a name that may be anybody's.
            OriginNotAllowedError: A page of another site sent it.
        """
        if self._access.is_guarded or path in HEALTH_PATHS:
            return
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        for host in hosts:
            if not self._is_own(_name(host)):
                raise HostNotAllowedError(
                    "this controller has no API keys, and answers only requests to IP addresses, to localhost and to "
                    "the names in MODELYARD_ALLOWED_HOSTS; add the name that you use"
                )
        for origin in (value.decode("latin-1") for name, value in headers if name == b"origin"):
            if not self._is_of(origin, hosts):
                raise OriginNotAllowedError(
                    "this controller has no API keys, and answers only web pages of its own host and of the origins in "
                    "MODELYARD_CORS_ORIGINS; add the page's origin"
                )

    def passes(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether `check` lets a request to any other path pass."""
        try:
            self.check(headers, "")
        except ModelyardError:
            return False
        return True

    def _is_own(self, name: str) -> bool:
        return (
            name == "localhost"
            or name in self._names
            or ANY in self._names
            or name.endswith(self._suffixes)
            or _is_address(name)  # an address cannot be made to lead elsewhere
        )

    def _is_of(self, origin: str, hosts: list[str]) -> bool:
        is_same_site = [origin.partition("://")[2].lower()] == [host.lower() for host in hosts]
        return is_same_site or origin in self._origins or ANY in self._origins


def listed(text: str) -> list[str]:
    """The parts of a setting that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _name(host: str) -> str:
    """A host without its port; empty where it is malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2] or "").lower().removesuffix(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
