"""Forms of the Redis URL for redis-py, for Celery and for people; the last one has no password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

from app.server_errors import ConfigurationError

EXPECTED = (
    "expected redis://host:port/db, rediss://…, unix:///path, or sentinel://host:port,host:port/primary/db"
)
SENTINEL_EXPECTED = (
    "expected sentinel://host:port,host:port/primary/db, such as sentinel://a:26379,b:26379/mymaster/0"
)
# The second one is TLS, to the Sentinels and to Redis.
SENTINEL_SCHEMES = ("sentinel", "sentinels")
SENTINEL_PORT = 26379
SENTINEL_LOGIN = ("sentinel_username", "sentinel_password")
TLS_PREFIX = "ssl_"
# Options of redis-py. All others are refused: some would change required defaults (replies as bytes, RESP3, timeouts of
# the settings), and kombu knows none of them.
TLS_OPTIONS = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"),
        *("ssl_check_hostname", "ssl_keyfile", "ssl_password"),
    }
)
TLS_SCHEMES = ("rediss", "sentinels")
LOGIN = ("username", "password")
CERT_REQS = ("required", "optional", "none")


@dataclass(frozen=True)
class Sentinels:
    """The Sentinels of a URL.

    Attributes:
        name: The name under which they watch the primary.
        addresses: Host and port of each.
        options: Login and TLS options of connections to them, as redis-py and kombu take them.
    """

    name: str
    addresses: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, str | bool], ...] = ()


def normalized(url: str) -> str:
    """The URL with only options that redis-py and kombu interpret alike, and with the user before the host.

    Raises:
        ConfigurationError: It is not a URL, or it has another option.
    """
    parts = _split(url)
    own = SENTINEL_LOGIN if parts.scheme in SENTINEL_SCHEMES else ("db",)
    allowed = {*own, *LOGIN, *(TLS_OPTIONS if parts.scheme in TLS_SCHEMES else ())}
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
    if parts.scheme in SENTINEL_SCHEMES:
        sentinels(url)
        url = server_url(normalized(url))
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
    password = _read_password("REDIS_PASSWORD_FILE", password_file)
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.rstrip(':')}:{quote(password, safe='')}@{place}"))


def with_sentinel_password(url: str, password_file: Path) -> str:
    """The URL with the Sentinels' password in a file.

    Raises:
        ConfigurationError: The file is not usable, or the URL names no Sentinel or has their password already.
    """
    parts = _split(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme not in SENTINEL_SCHEMES or options.get("sentinel_password"):
        raise ConfigurationError(
            f"REDIS_SENTINEL_PASSWORD_FILE is set, and REDIS_URL={without_secrets(url)} names no Sentinel or holds "
            "their password; remove one of them"
        )
    password = _read_password("REDIS_SENTINEL_PASSWORD_FILE", password_file)
    return urlunsplit(parts._replace(query=urlencode({**options, "sentinel_password": password})))


def sentinels(url: str) -> Sentinels | None:
    """The Sentinels that a URL names; None if it names a server.

    Raises:
        ConfigurationError: It names Sentinels in another form.
    """
    parts = _split(url)
    if parts.scheme not in SENTINEL_SCHEMES:
        return None
    hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    name, _, database = parts.path.strip("/").partition("/")
    if not (name and all(each.hostname for each in hosts) and re.fullmatch(r"\d*", database)):
        raise ConfigurationError(
            f"REDIS_URL={without_secrets(url)} does not name Sentinels and a primary; {SENTINEL_EXPECTED}"
        )
    given = dict(parse_qsl(parts.query))
    options: dict[str, str | bool] = {
        option.removeprefix("sentinel_"): given[option] for option in SENTINEL_LOGIN if given.get(option)
    }
    if tls := tls_options(url):
        options |= {"ssl": True, **tls}
    addresses = tuple((each.hostname or "", each.port or SENTINEL_PORT) for each in hosts)
    return Sentinels(name, addresses, tuple(options.items()))


def server_url(url: str) -> str:
    """The URL of the first Sentinel as if it was the primary: login, database and TLS options are the primary's."""
    parts = _split(url)
    if parts.scheme not in SENTINEL_SCHEMES:
        return url
    login, at, hosts = parts.netloc.rpartition("@")
    options = {name: value for name, value in parse_qsl(parts.query) if name not in SENTINEL_LOGIN}
    return urlunsplit(
        (
            "rediss" if parts.scheme in TLS_SCHEMES else "redis",
            f"{login}{at}{hosts.partition(',')[0]}",
            parts.path.strip("/").partition("/")[2],
            urlencode(options),
            "",
        )
    )


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
        ConfigurationError: It is not a URL.
    """
    parts = _split(url)
    if parts.scheme not in TLS_SCHEMES:
        return {}
    given = {name: value for name, value in parse_qsl(parts.query) if name.startswith(TLS_PREFIX)}
    # redis-py checks certificates by default; kombu does not.
    return {"ssl_cert_reqs": "required", **given}


def celery_url(url: str) -> str:
    """The same server in kombu's form: ``redis+socket://`` for a socket, one URL for each Sentinel.

    Raises:
        ConfigurationError: It is not a URL.
    """
    if url.startswith("unix://"):
        return "redis+socket://" + url.removeprefix("unix://").replace("?db=", "?virtual_host=")
    parts = _split(url)
    if found := sentinels(url):
        login, at, _ = parts.netloc.rpartition("@")
        database = parts.path.strip("/").partition("/")[2] or "0"
        hosts = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found.addresses)
        return ";".join(f"sentinel://{login}{at}{host}/{database}" for host in hosts)
    path = parts.path.strip("/") or dict(parse_qsl(parts.query)).get("db", "")
    # The TLS options stay in the URL too: wherever Celery takes the URL alone, kombu would check no certificate.
    query = urlencode(tls_options(url))
    return urlunsplit(parts._replace(path=f"/{path}" if path else "", query=query))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",") if parts.scheme in SENTINEL_SCHEMES else []
        for each in [urlsplit(f"//{host}") for host in hosts] or [parts]:
            each.port  # noqa: B018  (raises where it is no number)
    except ValueError:  # whose text may quote the password
        raise ConfigurationError(f"REDIS_URL={without_secrets(url)} is not a URL; {EXPECTED}") from None
    return parts


def _read_password(variable: str, file: Path) -> str:
    try:
        password = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{variable}={file} cannot be read: {error}") from None
    if not password:
        raise ConfigurationError(f"{variable}={file} is empty; expected the password")
    return password
