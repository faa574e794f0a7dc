"""Allowed receivers of webhooks: the hosts of the settings, and no private networks unless they are allowed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from app.server_errors import WebhookNotAllowedError
from app.settings import ControllerSettings
from controller.admission.gate import ANY, listed

MOST_CHARACTERS = 2000
# Addresses that hold an IPv4 address, and how many bits follow it: translated (RFC 6052) and 6to4 (RFC 3056).
_EMBEDDING = ((IPv6Network("64:ff9b::/96"), 0), (IPv6Network("2002::/16"), 80))


def check_url(url: str, settings: ControllerSettings) -> None:
    """Refuse a `callback_url` to which this controller sends nothing.

    Raises:
        WebhookNotAllowedError: It is malformed, or not allowed by the settings.
    """
    hosts = [each.lower() for each in listed(settings.webhook_hosts)]
    if not hosts:
        raise WebhookNotAllowedError(
            "this controller sends no webhooks; leave out callback_url and read result_url, or have its operator set "
            "MODELYARD_WEBHOOK_HOSTS and MODELYARD_WEBHOOK_SECRET"
        )
    parts = _split(url)
    host = (parts.hostname or "").removesuffix(".") if parts else ""
    if parts is None or not host or parts.username is not None or parts.fragment:
        raise WebhookNotAllowedError(
            f"callback_url must be an ASCII URL of at most {MOST_CHARACTERS} characters, with a host and without user, "
            "password and fragment, such as https://hooks.example.com/jobs"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and settings.webhook_plain_http):
        also = " or http" if settings.webhook_plain_http else ""
        raise WebhookNotAllowedError(f"callback_url must begin with https{also}://")
    if not any(each in (ANY, host) or (each.startswith("*.") and host.endswith(each[1:])) for each in hosts):
        raise WebhookNotAllowedError(
            f"webhooks may not be sent to {host}; the operator allows hosts in MODELYARD_WEBHOOK_HOSTS"
        )
    if _is_address(host) and not may_connect(host, settings):
        raise WebhookNotAllowedError(f"webhooks may not be sent to {host}, which is not a public address")


def may_connect(address: str, settings: ControllerSettings) -> bool:
    """Whether webhooks may be sent to an IP address."""
    return settings.webhook_private_networks or _is_public(ip_address(address.partition("%")[0]))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return _is_public(address.ipv4_mapped)
        for network, n_bits in _EMBEDDING:
            if address in network:
                return _is_public(IPv4Address((int(address) >> n_bits) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def _split(url: str) -> SplitResult | None:
    if len(url) > MOST_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is none
    except ValueError:
        return None
    return parts


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
