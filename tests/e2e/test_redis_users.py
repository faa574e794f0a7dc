"""A pool over TLS, whose processes are Redis users that may do only what `deploy/redis-users.acl` gives them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis
import trustme

from client import Client
from tests.conftest import WaitUntil
from tests.e2e.conftest import MODEL, Digits, Pool

ACL = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
USERS = ("controller", "worker", "flower", "operator")


@dataclass
class Guarded:
    """A Redis server that speaks TLS only and knows the users of the ACL file."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def password(self, user: str) -> str:
        return f"p@ss/word-of-{user}?"

    def password_file(self, user: str) -> Path:
        return self.folder / user

    def url(self, user: str) -> str:
        return f"rediss://{user}@localhost:{self.port}/0?ssl_ca_certs={self.folder}/ca.pem"

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(
            port=self.port,
            username=user,
            password=self.password(user),
            ssl=True,
            ssl_ca_certs=f"{self.folder}/ca.pem",
        )

    def variables(self, user: str) -> dict[str, str]:
        return {"REDIS_URL": self.url(user), "REDIS_PASSWORD_FILE": str(self.password_file(user))}


@pytest.fixture(scope="module")
def guarded(free_port: Callable[[], int], wait_until: WaitUntil) -> Iterator[Guarded]:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("needs redis-server with TLS: install the system package redis-server")
    with tempfile.TemporaryDirectory(prefix="yard-") as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "own.pem"))
        made = Guarded(free_port(), folder, subprocess.Popen(["true"]))
        made.process.wait()
        write_users(made)
        (folder / "redis.conf").write_text(
            f"port 0\ntls-port {made.port}\nbind 127.0.0.1\nsave \"\"\ntls-auth-clients no\n"
            f"tls-cert-file {folder}/own.pem\ntls-key-file {folder}/own.pem\ntls-ca-cert-file {folder}/ca.pem\n"
            f"aclfile {folder}/users.acl\ndir {folder}\n"
        )
        with (folder / "redis.log").open("wb") as log:
            made.process = subprocess.Popen([server, folder / "redis.conf"], stdout=log, cwd=folder)
        wait_until(lambda: answers(made), what="Redis answers")
        try:
            yield made
        finally:
            made.process.terminate()
            made.process.wait(10)


def write_users(server: Guarded) -> None:
    """The file as it is shipped, and a password for each user."""
    lines = []
    for line in ACL.read_text().splitlines():
        words = line.split()
        if words[:1] == ["user"] and words[1] in USERS:
            server.password_file(words[1]).write_text(server.password(words[1]) + "\n")
            line += f" >{server.password(words[1])}"
        if words[:1] == ["user"]:
            lines.append(line)
    (server.folder / "users.acl").write_text("\n".join(lines) + "\n")


def answers(server: Guarded) -> bool:
    with server.client("operator") as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
