"""Runs the services of a pool under supervisord: its configuration, its lifecycle, the status of services."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from xml.parsers.expat import ExpatError
from xmlrpc.client import Fault, ServerProxy, Transport

from app.server_errors import ServiceError
from cli.local_pool import leash, leftovers
from cli.local_pool import redis_server as pool_redis
from cli.local_pool.leftovers import CONTROL_SOCKET, Leftover
from cli.local_pool.programs import Service, Tier, write_services
from workers.process.prefork_supervisor import signal_at_parents_death

STARTED_AFTER_S = 10  # a service that dies sooner is restarted after 1, 2, 3, … s; later, immediately
POLL_S = 0.05
START_TIMEOUT_S = 15
CALL_TIMEOUT_S = 10
DEATH_WAIT_S = 0.5
IS_STOPPING = 6  # code of the fault that answers every call while supervisord stops its services
CONFIG = "supervisord.conf"
PYTHON = "POOL_PYTHON"  # variable with the interpreter's path for supervisord, quoted for a shell


@dataclass(frozen=True)
class ServiceStatus:
    """The status of a service in supervisord.

    Attributes:
        state: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN.
        pid: Process id, 0 if it does not run.
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
    """A private supervisord and its processes; the end of the context stops all of them.

    supervisord stops when this process dies, and the services stop when supervisord dies.

    Args:
        folder: State directory for sockets and configuration; logs are in `logs`.
        services: The services that it may start at first.
    """

    def __init__(self, folder: Path, services: Sequence[Service]) -> None:
        self._folder = folder.resolve()
        self._services = {service.name: service for service in services}
        self._secrets = {name: value for service in services for name, value in service.secrets.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def stop_timeout_s(self) -> int:
        """Seconds after which all services must have stopped."""
        return 10 + sum(service.stop_wait_s for service in self._services.values())

    def __enter__(self) -> Self:
        """Start supervisord.

        Raises:
            ConfigurationError: The state directory cannot be written.
            ServiceError: supervisord does not start.
        """
        try:
            output = self._write_files()
        except OSError as error:
            raise pool_redis.unwritable(self._folder, error) from None
        name, value = leftovers.mark(self._folder)
        with output:
            self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and file)
                [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", CONFIG],
                cwd=self._folder,
                env={**os.environ, **self._secrets, name: value, PYTHON: shlex.quote(sys.executable)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which determines the stop order
                # If this process were killed, supervisord would otherwise run on without anyone to stop it.
                preexec_fn=_stop_with(os.getpid()),
            )
        self._wait_until_it_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_files(self) -> BinaryIO:
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for name in self._services:
            _keep_previous(self.log_path(name))
        self._write_config()
        return (logs / "supervisord.out").open("wb")

    def _write_config(self) -> None:
        services = list(self._services.values())
        config = self._folder / CONFIG
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(config_text(services))
        write_services(self._folder, services)

    @property
    def is_alive(self) -> bool:
        """Whether supervisord itself runs."""
        return self._process is not None and self._process.poll() is None

    def log_path(self, name: str) -> Path:
        """The log file of a service."""
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
            if not shutil.which(service.command[0]):
                raise ServiceError(
                    f"{service.name} cannot be started: there is no program {service.command[0]}"
                )
            try:
                self._call("startProcess", service.name, False)
            except Fault as fault:
                raise ServiceError(f"{service.name} cannot be started ({fault.faultString})") from None

    def start_again(self, name: str) -> None:
        """Start a service that has ended.

        Raises:
            ServiceError: supervisord does not answer.
        """
        with suppress(Fault):  # it runs
            self._call("startProcess", name, False)

    def add(self, services: Sequence[Service]) -> None:
        """Add services to those that it may start.

        Raises:
            ServiceError: supervisord does not answer, or the state directory cannot be written.
        """
        for service in services:
            _keep_previous(self.log_path(service.name))
        self._services |= {service.name: service for service in services}
        self._reload()
        for service in services:
            self._call("addProcessGroup", service.name)

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service, if it runs.

        Raises:
            ServiceError: supervisord does not answer.
        """
        with suppress(Fault):
            self._call("signalProcess", name, number.name)

    def end(self, name: str) -> None:
        """Tell a service to stop; returns before it has stopped.

        Raises:
            ServiceError: supervisord does not answer.
        """
        with suppress(Fault):  # it has stopped already
            self._call("stopProcess", name, False)

    def remove(self, name: str) -> None:
        """Remove a service that has stopped.

        Raises:
            ServiceError: supervisord does not answer, or the service still runs.
        """
        try:
            self._call("removeProcessGroup", name)
        except Fault as fault:
            raise ServiceError(f"{name} cannot be removed ({fault.faultString})") from None
        del self._services[name]
        self._reload()

    def _reload(self) -> None:
        try:
            self._write_config()
            self._call("reloadConfig")
        except (OSError, Fault) as error:
            raise ServiceError(f"the services of the pool cannot be changed ({error})") from None

    def statuses(self) -> dict[str, ServiceStatus]:
        """Every service's status, by name.

        Raises:
            ServiceError: supervisord does not answer.
        """
        answers: list[dict[str, Any]] = self._call("getAllProcessInfo")
        return {
            answer["name"]: ServiceStatus(answer["name"], answer["statename"], answer["pid"])
            for answer in answers
        }

    def stop(self) -> list[Leftover]:
        """Stop everything, tier by tier; a service that takes too long is killed.

        Returns:
            The processes that are still running.
        """
        if self._process is not None:
            try:
                self._stop_tiers()
                self._call("shutdown")
            except (ServiceError, Fault):
                self._process.terminate()
            try:
                self._process.wait(self.stop_timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        # If supervisord was killed, its death has told its processes to stop.
        return leftovers.end(self._folder, self.stop_timeout_s, lambda _: None)

    def _stop_tiers(self) -> None:
        """Stop all services of a tier at once; supervisord's own shutdown stops one after the other."""
        for tier in reversed(Tier):
            members = {service.name: service for service in self._services.values() if service.tier is tier}
            for name in members:
                self.end(name)
            wait_s = max((service.stop_wait_s for service in members.values()), default=0)
            give_up_at = time.monotonic() + wait_s + CALL_TIMEOUT_S
            while time.monotonic() < give_up_at and self._going(members):
                time.sleep(POLL_S)

    def _going(self, names: Iterable[str]) -> bool:
        statuses = self.statuses()
        return any(statuses[name].pid for name in names)

    @property
    def _log(self) -> Path:
        return self._folder / "logs" / "supervisord.log"

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            with ServerProxy(
                "http://localhost", transport=_UnixTransport(self._folder / CONTROL_SOCKET)
            ) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except Fault as fault:
            if fault.faultCode != IS_STOPPING:
                raise
            why = "was stopped by another program"
            raise ServiceError(f"the supervisor of the pool {why}; its log: {self._log}") from None
        except (OSError, HTTPException, ExpatError) as error:
            raise ServiceError(self._what_is_wrong(error)) from None

    def _what_is_wrong(self, error: Exception) -> str:
        with suppress(subprocess.TimeoutExpired):  # if it was killed, its socket closes first
            if self._process is not None:
                self._process.wait(DEATH_WAIT_S)
        how = self._end() or f"does not answer ({error})"
        return f"the supervisor of the pool {how}; its log: {self._log}"

    def _end(self) -> str:
        """How supervisord ended, in words; empty while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"

    def _wait_until_it_answers(self) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while self.is_alive and time.monotonic() < give_up_at:
            if (self._folder / CONTROL_SOCKET).exists():
                with suppress(ServiceError, Fault):
                    self._call("getState")
                    return
            time.sleep(POLL_S)
        output = self._folder / "logs" / "supervisord.out"
        lines = output.read_text(errors="replace").splitlines()
        reason = ": ".join([self._end() or "does not answer", *(line[:300] for line in lines[:1])])
        self.stop()
        raise ServiceError(f"supervisord did not start ({reason}); see {output}")


def _stop_with(parent: int) -> Callable[[], None]:
    """A function for the child, before it becomes supervisord, that makes it stop at its parent's death."""
    ask_for_signal = signal_at_parents_death(signal.SIGTERM)

    def ask() -> None:
        if ask_for_signal:
            ask_for_signal()
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)

    return ask


