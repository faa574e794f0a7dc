"""Forms of the Redis URL for redis-py, for Celery and for people; the last one has no password."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from app.errors import ConfigurationError

EXPECTED = "expected redis://host:port/db, rediss://… or unix:///path"
TLS_PREFIX = "ssl_"
# Options of redis-py. All others are refused: some would change required defaults (replies as bytes, RESP3, timeouts of
# the settings), and kombu knows none of them.
TLS_OPTIONS = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"),
        *("ssl_check_hostname", "ssl_keyfile", "ssl_password"),
    }
)
LOGIN = ("username", "password")
CERT_REQS = ("required", "optional", "none")


def normalized(url: str) -> str:
    """The URL with only options that redis-py and kombu interpret alike, and with the user before the host.

    Raises:
        ConfigurationError: It is not a URL, or it has another option.
    """
    parts = _split(url)
    allowed = {"db", *LOGIN, *(TLS_OPTIONS if parts.scheme == "rediss" else ())}
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    shown = without_secrets(url)
    if unknown := sorted(options.keys() - allowed):  # their values may be anything
        raise ConfigurationError(
            f"REDIS_URL={shown} has the unknown option {unknown[0]!r}; expected one of "
            f"{', '.join(sorted(allowed))} (a timeout is MODELYARD_REDIS_TIMEOUT_S)"
        )
    if (required := options.get("ssl_cert_reqs", CERT_REQS[0])) not in CERT_REQS:
        raise ConfigurationError(
            f"REDIS_URL={shown} has ssl_cert_reqs={required!r}; expected {', '.join(CERT_REQS)}"
        )
    if not options.get("db", "0").isdecimal():
        raise ConfigurationError(f"REDIS_URL={shown} has db={options['db']!r}; expected a number")
    if not options.keys() & set(LOGIN):
        return url
    username, password = (quote(options.pop(name, ""), safe="") for name in LOGIN)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{username}:{password}@{place}", query=urlencode(options)))


def check(url: str) -> None:
    """Refuse a URL that redis-py or Celery cannot use, before anything else starts.

    Raises:
        ConfigurationError: The URL is not usable.
    """
    from redis import ConnectionPool

    parts = _split(url)
    is_socket = parts.scheme == "unix"
    problem = ""
    if parts.scheme not in ("redis", "rediss", "unix") or (is_socket and not parts.path):
        problem = "is not a Redis URL"
    elif not is_socket and not re.fullmatch(r"/?\d*", parts.path):
        problem = "has no database number"
    else:
        try:
            ConnectionPool.from_url(normalized(url)).make_connection()  # which connects on first use
        except (TypeError, ValueError):
            problem = "has an unknown option or option value"
    if problem:
        raise ConfigurationError(f"REDIS_URL={without_secrets(url)} {problem}; {EXPECTED}")


def with_password(url: str, password_file: Path) -> str:
    """The URL with the password in a file, without surrounding white space.

    Raises:
        ConfigurationError: The file cannot be read or is empty, or the URL has a password already.
    """
    parts = _split(url)
    if parts.password:
        raise ConfigurationError(
            "REDIS_URL holds a password and REDIS_PASSWORD_FILE is set; remove one of them"
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
    """The URL for people: without the password and without the query, which may contain one, too."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "(not a URL)"
    place, slash, path = rest.partition("?")[0].rpartition("@")[2].partition("/")
    return f"{scheme}://{place}{slash}{path}"


def tls_options(url: str) -> dict[str, str]:
    """TLS options for Celery's configuration, the only place where Flower reads them; empty without TLS.

    Raises:
        ConfigurationError: It is no URL.
    """
    parts = _split(url)
    if parts.scheme != "rediss":
        return {}
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith(TLS_PREFIX)}
    # redis-py checks certificates by default; kombu does not.
    return {"ssl_cert_reqs": "required", **given}


def celery_url(url: str) -> str:
    """The same server in kombu's form, with ``redis+socket://`` for a socket.

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
    except ValueError:  # whose text may quote the password
        raise ConfigurationError(f"REDIS_URL={without_secrets(url)} is not a URL; {EXPECTED}") from None
    return parts
