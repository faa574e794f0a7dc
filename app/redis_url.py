"""Where Redis is, as redis-py, Celery and a person have to be told it; only the first two are told the password."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from app.errors import ConfigurationError

TLS_PREFIX = "ssl_"
EXPECTED = "expected redis://host:port/db, rediss://… or unix:///path"


def check(url: str) -> None:
    """Refuse what redis-py and Celery could not connect by, before anything else has begun.

    Raises:
        ConfigurationError: Says what was expected.
    """
    from redis import ConnectionPool

    parts = _split(url)
    is_socket = parts.scheme == "unix"
    problem = ""
    if parts.scheme not in ("redis", "rediss", "unix") or (is_socket and not parts.path):
        problem = "is not a Redis URL"
    elif not is_socket and not re.fullmatch(r"/?\d*", parts.path):
        problem = "names no database by number"
    else:
        try:
            ConnectionPool.from_url(url).make_connection()  # which connects on first use
        except (TypeError, ValueError):
            problem = "has an option that is unknown, or has no such value"
    if problem:
        raise ConfigurationError(f"REDIS_URL={without_secrets(url)} {problem}; {EXPECTED}")


def with_password(url: str, password_file: Path) -> str:
    """The URL with the password that a file holds; white space around it does not count.

    Raises:
        ConfigurationError: The file cannot be read or is empty, or the URL has a password already.
    """
    parts = _split(url)
    if parts.password:
        raise ConfigurationError(
            "REDIS_URL holds a password and REDIS_PASSWORD_FILE is set; leave one of them out"
        )
    try:
        password = password_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"REDIS_PASSWORD_FILE={password_file} cannot be read: {error}") from None
    if not password:
        raise ConfigurationError(f"REDIS_PASSWORD_FILE={password_file} is empty; expected Redis's password")
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.rstrip(':')}:{quote(password, safe='')}@{place}"))


def without_secrets(url: str) -> str:
    """The URL for people: no password, and no query, which may hold one too."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "(not a URL)"
    place, slash, path = rest.partition("?")[0].rpartition("@")[2].partition("/")
    return f"{scheme}://{place}{slash}{path}"


def tls_options(url: str) -> dict[str, str]:
    """TLS options, which Flower takes from Celery's configuration alone; empty without TLS.

    Raises:
        ConfigurationError: It is no URL.
    """
    parts = _split(url)
    if parts.scheme != "rediss":
        return {}
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith(TLS_PREFIX)}
    # redis-py checks certificates unless told otherwise; kombu by itself does not.
    return {"ssl_cert_reqs": "required", **given}


def celery_url(url: str) -> str:
    """The same server in kombu's form, which spells a socket ``redis+socket://``.

    Raises:
        ConfigurationError: It is no URL.
    """
    if url.startswith("unix://"):
        return "redis+socket://" + url.removeprefix("unix://").replace("?db=", "?virtual_host=")
    parts = _split(url)
    path = parts.path.strip("/") or dict(parse_qsl(parts.query)).get("db", "")
    # The TLS options stay in the URL too: wherever Celery takes the URL alone, kombu would check no certificate.
    query = urlencode(tls_options(url))
    return urlunsplit(parts._replace(path=f"/{path}" if path else "", query=query))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError as error:
        raise ConfigurationError(
            f"REDIS_URL={without_secrets(url)} is not a URL: {error}; {EXPECTED}"
        ) from None
    return parts
