from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis
from rich.console import Console

from app.server_errors import ServiceError
from app.settings import PoolSettings
from cli.local_pool import leftovers
from cli.local_pool.local_pool import Pool, PoolPlan, claimed, open_pool
from cli.local_pool.programs import Service, Tier
from cli.local_pool.supervisord import Supervisor
from tests.conftest import WaitUntil

# says that it runs, and on SIGTERM says so in the journal and goes
OBEDIENT = """
import signal, sys
def stop(*_):
    with open(sys.argv[1], "a") as journal:
        journal.write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("running", flush=True)
while True:
    signal.pause()
"""
# says that it runs, and neither ends on SIGTERM nor when nobody reads what it says
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("running", flush=True)
while True:
    time.sleep(600)
"""
# what `modelyard up` does, with one service, until it is killed
HOST = """
import signal, sys
from pathlib import Path
from cli.local_pool.programs import Service, Tier
from cli.local_pool.supervisord import Supervisor
service = Service("sleeper", Tier.WORKERS, ("sleep", "600"), lambda pid: True)
with Supervisor(Path(sys.argv[1]), [service]) as supervisor:
    supervisor.start([service])
    print(supervisor.statuses()["sleeper"].pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def service(name: str, tier: Tier, journal: Path) -> Service:
    program = journal.with_suffix(".py")
    program.write_text(OBEDIENT)
    command = (sys.executable, str(program), str(journal), name)
    return Service(name, tier, command, is_ready=lambda pid: True)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def says(supervisor: Supervisor, name: str, text: str) -> bool:
    return text in "\n".join(supervisor.log_tail(name, 100))


def test_services_stop_tier_by_tier_highest_first(folder: Path, wait_until: WaitUntil) -> None:
    journal = folder / "journal"
    services = [service(tier.name, tier, journal) for tier in Tier]
    with Supervisor(folder, services) as supervisor:
        supervisor.start(services)
        pids = [status.pid for status in supervisor.statuses().values()]
        wait_until(lambda: all(says(supervisor, each.name, "running") for each in services))
    assert journal.read_text().split() == ["VIEWS", "CONTROLLERS", "WORKERS", "FORK_SERVER", "REDIS"]
    assert not any(runs(pid) for pid in pids)


def test_killed_service_is_started_again(folder: Path, wait_until: WaitUntil) -> None:
    worker = service("worker", Tier.WORKERS, folder / "journal")
    with Supervisor(folder, [worker]) as supervisor:
        supervisor.start([worker])
        first = supervisor.statuses()["worker"].pid
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: (now := supervisor.statuses()["worker"]).is_alive and now.pid != first,
            what="a new process",
        )


def test_nothing_starts_that_was_not_asked_for(folder: Path) -> None:
    services = [service(name, Tier.WORKERS, folder / "journal") for name in ("asked", "other")]
    with Supervisor(folder, services) as supervisor:
        supervisor.start(services[:1])
        alive = {name: status.is_alive for name, status in supervisor.statuses().items()}
    assert alive == {"asked": True, "other": False}


def test_arguments_reach_the_process_as_they_are_from_a_folder_of_any_name(
    folder: Path, wait_until: WaitUntil
) -> None:
    arguments = ["a b", "100%", "%(here)s", "it's", 'say "x"', "back\\slash", "a ;b"]
    program = (sys.executable, "-c", "import sys, time; print(sys.argv[1:], flush=True); time.sleep(600)")
    printer = Service("printer", Tier.WORKERS, (*program, *arguments), is_ready=lambda pid: True)
    with Supervisor(folder / " ".join(arguments), [printer]) as supervisor:
        supervisor.start([printer])
        wait_until(lambda: says(supervisor, "printer", str(arguments)), what="the arguments in the log")


def test_log_of_the_run_before_is_kept_apart(folder: Path, wait_until: WaitUntil) -> None:
    worker = service("worker", Tier.WORKERS, folder / "journal")
    for _ in range(2):
        with Supervisor(folder, [worker]) as supervisor:
            supervisor.start([worker])
            log = supervisor.log_path("worker")
            wait_until(lambda: log.exists() and log.read_text() == "running\n")  # noqa: B023
    assert supervisor.log_path("worker").read_text() == "running\n"
    assert (folder / "logs" / "worker.previous.log").read_text() == "running\n"


def test_program_that_does_not_exist_is_named(folder: Path) -> None:
    absent = Service("absent", Tier.WORKERS, ("/nowhere/absent",), is_ready=lambda pid: True)
    with Supervisor(folder, [absent]) as supervisor, pytest.raises(ServiceError, match="/nowhere/absent"):
        supervisor.start([absent])


def test_services_go_with_their_host_when_it_is_killed_outright(folder: Path, wait_until: WaitUntil) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, str(folder)], stdout=subprocess.PIPE, text=True)
    with host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert runs(pid)
        host.kill()
    wait_until(lambda: not runs(pid), what="the service has gone")


