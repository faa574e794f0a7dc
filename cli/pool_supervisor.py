"""Runs the services of a pool under supervisord: its configuration, its life, what it says of a service."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xmlrpc.client import Fault, ServerProxy, Transport

from app.errors import ServiceError
from cli.pool_services import Service, Tier
from workers.parent import signal_at_parents_death

# supervisord binds "<this>.<pid>" first, so a longer name would not fit where Redis's socket just does
CONTROL_SOCKET = "ctl"
STARTED_AFTER_S = 10  # a service that dies sooner is started again after 1, 2, 3, … s; later, at once
POLL_S = 0.05
START_TIMEOUT_S = 15
CALL_TIMEOUT_S = 10


@dataclass(frozen=True)
class ServiceStatus:
    """What supervisord says of a service.

    Attributes:
        state: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN.
        pid: Process id, 0 where it does not run.
    """

    name: str
    state: str
    pid: int

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.state in ("STARTING", "RUNNING") and self.pid > 0


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _UnixTransport(Transport):
    # supervisor's own transport leaves its socket open when nobody listens yet
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # where `close` looks for it
        return connection


class Supervisor:
    """A supervisord of our own, and the processes below it; leaving the context stops them all.

    Args:
        folder: State directory; sockets and configuration go there, logs into `logs`.
        services: Everything it may start.
    """

    def __init__(self, folder: Path, services: Sequence[Service]) -> None:
        self._folder = folder.resolve()
        self._groups = {service.name: service.tier.name.lower() for service in services}
        self._config = config_text(self._folder, services)
        self._secrets = {name: value for service in services for name, value in service.secrets.items()}
        self._stop_timeout_s = 10 + sum(service.stop_wait_s for service in services)
        self._process: subprocess.Popen[bytes] | None = None
        self._last_pids: list[int] = []

    def __enter__(self) -> Self:
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for name in self._groups:
            _keep_previous(self.log_path(name))
        config = self._folder / "supervisord.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(self._config)
        with (logs / "supervisord.out").open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and file)
                [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(config)],
                env=os.environ | self._secrets,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C reaches us only, and the order of stopping is ours
                # Were we killed outright, it would go on with nobody to stop it.
                preexec_fn=signal_at_parents_death(signal.SIGTERM),
            )
        self._wait_until_it_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_alive(self) -> bool:
        """Whether supervisord itself runs."""
        return self._process is not None and self._process.poll() is None

    def log_path(self, name: str) -> Path:
        """Where the output of a service goes."""
        return log_path(self._folder, name)

    def log_tail(self, name: str, n_lines: int) -> list[str]:
        """The last lines of a service's output."""
        path = self.log_path(name)
        return path.read_text(errors="replace").splitlines()[-n_lines:] if path.exists() else []

    def start(self, services: Iterable[Service]) -> None:
        """Start services; returns before they are ready.

        Raises:
            ServiceError: A program cannot be run at all.
        """
        for service in services:
            try:
                self._call("startProcess", f"{self._groups[service.name]}:{service.name}", False)
            except Fault as fault:
                raise ServiceError(
                    f"{service.name} cannot be started ({fault.faultString}): {service.command[0]}"
                ) from None

    def statuses(self) -> dict[str, ServiceStatus]:
        """Every service's status, by name.

        Raises:
            ServiceError: supervisord does not answer.
        """
        try:
            answers: list[dict[str, Any]] = self._call("getAllProcessInfo")
        except OSError as error:
            raise ServiceError(
                f"the supervisor of the pool is gone ({error}); its log: {self._log}"
            ) from None
        self._last_pids = [answer["pid"] for answer in answers if answer["pid"]]
        return {
            answer["name"]: ServiceStatus(answer["name"], answer["statename"], answer["pid"])
            for answer in answers
        }

    def stop(self) -> None:
        """Stop everything, tier by tier; a service that takes too long is killed."""
        if self._process is None:
            return
        if not self.is_alive:
            self._stop_orphans()
        try:
            self._call("shutdown")
        except (OSError, Fault):
            self._process.terminate()
        try:
            self._process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _stop_orphans(self) -> None:
        # supervisord was killed; each of its processes leads a process group
        for pid in self._last_pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)

    @property
    def _log(self) -> Path:
        return self._folder / "logs" / "supervisord.log"

    def _call(self, method: str, *arguments: Any) -> Any:
        with ServerProxy(
            "http://localhost", transport=_UnixTransport(self._folder / CONTROL_SOCKET)
        ) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _wait_until_it_answers(self) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while self.is_alive and time.monotonic() < give_up_at:
            try:
                self._call("getState")
            except (OSError, Fault):
                time.sleep(POLL_S)
            else:
                return
        self.stop()
        raise ServiceError(f"supervisord did not start; see {self._folder / 'logs' / 'supervisord.out'}")


def log_path(folder: Path, name: str) -> Path:
    """Where the output of a service goes."""
    return folder / "logs" / f"{name}.log"


def config_text(folder: Path, services: Sequence[Service]) -> str:
    """Configuration of supervisord: nothing starts by itself, everything that was started stays up.

    Args:
        folder: State directory, absolute.
        services: Everything it may start.
    """
    sections = [
        _section("unix_http_server", file=str(folder / CONTROL_SOCKET), chmod="0700"),
        _section(
            "supervisord",
            nodaemon="true",
            silent="true",
            logfile=str(folder / "logs" / "supervisord.log"),
            pidfile=str(folder / "supervisord.pid"),
        ),
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n",
    ]
    for tier in Tier:
        members = [service for service in services if service.tier is tier]
        if members:
            names = ",".join(service.name for service in members)
            sections.append(_section(f"group:{tier.name.lower()}", programs=names, priority=str(tier.value)))
            sections += [_program(folder, service) for service in members]
    return "\n".join(sections)


def _program(folder: Path, service: Service) -> str:
    variables = {**service.environment, "PYTHONUNBUFFERED": "1"}
    return _section(
        f"program:{service.name}",
        command=shlex.join(service.command),
        environment=",".join(f'{name}="{value}"' for name, value in variables.items()),
        autostart="false",
        autorestart="true",
        startsecs=str(STARTED_AFTER_S),
        startretries="1000000",
        stopsignal="TERM",
        stopasgroup="true",
        killasgroup="true",
        stopwaitsecs=str(service.stop_wait_s),
        redirect_stderr="true",
        stdout_logfile=str(log_path(folder, service.name)),
        stdout_logfile_maxbytes="10MB",
        stdout_logfile_backups="1",
    )


def _section(title: str, **options: str) -> str:
    # supervisord expands %(name)s in every value
    lines = [f"{name} = {value.replace('%', '%%')}" for name, value in options.items()]
    return "\n".join([f"[{title}]", *lines, ""])


def _keep_previous(log: Path) -> None:
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
