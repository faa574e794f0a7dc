"""A primary, two replicas and three Sentinels on this machine, each a process with a folder and a port of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.local_pool.redis_server import find_server

HOST = "127.0.0.1"
NAMED = "localhost"  # with TLS, as certificates name hosts
NAME = "mymaster"
QUORUM = 2
DOWN_AFTER_MS = 1000
READY_S = 20.0
POLL_S = 0.02
Address = tuple[str, int]


class SentinelServers:
    """The servers, started on entry and stopped on exit.

    Args:
        options: Further lines of each Redis's configuration.
        password: Password of Redis, and of each of its users; empty for none.
        users: Lines of Redis's ACL file; among them are `replica`, `sentinel` and `operator`. Empty for no users.
        sentinel_password: Password of the Sentinels; empty for none.
        certificates: Folder with `ca.pem`, and a certificate for `localhost` with its key in `own.pem`: all connections
            are TLS. None for no TLS.
        program: The server program; by default that of `modelyard up`.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        password: str = "",
        sentinel_password: str = "",
        users: Sequence[str] = (),
        certificates: Path | None = None,
        program: str = "",
    ) -> None:
        self._folder, self._certificates = folder, certificates
        self._program = program or str(find_server())
        self._host = HOST if certificates is None else NAMED
        self._user = "operator" if users else None
        self._password, self._sentinel_password = password, sentinel_password
        self._ports = [_free_port() for _ in range(3)]
        self.sentinel_ports = [_free_port() for _ in range(3)]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        names = [] if certificates is None else ["resolve-hostnames yes", "announce-hostnames yes"]
        login = [f"requirepass {password}", f"masterauth {password}"] if password else []
        if users:
            (folder / "users.acl").write_text("\n".join([*users, ""]))
            login = [f"aclfile {folder}/users.acl", "masteruser replica", f"masterauth {password}"]
        for port in self._ports:
            primary = [] if port == self._ports[0] else [f"replicaof {self._host} {self._ports[0]}"]
            if certificates:
                primary.append(f"replica-announce-ip {self._host}")
            durable = ["appendonly yes", 'save ""', "repl-diskless-sync-delay 0"]
            self._write(port, [*durable, *login, *primary, *options])
        for port in self.sentinel_ports:
            watched = [*names, f"monitor {NAME} {self._host} {self._ports[0]} {QUORUM}"]
            watched += [f"down-after-milliseconds {NAME} {DOWN_AFTER_MS}", f"failover-timeout {NAME} 6000"]
            watched += [f"auth-pass {NAME} {password}"] if password else []
            watched += [f"auth-user {NAME} sentinel"] if users else []
            own = [f"requirepass {sentinel_password}"] if sentinel_password else []
            self._write(port, [*own, *(f"sentinel {line}" for line in watched)])

    @property
    def url(self) -> str:
        """What REDIS_URL takes, without passwords."""
        hosts = ",".join(f"{self._host}:{port}" for port in self.sentinel_ports)
        if self._certificates:
            return f"sentinels://{hosts}/{NAME}/0?ssl_ca_certs={self._certificates}/ca.pem"
        return f"sentinel://{hosts}/{NAME}/0"

    def __enter__(self) -> SentinelServers:
        for port in self._ports:
            self.start(port)
        _until(lambda: self._n_replicas(self._ports[0]) == 2)
        for port in self.sentinel_ports:
            self.start(port, "--sentinel")
        _until(lambda: self.is_complete)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in [*self._running]:
            self.stop(port)

    def start(self, port: int, *arguments: str) -> None:
        """Start a server with its configuration."""
        command = [self._program, str(self._config(port)), *arguments]
        self._running[port] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _until(lambda: self._answers(port))

    def stop(self, port: int, number: int = signal.SIGKILL) -> None:
        """End a server."""
        process = self._running.pop(port)
        process.send_signal(number)
        process.wait()

    def suspend(self, port: int, number: int = signal.SIGSTOP) -> None:
        """Send a server a signal that it survives."""
        self._running[port].send_signal(number)

    def client(self, port: int) -> Any:
        """A client of one server."""
        is_sentinel = port in self.sentinel_ports
        password = self._sentinel_password if is_sentinel else self._password
        return redis.Redis(
            self._host,
            port,
            username=None if is_sentinel else self._user,
            password=password or None,
            decode_responses=True,
            socket_timeout=1,
            retry=Retry(NoBackoff(), 0),
            ssl=self._certificates is not None,
            ssl_ca_certs=f"{self._certificates}/ca.pem",
        )

    def primary(self) -> int:
        """Port of the primary that most Sentinels name."""
        named: list[int] = []
        for port in self.sentinel_ports:
            with suppress(redis.RedisError), self.client(port) as client:
                named.append(int(client.sentinel_get_master_addr_by_name(NAME)[1]))
        return max(named, key=named.count)

    def replicas(self) -> list[int]:
        """Ports of the other servers that run."""
        primary = self.primary()
        return [port for port in self._ports if port in self._running and port != primary]

    def start_dead(self) -> None:
        """Start every Redis that was stopped."""
        for port in self._ports:
            if port not in self._running:
                self.start(port)

    def fail_over(self) -> None:
        """Order a failover; the Sentinels carry it out."""
        _until(self._takes_order)

    def _takes_order(self) -> bool:
        # It is refused while the Sentinel does not know of a replica in good state.
        with suppress(redis.ResponseError), self.client(self.sentinel_ports[0]) as client:
            return bool(client.execute_command("SENTINEL", "FAILOVER", NAME))
        return False

    @property
    def is_complete(self) -> bool:
        """Whether the primary has two replicas, and every Sentinel knows all servers."""
        states = []
        for port in self.sentinel_ports:
            with self.client(port) as client:
                states.append(client.sentinel_master(NAME))
        known = all(state["num-slaves"] == 2 and state["num-other-sentinels"] == 2 for state in states)
        return known and self._n_replicas(self.primary()) == 2

    def _n_replicas(self, port: int) -> int:
        with self.client(port) as client:
            return int(client.info("replication")["connected_slaves"])

    def _answers(self, port: int) -> bool:
        with suppress(redis.RedisError), self.client(port) as client:
            return bool(client.ping())
        return False

    def _config(self, port: int) -> Path:
        return self._folder / str(port) / "server.conf"

    def _write(self, port: int, lines: Sequence[str]) -> None:
        config = self._config(port)
        config.parent.mkdir(parents=True)
        general = [f"bind {HOST}", f"dir {config.parent}", "daemonize no"]
        if folder := self._certificates:
            general += ["port 0", f"tls-port {port}", "tls-replication yes", "tls-auth-clients no"]
            general += [f"tls-cert-file {folder}/own.pem", f"tls-key-file {folder}/own.pem"]
            general += [f"tls-ca-cert-file {folder}/ca.pem"]
        else:
            general += [f"port {port}"]
        config.write_text("\n".join([*general, *lines, ""]))


def _until(condition: Any) -> None:
    give_up_at = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the servers behind Sentinel are not ready")
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
