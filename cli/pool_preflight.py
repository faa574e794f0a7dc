"""What must hold before a pool starts: nobody else in its state directory, no port taken."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.errors import ConfigurationError
from app.settings import Settings
from cli.pool_services import Service, redis_answers


@contextmanager
def sole_pool(settings: Settings) -> Iterator[None]:
    """Hold the state directory, so that two pools never share one.

    Raises:
        ConfigurationError: A pool runs there, or the folder cannot be written.
    """
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (settings.state_dir / "pool.lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"the state directory {settings.state_dir} cannot be written ({error.strerror}); "
            "set MODELYARD_STATE_DIR to one that can"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigurationError(
                f"a pool already runs in {settings.state_dir} (process {lock.read().strip()}); stop it, "
                "or set MODELYARD_STATE_DIR to another folder for a second one"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def check(settings: Settings, services: Sequence[Service]) -> None:
    """Refuse to start where something is in the way, naming everything that is.

    Raises:
        ConfigurationError: A port is taken, a Redis server of an earlier run is still there, or the one that
            REDIS_URL names does not answer.
    """
    problems = [
        f"port {port} of {service.name} is taken; stop what listens there, or set {variable} to another port"
        for service in services
        if service.listens is not None
        for host, port, variable in [service.listens]
        if not port_is_free(host, port)
    ]
    if not settings.redis_url and redis_answers(settings.effective_redis_url):
        path = settings.redis_socket
        problems.append(f"a Redis server of an earlier run listens on {path}; redis-cli -s {path} shutdown")
    if settings.redis_url and not redis_answers(settings.effective_redis_url):
        problems.append(
            "no Redis answers at REDIS_URL; start it, or unset REDIS_URL for a server of the pool's own"
        )
    if problems:
        raise ConfigurationError("\nmodelyard: ".join(problems))


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True
