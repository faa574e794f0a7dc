"""Fixtures for every test: a private Redis per test process, free ports, waiting on a condition, tools."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import hypothesis
import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

from app.settings import Settings
from cli.local_pool import redis_server as pool_redis
from faults.proxy import Proxy

# Judge answers, not the speed of a busy machine, and the same ones in every run: what is red is red again.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
hypothesis.settings.register_profile("daily", max_examples=20)  # of `make check`; else 100

WaitUntil = Callable[..., None]
NewRegistry = Callable[[Callable[[Path], object]], Path]
POLL_S = 0.02
# Folders whose tests share registries and pools, which take seconds to make. The longest are the first.
SHARING = ("tests/workers", "tests/e2e", "tests/faults", "tests/training", "tests/workers/process")


def group_of(nodeid: str) -> str:
    """What one process of the test run does: a folder of `SHARING`, or else a file."""
    file = nodeid.partition("::")[0]
    return max((folder for folder in SHARING if file.startswith(f"{folder}/")), key=len, default=file)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make check` leaves whole folders out, so their modules need not be imported: MLflow and PyTorch take seconds."""
    file = f"{collection_path.relative_to(config.rootpath)}/"
    return True if config.option.markexpr == "not process" and group_of(file) in SHARING else None


def pytest_collection() -> None:
    """Imports make a million objects and hardly any garbage."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest groups, so that no process is left with one at the end; mark what starts processes."""
    order = {folder: place for place, folder in enumerate(SHARING)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(SHARING)))
    for item in items:
        if starts_processes(item):
            item.add_marker(pytest.mark.process)


def pytest_collection_finish() -> None:
    """What the test modules import stays: no garbage collection looks at it."""
    gc.freeze()
    gc.enable()


def starts_processes(item: pytest.Item) -> bool:
    """Whether a test needs a server, another process or MLflow's database; `make check` leaves those out."""
    module, fixtures = getattr(item, "module", None), getattr(item, "fixturenames", ())
    needed = {"redis_process", "own_redis", "empty_database"}.intersection(fixtures)
    named = {"running_redis", "subprocess"}.intersection(vars(module))
    return group_of(item.nodeid) in SHARING or bool(needed or named)


class GroupScheduling(LoadScopeScheduling):
    """Marks `xdist_group` do not serve: under pytest 9.2, xdist 3.8 loses them without a word."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Tests of one group run in one process, which makes what they share once."""
    config.option.loadscopereorder = False  # by the number of tests in a group, not by how long they take
    return GroupScheduling(config, log)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], object]]:
    """A module's tests run on the event loop that its `new_event_loop` makes, if it has one."""
    module = item.getparent(pytest.Module)
    return {"loop": getattr(module and module.obj, "new_event_loop", asyncio.new_event_loop)}


@pytest.fixture(scope="session", autouse=True)
def measured() -> dict[str, str]:
    """Variables for a process whose coverage tells something that no test process sees.

    All others start without them, and with bytecode: a process that loads a model takes 1.4 times as long to start
    where it is measured, and three times without bytecode.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    names = [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]
    return {name: os.environ.pop(name) for name in names}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a model, to be copied: MLflow needs seconds to lay one out, so that is done once."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "empty.db"
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            import mlflow

            made = path.with_suffix(".new")
            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments()
            made.rename(path)
    return path


@pytest.fixture(scope="session")
def new_registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> NewRegistry:
    """`new_registry(lay_out)` returns a new folder with a registry that `lay_out` has filled."""

    def make(lay_out: Callable[[Path], object]) -> Path:
        folder = tmp_path_factory.mktemp("registry")
        shutil.copy(empty_database, folder / "mlruns.db")
        lay_out(folder)
        return folder

    return make


@dataclass
class RedisServer:
    """A Redis server of the test's own, on a unix socket.

    Attributes:
        url: In redis-py's form, what REDIS_URL takes.
        socket: The unix socket.
        process: The server.
    """

    url: str
    socket: Path
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """One server for all tests of a test process; tests ask for `redis_server`, which is empty each time."""
    with running_redis() as server:
        yield server


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A private server, started and stopped."""
    folder = Path(tempfile.mkdtemp(prefix="yard-"))  # short: a socket's path has at most 104 bytes
    settings = Settings(state_dir=folder, redis_url="")
    config = pool_redis.write_config(settings)
    process = subprocess.Popen([pool_redis.find_server(), config], stdout=subprocess.DEVNULL)
    server = RedisServer(f"unix://{settings.redis_socket}", settings.redis_socket, process)
    try:
        wait_until_true(lambda: redis_answers(server.url), what="Redis answers")
        yield server
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """A Redis server that holds nothing yet."""
    with redis.Redis.from_url(redis_process.url) as connection:
        connection.flushall()
    return redis_process


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the test's Redis server."""
    with redis.Redis.from_url(redis_server.url) as connection:
        yield connection


@pytest.fixture
def way(redis_server: RedisServer, tmp_path: Path) -> Iterator[Proxy]:
    """A way to the test's Redis server that can be cut."""
    with Proxy(redis_server.socket, tmp_path / "way.sock") as proxy:
        yield proxy


def redis_answers(url: str) -> bool:
    with redis.Redis.from_url(url) as connection:
        try:
            return bool(connection.ping())
        except redis.RedisError:
            return False


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a TCP port on 127.0.0.1 that nothing uses, another one each time."""
    given: set[int] = set()

    def give() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in given:
                given.add(port)
                return port

    return give


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """`wait_until(condition, timeout_s=20, what="…")` returns when the condition holds, else fails."""
    return wait_until_true


def wait_until_true(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "") -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(POLL_S)


@pytest.fixture(scope="session")
def system_tool() -> Callable[[str, str], str]:
    """`system_tool(program, package)` is the program's path; without it the test skips and names the package."""

    def find(program: str, package: str) -> str:
        path = shutil.which(program)
        if path is None:
            pytest.skip(f"needs {program}: install the system package {package}")
        return path

    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a test that would skip fails: a green run there means that everything ran."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI", "").lower() == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"CI=true, where nothing may skip: {reason}"
    return report
