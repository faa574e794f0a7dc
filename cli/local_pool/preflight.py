"""Checks before a pool starts: an exclusive state directory and free ports."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.server_errors import ConfigurationError
from app.settings import Settings
from cli.local_pool.listening import refusal
from cli.local_pool.present_state import redis_answers
from cli.local_pool.programs import Service
from cli.local_pool.redis_server import unwritable
from modelyard.commands.controller_option import local_url

GOING_S, POLL_S = 2.0, 0.05


@contextmanager
def sole_pool(settings: Settings) -> Iterator[None]:
    """Lock the state directory, so that two pools never share one.

    Raises:
        ConfigurationError: A pool runs there, or the folder cannot be written.
    """
    _ = settings.redis_socket  # supervisord's own socket is about as long
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (settings.state_dir / "pool.lock").open("a+")
    except OSError as error:
        raise unwritable(settings.state_dir, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigurationError(
                f"a pool already runs in {settings.state_dir} (process {lock.read().strip()}); stop it, "
                "or set MODELYARD_STATE_DIR to another folder for a second one"
            ) from None
        try:
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), b"%d\n" % os.getpid())
        except OSError as error:
            raise unwritable(settings.state_dir, error) from None
        yield


def is_running(settings: Settings) -> bool:
    """Whether a pool runs in the state directory."""
    try:
        with (settings.state_dir / "pool.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check(settings: Settings, services: Sequence[Service]) -> None:
    """Refuse to start if there are obstacles; the error names all of them.

    Raises:
        ConfigurationError: A port is in use or assigned to two services, a Redis server of an earlier run is still
            running, or the server of REDIS_URL does not answer.
    """
    problems = [
        problem
        for service in services
        if service.listens is not None
        if (problem := refusal(service.name, *service.listens))
    ]
    problems += _shared_ports(services)
    if not settings.redis_url and _goes_on_answering(settings.effective_redis_url):
        path = settings.redis_socket
        problems.append(f"a Redis server of an earlier run listens on {path}; redis-cli -s {path} shutdown")
    if settings.redis_url and not redis_answers(settings.effective_redis_url):
        problems.append(
            f"no Redis answers at REDIS_URL={settings.shown_redis_url}; start it, or unset REDIS_URL to use the "
            f"pool's own server"
        )
    if problems:
        raise ConfigurationError("\nmodelyard: ".join(problems))


def _shared_ports(services: Sequence[Service]) -> list[str]:
    """One line for each service with the same port as an earlier one."""
    problems: list[str] = []
    takers: dict[str, tuple[str, str]] = {}
    for name, (host, port, variable) in ((each.name, each.listens) for each in services if each.listens):
        first, its_variable = takers.setdefault(local_url(host, port), (name, variable))
        if first != name:
            problems.append(
                f"{first} and {name} both listen on port {port}; set {its_variable} or {variable} to another"
            )
    return problems


def _goes_on_answering(redis_url: str) -> bool:
    """Whether a Redis server keeps answering: a stopping server may answer briefly after its process seems gone."""
    give_up_at = time.monotonic() + GOING_S
    while redis_answers(redis_url):
        if time.monotonic() > give_up_at:
            return True
        time.sleep(POLL_S)
    return False