def log_path(folder: Path, name: str) -> Path:
    """The log file of a service."""
    return folder / "logs" / f"{name}.log"


def config_text(services: Sequence[Service]) -> str:
    """Configuration of supervisord: no service starts automatically, and started services are restarted.

    A worker that ends with status 0 is not: its version was retired.

    Every path is relative to the state directory, in which supervisord runs: it expands `%` in some values twice, and
    a `;` may begin a comment.

    Args:
        services: All services that it may start.
    """
    sections = [
        _section("unix_http_server", file=CONTROL_SOCKET, chmod="0700"),
        _section(
            "supervisord",
            nodaemon="true",
            silent="true",
            logfile="logs/supervisord.log",
            pidfile=leash.PID_FILE,
            # supervisord refuses to start below these; a small pool needs fewer
            minfds=str(_allowed(resource.RLIMIT_NOFILE, 1024)),
            minprocs=str(_allowed(resource.RLIMIT_NPROC, 200)),
        ),
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n",
    ]
    sections += map(_program, services)
    return "\n".join(sections)


def _allowed(limit: int, wanted: int) -> int:
    _, hard = resource.getrlimit(limit)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _program(service: Service) -> str:
    return _section(
        f"program:{service.name}",
        command=f"%(ENV_{PYTHON})s -P -m cli.local_pool.leash {service.name}",
        autostart="false",
        priority=str(service.tier.value),
        autorestart="unexpected" if service.tier is Tier.WORKERS else "true",
        startsecs=str(STARTED_AFTER_S),
        startretries="1000000",
        stopsignal="TERM",
        stopasgroup="true",
        killasgroup="true",
        stopwaitsecs=str(service.stop_wait_s),
        redirect_stderr="true",
        stdout_logfile=f"logs/{service.name}.log",
        stdout_logfile_maxbytes="10MB",
        stdout_logfile_backups="1",
    )


def _section(title: str, **options: str) -> str:
    return "\n".join([f"[{title}]", *(f"{name} = {value}" for name, value in options.items()), ""])


def _keep_previous(log: Path) -> None:
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