def test_pool_starts_under_a_hard_limit_of_256_descriptors(folder: Path) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    with host:
        assert host.stdout is not None
        assert runs(int(host.stdout.readline()))
        supervisor = int((folder / "supervisord.pid").read_text())
        # root could raise the limit, which others cannot
        assert resource.prlimit(supervisor, resource.RLIMIT_NOFILE) == (256, 256)
        host.kill()


def test_services_go_when_the_supervisor_was_killed(folder: Path, wait_until: WaitUntil) -> None:
    journal = folder / "journal"
    services = [service(tier.name, tier, journal) for tier in Tier]
    with Supervisor(folder, services) as supervisor:
        supervisor.start(services)
        wait_until(lambda: all(says(supervisor, each.name, "running") for each in services))
        os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
        with pytest.raises(ServiceError, match="was ended by signal 9"):
            supervisor.statuses()
        assert supervisor.stop() == []
    assert sorted(journal.read_text().split()) == sorted(tier.name for tier in Tier)
    assert leftovers.processes(folder) == []


def test_supervisor_that_another_program_stops_says_so(folder: Path, wait_until: WaitUntil) -> None:
    stubborn = Service(
        "stubborn", Tier.WORKERS, (sys.executable, "-c", STUBBORN), is_ready=lambda pid: True, stop_wait_s=3
    )
    with Supervisor(folder, [stubborn]) as supervisor:
        supervisor.start([stubborn])
        wait_until(lambda: says(supervisor, "stubborn", "running"))
        os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGTERM)

        def is_stopping() -> bool:
            try:
                return not supervisor.statuses()
            except ServiceError as error:
                return "was stopped by another program" in str(error)

        wait_until(is_stopping)
        assert supervisor.stop() == []
    assert leftovers.processes(folder) == []


def test_services_go_when_the_supervisor_and_its_host_were_killed(
    folder: Path, wait_until: WaitUntil
) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, str(folder)], stdout=subprocess.PIPE, text=True)
    with host:
        assert host.stdout is not None
        assert runs(int(host.stdout.readline()))
        os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
        host.kill()
    wait_until(lambda: not leftovers.processes(folder), what="the service has gone")


def test_service_that_outlives_its_killed_supervisor_is_named_and_killed(
    folder: Path, wait_until: WaitUntil
) -> None:
    stubborn = Service("stubborn", Tier.WORKERS, (sys.executable, "-c", STUBBORN), is_ready=lambda pid: True)
    with Supervisor(folder, [stubborn]) as supervisor:
        supervisor.start([stubborn])
        wait_until(lambda: says(supervisor, "stubborn", "running"))
        pid = supervisor.statuses()["stubborn"].pid
        os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
        wait_until(lambda: not supervisor.is_alive)
        told: list[Sequence[leftovers.Leftover]] = []
        assert leftovers.end(folder, 0.2, told.append) == []
    assert str(told[-1][0]) == f"stubborn (process {pid})"
    wait_until(lambda: not runs(pid), what="the service has gone")


def test_next_pool_starts_and_has_the_data_of_one_whose_supervisor_was_killed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = PoolSettings(state_dir=folder, redis_url="")
    plan, console = PoolPlan([], controllers=0, views=False), Console(width=200)
    with claimed(settings, console), open_pool(settings, plan, console) as pool:
        pool.start_core()
        with redis.Redis.from_url(settings.effective_redis_url) as client:
            client.set("job", "accepted")
            os.kill(int((folder / "supervisord.pid").read_text()), signal.SIGKILL)
        with pytest.raises(ServiceError, match="was ended by signal 9"):
            pool.start_views()
    assert leftovers.processes(folder) == []
    assert "stopped all processes" in capsys.readouterr().out
    with claimed(settings, console), open_pool(settings, plan, console) as pool:
        pool.start_core()
        with redis.Redis.from_url(settings.effective_redis_url) as client:
            assert client.get("job") == b"accepted"


def test_supervisor_that_is_killed_while_it_starts_is_one_line_that_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an interpreter that kills itself stands for a kill at the first moment
    fake = folder / "python"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with (
        pytest.raises(ServiceError, match=r"did not start \(was ended by signal 9\)"),
        Supervisor(folder, []),
    ):
        pass


def test_service_that_dies_while_starting_is_reported_with_its_last_lines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = Service(
        "dying",
        Tier.VIEWS,
        (sys.executable, "-c", "import time; print('no [disk] left'); time.sleep(0.2); raise SystemExit(3)"),
        is_ready=lambda pid: False,
    )
    settings = PoolSettings(state_dir=folder, redis_url="")
    with Supervisor(folder, [dying]) as supervisor:
        pool = Pool(settings, PoolPlan([]), [dying], supervisor, Console(width=200))
        with pytest.raises(ServiceError, match=r"dying stopped while it was starting; its log: .*dying\.log"):
            pool.start_views()
    assert "no [disk] left" in capsys.readouterr().out
