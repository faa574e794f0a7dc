"""Keeps the workers of a running pool equal to `modelyard.toml` and the registry.

A new worker starts beside those that it replaces. When it is ready, they are told to leave: each finishes its queue
and ends by itself (`workers.process.drain`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from app.pool_file import NamedVersion
from app.server_errors import ConfigurationError
from app.settings import PoolSettings
from app.version_controls import Table
from cli.local_pool import present_state, programs
from cli.local_pool.desired_state import Plan, Target, Worker, desired_state, difference, question_of
from cli.local_pool.registry_watch import RegistryWatch
from cli.local_pool.scaling import Scaler
from cli.local_pool.served_entries import ServedEntries
from cli.local_pool.supervisord import ServiceStatus, Supervisor
from modelyard.schemas import StartFailure
from workers.process.prefork_supervisor import LEAVE_ROUTING

if TYPE_CHECKING:
    from app.worker_record import WorkerRecord


class Follower:
    """Starts and stops workers; `step` is called every second.

    Args:
        settings: Settings of the pool.
        source: The entries to follow.
        registry: The watched registry.
        workers: Workers that the pool has started.
        replicas: Workers of each version whose entry does not state a number.

    Attributes:
        starting: Names of workers that were not ready yet.
    """

    def __init__(
        self,
        settings: PoolSettings,
        source: ServedEntries,
        registry: RegistryWatch,
        workers: Sequence[Worker],
        replicas: int,
    ) -> None:
        self._settings = settings
        self._source = source
        self._registry = registry
        self._replicas = replicas
        self._scaler = Scaler(settings)
        self._workers = {worker.name: worker for worker in workers}
        self._leaving: dict[str, Worker] = {}
        self._stopping: set[str] = set()
        self.starting: set[str] = set()
        self._failures: dict[str, StartFailure] = {}
        self._published: set[NamedVersion] = set()
        self._told: dict[str, str] = {}
        self._table: Table = {}
        self._before: tuple[Target, ...] = ()

    def step(
        self,
        supervisor: Supervisor,
        statuses: Mapping[str, ServiceStatus],
        records: Mapping[int, WorkerRecord],
        tell: Callable[[str], None],
    ) -> list[str]:
        """Compare the wanted state with the present one, and take the next steps.

        Args:
            supervisor: Runs the workers.
            statuses: Status by name of service.
            records: Live workers, as `present_state.local_workers` returns them.
            tell: Prints a line.

        Returns:
            Names of the workers that were started.

        Raises:
            ServiceError: The supervisor is gone.
        """
        self._reap(supervisor, statuses)
        serving = present_state.ready_pids(records)
        ready = {name for name in self._workers if name in statuses and statuses[name].pid in serving}
        self._tell_ready(ready, tell)
        self._publish_failures()
        self._see_off(supervisor, statuses, records, ready)
        targets = self._targets(tell)
        if targets is None:
            return []
        names: dict[NamedVersion, list[str]] = {}
        for worker in self._workers.values():
            names.setdefault(worker.named, []).append(worker.name)
        counts = self._scaler.counts(targets, names, ready)
        self._tell_held(tell)
        plan = difference(targets, counts, list(self._workers.values()), {*self._leaving, *self._stopping})
        self._start(plan, supervisor, tell)
        self._stop(plan, ready, supervisor, tell)
        for worker in plan.keep:
            if worker.name in statuses and statuses[worker.name].state == "EXITED":  # it was told to by hand
                supervisor.start_again(worker.name)
        return [worker.name for worker, _ in plan.start]

    def wants(self, name: str) -> bool:
        """Whether this is a worker that is not to leave."""
        return name in self._workers

    def lets_go(self, name: str) -> bool:
        """Whether this is a worker that is to leave; supervisord starts one again that ends soon after its start."""
        return name in self._leaving or name in self._stopping

    def note_failure(self, name: str, reason: str) -> bool:
        """Remember why a worker ended before it was ready; False if that is known."""
        before = self._failures.get(name)
        if before and before.reason == reason:
            return False
        self._failures[name] = StartFailure(reason, before.since_ms if before else time.time() * 1000)
        return True

    def _publish_failures(self) -> None:
        """Tell the controllers, again and again, why versions do not start."""
        failures = {self._workers[name].named: each for name, each in self._failures.items()}
        if failures or self._published:
            present_state.write_start_failures(self._settings, failures, self._published - failures.keys())
        self._published = set(failures)

    def _targets(self, tell: Callable[[str], None]) -> tuple[Target, ...] | None:
        """The versions to serve; None if nothing is known about them now."""
        try:
            if self._source.read() and self._source.file:
                self._once("file", f"{self._source.file} was read", tell)
                self._told.pop("file")
        except ConfigurationError as error:
            self._once("file", f"the pool stays as it is: {error.detail}", tell)
        question = question_of(self._source.entries)
        self._registry.ask(question)
        look = self._registry.look
        self._once("registry", look.problem and f"the pool stays as it is: {look.problem}", tell)
        if look.problem or look.question != question or look.reading is None:
            return None
        entries, endpoints = self._source.entries, self._source.endpoints
        desired = desired_state(entries, look.reading, self._replicas, endpoints, self._before)
        lacking = desired.problems + desired.unmatched
        self._once("problems", "\n".join(self._source.lines(lacking)), tell)
        if not desired.targets and self._workers:
            self._once("empty", "the pool stays as it is: there is no version left to serve", tell)
            return None
        self._before = desired.targets
        self._once("empty", "", tell)
        return self._in_service(desired.targets, tell)

    def _in_service(self, targets: tuple[Target, ...], tell: Callable[[str], None]) -> tuple[Target, ...]:
        """The wanted versions as operators left them; tells what they decided."""
        table = present_state.controls(self._settings)
        if table is not None:
            self._table = table
        retired = present_state.retired(self._table)
        named = ", ".join(str(each.named) for each in targets if each.named in retired)
        again = "`modelyard enable` puts it back into service"
        self._once("retired", named and f"{named} is retired and not served; {again}", tell)
        edited_at_ms = self._source.edited_at_ms
        served = present_state.in_service(targets, self._table, edited_at_ms)
        in_force = present_state.scaled_versions(self._table, edited_at_ms)
        outdated = present_state.scaled_versions(self._table).keys() - in_force.keys()
        for each in served:
            if each.named in outdated:
                present_state.forget_scale(self._settings, each.named)
        told = [f"{each.named} is {in_force[each.named]}" for each in served if each.named in in_force]
        self._once("scaled", ", ".join(told), tell)
        return served

    def _start(self, plan: Plan, supervisor: Supervisor, tell: Callable[[str], None]) -> None:
        if not plan.start:
            return
        services = [programs.worker_service(self._settings, worker) for worker, _ in plan.start]
        supervisor.add(services)
        supervisor.start(services)
        for worker, reason in plan.start:
            self._workers[worker.name] = worker
            self.starting.add(worker.name)
            tell(f"{worker.name} starts: {reason}")

    def _stop(self, plan: Plan, ready: set[str], supervisor: Supervisor, tell: Callable[[str], None]) -> None:
        """Stop workers, those of a model only when everything else that it needs is ready."""
        unready = {worker.named.model for worker in plan.keep if worker.name not in ready}
        unready |= {worker.named.model for worker, _ in plan.start}
        kept = {(worker.named, worker.variables) for worker in plan.keep if worker.name in ready}
        for worker, reason in plan.stop:
            is_surplus = (worker.named, worker.variables) in kept  # nothing replaces it
            if worker.named.model in unready and worker.name in ready and not is_surplus:
                continue
            del self._workers[worker.name]
            if worker.name in self.starting:
                self._end(worker.name, supervisor)
            else:
                self._leaving[worker.name] = worker
            self.starting.discard(worker.name)
            self._failures.pop(worker.name, None)
            tell(f"{worker.name} stops: {reason}")

    def _tell_ready(self, ready: set[str], tell: Callable[[str], None]) -> None:
        for name in sorted(self.starting & ready):
            self.starting.remove(name)
            tell(f"{name} is ready")
        self._failures = {name: why for name, why in self._failures.items() if name not in ready}

    def _tell_held(self, tell: Callable[[str], None]) -> None:
        held = ", ".join(sorted(str(named) for named in self._scaler.held))
        self._once("memory", held and f"there is no memory for more workers of {held}", tell)

    def _see_off(
        self,
        supervisor: Supervisor,
        statuses: Mapping[str, ServiceStatus],
        records: Mapping[int, WorkerRecord],
        ready: set[str],
    ) -> None:
        """Tell leaving workers to finish their queues; remove those that have ended.

        supervisord starts a worker again that ended soon after its start, or that died. It leaves again, unless its
        queue needs it no more.
        """
        for name, worker in list(self._leaving.items()):
            status = statuses[name]
            record = records.get(status.pid)
            if record and record.state == "ready":
                supervisor.send_signal(name, LEAVE_ROUTING)
            elif not record and (status.state in ("EXITED", "STOPPED") or not self._is_needed(worker, ready)):
                del self._leaving[name]
                self._end(name, supervisor)

    def _is_needed(self, worker: Worker, ready: set[str]) -> bool:
        """Whether the queue of a leaving worker may hold jobs that no other worker takes."""
        has_others = any(each.named == worker.named and each.name in ready for each in self._workers.values())
        return not has_others and present_state.open_jobs(self._settings, worker.named) != 0

    def _end(self, name: str, supervisor: Supervisor) -> None:
        supervisor.end(name)
        self._stopping.add(name)

    def _reap(self, supervisor: Supervisor, statuses: Mapping[str, ServiceStatus]) -> None:
        for name in list(self._stopping):
            if name in statuses and not statuses[name].pid:
                supervisor.remove(name)
                self._stopping.remove(name)

    def _once(self, subject: str, text: str, tell: Callable[[str], None]) -> None:
        """Print a text, unless it is what was printed of its subject before."""
        if text and self._told.get(subject) != text:
            tell(text)
        self._told[subject] = text
