"""Redis as docker-compose.yml starts it, without a container: same command, users and append-only file."""

from __future__ import annotations

import secrets
from pathlib import Path

import yaml

from app.redis.url import with_password
from cli.local_pool import redis_server as pool_redis

ROOT = Path(__file__).resolve().parents[1]


class ShippedRedis:
    """The server.

    Args:
        folder: Replaces the container's file system.
        port: Where to listen, on 127.0.0.1.

    Attributes:
        command: Starts the server.
    """

    def __init__(self, folder: Path, port: int) -> None:
        composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        self._folder = folder
        self._port = port
        for name in composed["services"]["redis"]["secrets"]:
            (folder / name).write_text(secrets.token_hex(24) + "\n")
        script = composed["services"]["redis"]["command"][-1].replace("$$", "$")
        places = {
            "/run/secrets": str(folder),
            "/etc/redis-users.acl": str(ROOT / "deploy" / "redis-users.acl"),
            "/tmp/users.acl": str(folder / "users.acl"),
            "exec redis-server": f"exec {pool_redis.find_server()} --bind 127.0.0.1 --port {port}",
            "--dir /data": f"--dir {folder / 'redis'}",
        }
        for place, own in places.items():
            assert place in script, f"docker-compose.yml starts Redis without {place}"
            script = script.replace(place, own)
        self.command = ["sh", "-euc", script]

    def variables(self, user: str) -> dict[str, str]:
        """Settings of a process that logs in as this user."""
        return {"REDIS_URL": self._url(user), "REDIS_PASSWORD_FILE": str(self._password_file(user))}

    def url_with_password(self, user: str) -> str:
        """The URL with the password, for clients of the harness."""
        return with_password(self._url(user), self._password_file(user))

    def _url(self, user: str) -> str:
        return f"redis://{user}@127.0.0.1:{self._port}/0"

    def _password_file(self, user: str) -> Path:
        return self._folder / f"redis-{user}"
