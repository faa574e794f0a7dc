"""Fixtures for training: a registry, IDX files, a file server."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from training.inventory import RegisteredVersion, connect
from training.mnist import CHECKSUMS_FILE, IMAGES_FILE, LABELS_FILE
from training.options import ARCHS, TrainOptions
from training.versions import train_versions


@pytest.fixture
def tracking_uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry of the test's own, in the working directory, as a user would have it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlruns.db")
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MODEL_NAME", raising=False)
    return uri


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@dataclass
class IdxFiles:
    """A small set in MNIST's format; pixels uint8, shape (n, 28, 28), labels uint8, shape (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def contents(self) -> dict[str, bytes]:
        return {IMAGES_FILE: idx_bytes(self.pixels), LABELS_FILE: idx_bytes(self.labels)}

    def write(self, folder: Path, *, packed: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.write_checksums(folder)
        for name, content in self.contents().items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)

    def write_checksums(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        sums = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in self.contents().items()]
        (folder / CHECKSUMS_FILE).write_text("\n".join(sums) + "\n")


@pytest.fixture
def idx_files() -> IdxFiles:
    rng = np.random.default_rng(7)
    labels = np.tile(np.arange(10, dtype=np.uint8), 6)
    return IdxFiles(rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), labels)


@dataclass
class FileServer:
    """What it serves, by path; `cut_bytes` are promised in the length but not sent."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_bytes: int = 0
    asked_for: list[str] = field(default_factory=list)


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    state = FileServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked_for.append(self.path)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - state.cut_bytes])
            return None

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


Ignore = Callable[..., None]
StartMlflow = Callable[..., str]


@pytest.fixture
def ignore() -> Ignore:
    """A callback that does nothing."""
    return lambda *_: None


@dataclass
class Trained:
    """A registry with one version of each architecture, not to be changed by tests."""

    tracking_uri: str
    folder: Path
    options: TrainOptions
    versions: list[RegisteredVersion]


@pytest.fixture(scope="session")
def shared_registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "mlruns.db")
    uri = f"sqlite:///{folder}/mlruns.db"
    options = TrainOptions(uri, "Digits", archs=ARCHS, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow puts its artifacts
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        return Trained(uri, folder, options, train_versions(options, lambda *_: None))


@pytest.fixture
def trained(shared_registry: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.chdir(shared_registry.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_registry.tracking_uri)
    connect(shared_registry.tracking_uri)
    return shared_registry


@pytest.fixture
def start_mlflow(
    free_port: Callable[[], int], wait_until: Callable[..., None], tmp_path: Path
) -> Iterator[StartMlflow]:
    """`start_mlflow(*arguments, health="/health", **variables)` is the URL of a server that `mlflow` runs."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*line: str, health: str, **variables: str) -> str:
        url, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "server.log"
        path = (
            f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow starts uvicorn from it
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *line, "--port", str(port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path, **variables},
                cwd=tmp_path,
                start_new_session=True,
            )
        processes.append(process)
        wait_until(
            lambda: process.poll() is not None or answers(url + health),
            timeout_s=120,
            what="the server answers",
        )
        assert process.poll() is None, log.read_text()
        return url

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
