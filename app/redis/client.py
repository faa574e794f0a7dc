"""Connections to Redis, and the only mapping of redis-py's errors to Modelyard's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app.redis import url as redis_url
from app.redis.credentials import read_at_each_connect
from app.redis.refusals import async_renewing, refusal, renewing
from app.redis.sentinel import NoPrimaryError, primary_of, to_primary
from app.server_errors import (
    ConfigurationError,
    LedgerFullError,
    LedgerUnavailableError,
    ModelyardError,
    WireError,
    first_line,
)
from app.settings import Settings

# Names of redis-py that other packages import from here.
Client = redis.Redis
AsyncClient = redis.asyncio.Redis
__all__ = [
    "AsyncClient",
    "Client",
    "OutOfMemoryError",
    "RedisConnectionError",
    "RedisError",
    "ResponseError",
    "connect",
    "connect_async",
    "connect_url",
    "ledger_error",
    "ledger_errors",
]
RETRY_FULL_S = 5
MAX_CONNECTIONS = 64
READ_BYTES = 2**18  # a worker fetches batches of several MiB, and others wait for it meanwhile


def _connection_options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "health_check_interval": 25}


def connect(settings: Settings, timeout_s: float | None = None, **options: Any) -> redis.Redis:
    """Synchronous client; connects on first use. Scripts are idempotent, so lost connections are retried.

    Args:
        timeout_s: Timeout of a command in seconds; by default that of the settings.
    """
    url = settings.effective_redis_url
    with _url_errors(settings):
        pool = redis.ConnectionPool.from_url(
            redis_url.server_url(url),
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            socket_read_size=READ_BYTES,
            **_connection_options(timeout_s or settings.redis_timeout_s),
        )
    pool.connection_class = to_primary(renewing(pool.connection_class), primary_of(url))
    read_at_each_connect(pool, settings)
    client = redis.Redis(connection_pool=pool, **options)
    client.auto_close_connection_pool = True
    return client


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """Asynchronous client; connects on first use.

    Commands are not retried, because a caller waits. While Redis hangs, the number of connections stays bounded.
    """
    url = settings.effective_redis_url
    with _url_errors(settings):
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            redis_url.server_url(url),
            max_connections=MAX_CONNECTIONS,
            timeout=settings.redis_timeout_s,
            **_connection_options(settings.redis_timeout_s),
        )
    pool.connection_class = to_primary(async_renewing(pool.connection_class), primary_of(url))
    read_at_each_connect(pool, settings)
    return redis.asyncio.Redis.from_pool(pool)


def connect_url(url: str, timeout_s: float | None = None) -> redis.Redis:
    """Synchronous client of a URL with its password, for a quick look.

    Raises:
        ValueError, ConfigurationError: It is not a URL of Redis.
    """
    pool = redis.ConnectionPool.from_url(redis_url.server_url(url), socket_timeout=timeout_s)
    pool.connection_class = to_primary(pool.connection_class, primary_of(url))
    return redis.Redis.from_pool(pool)


@contextmanager
def _url_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except ValueError:  # whose text may quote the password
        raise ConfigurationError(
            f"REDIS_URL={settings.shown_redis_url} is not a Redis URL; {redis_url.EXPECTED}"
        ) from None


# Redis's errors if a key or field has another type than a script expects.
_DAMAGE = ("WRONGTYPE", "is not an integer", "is not a valid float")


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Convert every redis-py error into `LedgerUnavailableError`, or `WireError` if only the values are invalid."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise ledger_error(error) from error


def ledger_error(error: Exception) -> ModelyardError:
    """The Modelyard error for an error of redis-py or of the network."""
    text = str(error)
    if isinstance(error, ResponseError) and any(sign in text for sign in _DAMAGE):
        return WireError(f"Redis holds a value of an unexpected type: {first_line(error)}")
    if isinstance(error, ResponseError) and "maxmemory" in text:  # before Redis 7 it has no class of its own
        return LedgerFullError(
            "Redis is full; jobs are accepted again when outcomes expire or Redis has more memory",
            retry_after_s=RETRY_FULL_S,
        )
    if said := refusal(error):
        return LedgerUnavailableError(f"Redis refuses: {said}", retry_after_s=1)
    if isinstance(error, NoPrimaryError):
        return LedgerUnavailableError(f"{error}; try again shortly", retry_after_s=1)
    if isinstance(error, ResponseError):
        return LedgerUnavailableError(f"Redis refused the command: {error}", retry_after_s=1)
    if said := _tls_refusal(error):
        return LedgerUnavailableError(f"Redis cannot be reached by TLS: {said}", retry_after_s=1)
    return LedgerUnavailableError("Redis does not answer; try again shortly", retry_after_s=1)


def _tls_refusal(error: BaseException | None) -> str:
    """Why the handshake of TLS failed, if this error or one that it came from says so; otherwise empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message}); see ssl_ca_certs in REDIS_URL"
    if isinstance(error, ssl.SSLError):
        return first_line(error)
    return _tls_refusal(error.__cause__ or error.__context__) if error else ""
