"""A complete pool on this machine: starts it in order, shows its progress, watches it and stops it."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.server_errors import LedgerUnavailableError, ServiceError
from app.settings import ControllerSettings, PoolSettings
from cli.local_pool import leftovers, preflight, present_state, programs
from cli.local_pool.desired_state import Worker
from cli.local_pool.follower import Follower
from cli.local_pool.programs import Service, Tier
from cli.local_pool.registry_watch import RegistryWatch
from cli.local_pool.served_entries import ServedEntries
from cli.local_pool.supervisord import Supervisor

POLL_S = 0.2
WATCH_S = 1.0
STANDSTILL_S = 180.0  # a start fails after so long without a ready service, output or processor time
BUSY_S = 1.0  # of processor time counts as progress
LOOK_S = 5.0
LEFTOVER_WAIT_S = 60.0
TAIL_LINES = 12
OWN_WORDS = re.compile(r"modelyard( worker)?: ")  # before the reason for which a process ends
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class PoolPlan:
    """The processes to run.

    Attributes:
        workers: Workers to start with.
        controllers: Controllers, on consecutive ports.
        views: Whether Flower and MLflow's user interface run too.
    """

    workers: Sequence[Worker]
    controllers: int = 1
    views: bool = True

    def services(self, settings: PoolSettings) -> list[Service]:
        """Every process of the pool.

        Raises:
            ConfigurationError: The environment lacks something that one of them needs.
        """
        views = [programs.flower_service(settings)] if self.views else []
        if self.views and not settings.mlflow_tracking_uri.startswith("http"):
            views.append(programs.mlflow_service(settings))
        services = [] if settings.redis_url else [programs.redis_service(settings)]
        if programs.forks(settings):
            services.append(programs.fork_service(settings))
        services += programs.controller_services(settings, self.controllers, views)
        services += [programs.worker_service(settings, worker) for worker in self.workers]
        return services + views


class Pool:
    """A starting or running pool; `open_pool` creates it."""

    def __init__(
        self,
        settings: PoolSettings,
        plan: PoolPlan,
        services: Sequence[Service],
        supervisor: Supervisor,
        console: Console,
    ) -> None:
        self.url = programs.controller_url(settings)
        self._settings = settings
        self._plan = plan
        self._services = services
        self._supervisor = supervisor
        self._console = console
        self._pids: dict[str, int] = {}
        self._serving_pids: dict[int, int] = {}
        self._unready: dict[str, str] = {}

    def start_core(self) -> None:
        """Start Redis, the controllers and the workers, and wait until each worker is ready or has failed.

        Raises:
            ServiceError: No worker became ready, or another service died or did not become ready.
        """
        self._start(Tier.REDIS, Tier.FORK_SERVER)
        self._leave_out_retired()
        self._number_versions()
        self._start(Tier.CONTROLLERS, Tier.WORKERS)

    def start_views(self) -> None:
        """Start the user interfaces, Flower and MLflow. Last, so that they do not slow down the others.

        Raises:
            ServiceError: One of them died or did not become ready.
        """
        self._start(Tier.VIEWS)

    def print_urls(self) -> None:
        """Print the addresses of all services."""
        table = Table(box=None, show_header=False, pad_edge=False)
        rows = [(service.name, service.url) for service in self._services if service.url]
        rows += [("API, to try", f"{self.url}/docs"), ("metrics", f"{self.url}/metrics")]
        if self._settings.mlflow_tracking_uri.startswith("http"):
            rows.append(("mlflow", self._settings.shown_registry))
        rows.append(("Redis", self._settings.shown_redis_url))
        rows.append(("logs", str(self._supervisor.log_path("*"))))
        for name, place in rows:
            table.add_row(escape(name), escape(place))
        self._console.print(table)
        for name, why in self._unready.items():
            self._tell_unready(name, why)

    def follow(self, source: ServedEntries, registry: RegistryWatch, replicas: int) -> None:
        """Keep the pool equal to what it is asked for, until interrupted.

        Args:
            source: The entries that it follows.
            registry: Watched from now on.
            replicas: Workers of each version whose entry does not state a number.

        Raises:
            ServiceError: The supervisor is gone.
        """
        from app.redis.registry_events import RegistryEvents

        source.write_for_plan(replicas)
        events = RegistryEvents(self._settings, lambda _: registry.look_now())
        registry.start()
        events.start()
        try:
            self._watch(Follower(self._settings, source, registry, self._plan.workers, replicas))
        finally:
            events.close()
            registry.close()

    def _watch(self, follower: Follower) -> None:
        """Have workers started and stopped; report services that died and were restarted."""
        follower.starting |= self._unready.keys()
        for name, why in self._unready.items():
            follower.note_failure(name, why)
        while True:
            workers = present_state.local_workers(self._settings.effective_redis_url)
            serving = present_state.ready_pids(workers)
            statuses = self._supervisor.statuses()
            for name, status in statuses.items():
                is_another = self._is_another(name, status.pid, serving.get(status.pid))
                if status.is_alive and is_another and not follower.lets_go(name):
                    self._note_restart(name, follower)
                if status.is_alive:
                    self._pids[name] = status.pid
            self._serving_pids |= serving
            self._pids = {name: pid for name, pid in self._pids.items() if name in statuses}
            for name in follower.step(self._supervisor, statuses, workers, self._tell):
                self._pids.pop(name, None)  # an earlier worker had this name
            time.sleep(WATCH_S)

    def _note_restart(self, name: str, follower: Follower) -> None:
        has_served = self._pids[name] in self._serving_pids
        if has_served or not follower.wants(name):
            self._tell(f"{name} stopped and was restarted; its log: {self._supervisor.log_path(name)}")
        elif follower.note_failure(name, why := self._reason(name)):
            self._tell_unready(name, why)

    def _reason(self, name: str) -> str:
        """Why a worker ended, in its own words."""
        lines = [line for line in self._supervisor.log_tail(name, TAIL_LINES) if line]
        said = [line for line in lines if OWN_WORDS.match(line)] or lines or ["it ended without a word"]
        with suppress(ValueError, TypeError, KeyError):  # a line of a JSON log
            return str(json.loads(said[-1])["message"])
        return OWN_WORDS.sub("", said[-1], count=1)

    def _tell_unready(self, name: str, why: str) -> None:
        self._tell(
            f"{name} cannot serve and is tried again; no version is replaced by it: {why}; "
            f"its log: {self._supervisor.log_path(name)}"
        )

    def _tell(self, line: str) -> None:
        self._console.print(escape(line))

    def _is_another(self, name: str, pid: int, serving_pid: int | None) -> bool:
        """Whether a service, or the child of a worker, is another process than at the last check."""
        was_served_by = self._serving_pids.get(pid, serving_pid)
        return pid != self._pids.get(name, pid) or bool(serving_pid and serving_pid != was_served_by)

    def _leave_out_retired(self) -> None:
        """Start no worker of a retired version without open jobs; the follower says so, and removes it."""
        retired = present_state.retired(present_state.controls(self._settings) or {})
        left_out = {named for named in retired if present_state.open_jobs(self._settings, named) == 0}
        names = {worker.name for worker in self._plan.workers if worker.named in left_out}
        self._services = [service for service in self._services if service.name not in names]

    def _number_versions(self) -> None:
        # Workers that start together would get their numbers in any order; the lowest version starts first.
        from app.redis import keys
        from app.redis.client import connect, ledger_errors
        from app.worker_record import assign_number

        try:
            with ledger_errors(), connect(self._settings) as connection:
                for worker in self._plan.workers:
                    assign_number(connection, keys.queue_name(*worker.named), None)
        except LedgerUnavailableError:
            self._supervisor.statuses()  # raises the more exact error, if supervisord is the cause
            raise

    def _start(self, *tiers: Tier) -> None:
        services = [service for service in self._services if service.tier in tiers]
        started_at = time.monotonic()
        self._supervisor.start(services)
        statuses = self._supervisor.statuses()
        self._pids.update({service.name: statuses[service.name].pid for service in services})
        waiting = {service.name: service for service in services}
        progress = _Progress(self._settings.state_dir, self._supervisor)
        if not self._console.is_terminal and waiting:
            self._console.print("starting " + ", ".join(waiting))
        with self._console.status("") as spinner:
            while waiting:
                spinner.update("waiting for " + ", ".join(waiting))
                self._pass_over_dead(waiting)
                for service in [each for each in waiting.values() if each.is_ready(self._pids[each.name])]:
                    del waiting[service.name]
                    self._print_ready(service, time.monotonic() - started_at)
                if waiting and progress.standstill_s(waiting) > STANDSTILL_S:
                    for name in list(waiting):
                        self._give_up(waiting.pop(name), f"made no progress for {STANDSTILL_S:.0f} s")
                time.sleep(POLL_S if waiting else 0)

    def _print_ready(self, service: Service, took_s: float) -> None:
        width = max(len(each.name) for each in self._services)
        self._console.print(
            f"[green]✓[/green] {service.name:<{width}} ready after {took_s:4.1f} s  {escape(service.url)}",
        )

    def _pass_over_dead(self, waiting: dict[str, Service]) -> None:
        statuses = self._supervisor.statuses()
        for name, service in list(waiting.items()):
            if statuses[name].is_alive and statuses[name].pid == self._pids[name]:
                continue
            del waiting[name]
            self._give_up(service, "stopped while it was starting")

    def _give_up(self, service: Service, what_happened: str) -> None:
        """Go on without a worker, which supervisord starts again; end without the last one, or another service.

        Raises:
            ServiceError: The pool cannot do without it.
        """
        name = service.name
        self._console.print(f"[red]✗[/red] {name} {what_happened}; its last lines:")
        for line in self._supervisor.log_tail(name, TAIL_LINES):
            self._console.print("  " + escape(line))
        if service.tier is Tier.WORKERS:
            self._unready[name] = self._reason(name)
        workers = {each.name for each in self._services if each.tier is Tier.WORKERS}
        if service.tier is not Tier.WORKERS or self._unready.keys() >= workers:
            raise ServiceError(f"{name} {what_happened}; its log: {self._supervisor.log_path(name)}")


class _Progress:
    """Tells for how long services have done nothing: printed nothing, and used no processor."""

    def __init__(self, folder: Path, supervisor: Supervisor) -> None:
        self._folder, self._supervisor = folder, supervisor
        self._since_s = self._looked_s = time.monotonic()
        self._seen: tuple[int, int, float] = (0, 0, 0.0)

    def standstill_s(self, names: Collection[str]) -> float:
        """Seconds since the services last did something; any that became ready counts."""
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._looked_s = now_s
            n_bytes = sum(
                path.stat().st_size for path in map(self._supervisor.log_path, names) if path.exists()
            )
            processor_s = leftovers.processor_s(self._folder, names)
            if (len(names), n_bytes) != self._seen[:2] or abs(processor_s - self._seen[2]) > BUSY_S:
                self._seen, self._since_s = (len(names), n_bytes, processor_s), now_s
        return now_s - self._since_s


@contextmanager
def claimed(settings: ControllerSettings, console: Console) -> Iterator[None]:
    """Lock the state directory after the leftover processes of a killed pool have ended.

    Raises:
        ConfigurationError: A pool runs there, or the folder cannot be written.
        ServiceError: A leftover process cannot be ended.
    """
    with preflight.sole_pool(settings):
        _end_leftovers(settings, console)
        yield


def _end_leftovers(settings: ControllerSettings, console: Console) -> None:
    found = leftovers.processes(settings.state_dir)
    if not found:
        return
    listed = ", ".join(map(str, found))
    console.print(
        f"stopping processes that a killed pool left in {escape(str(settings.state_dir))}: {listed}",
    )
    patience_s = LEFTOVER_WAIT_S + settings.drain_s
    with console.status("") as spinner:
        left = leftovers.end(
            settings.state_dir,
            patience_s,
            lambda left: spinner.update("waiting for " + ", ".join(map(str, left))),
        )
    if left:
        raise ServiceError(
            f"{', '.join(map(str, left))} of a killed pool cannot be stopped; stop them, and try again"
        )


@contextmanager
def open_pool(settings: PoolSettings, plan: PoolPlan, console: Console) -> Iterator[Pool]:
    """Create a pool that stops completely and in order at the end of the context; the state directory is `claimed`.

    Raises:
        ConfigurationError: A port is in use or a tool is missing.
        ServiceError: The supervisor does not start.
    """
    services = plan.services(settings)  # writes Redis's configuration
    preflight.check(settings, services)
    with Supervisor(settings.state_dir, services) as supervisor:
        try:
            yield Pool(settings, plan, services, supervisor, console)
        finally:
            with _signals_ignored(), doing("stopping", console):
                left = supervisor.stop()
            if left:
                console.print(f"[red]✗[/red] not stopped: {', '.join(map(str, left))}")
            else:
                console.print("stopped all processes")


@contextmanager
def doing(what: str, console: Console) -> Iterator[None]:
    """Show the current activity: as a status on a terminal, otherwise as one line."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what)
        yield


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Leave the context quietly on Ctrl-C, SIGTERM, or a terminal that closes."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        return


@contextmanager
def _signals_ignored() -> Iterator[None]:
    # A second Ctrl-C would leave part of the pool running; every service has a stop timeout in any case.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
