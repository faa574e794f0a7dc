"""Operators' decisions about versions: disabled, retired or pinned. Kept in Redis, read with the pool.

| state | routing | a request that names the version |
| --- | --- | --- |
| disabled | never chooses it | reaches it |
| retired | never chooses it | refused: 410 `model_not_served`; accepted jobs still run |
| pinned | chooses it alone among its model's versions | reaches it, as the model's other versions |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias, cast

import msgspec

from app.clock import to_ms
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.server_errors import UnknownModelError, VersionInUseError
from app.version_controls import PIN, SCALE, Control, State, Table, encode_control
from controller.endpoints import DISABLED, PINNED, RETIRED, Exclusion
from controller.operate.decision_log import DecisionLog
from modelyard.schemas import Decision, VersionControl

Action: TypeAlias = Literal["disable", "enable", "retire", "pin", "unpin", "forget", "scale", "unscale"]
DONE: dict[Action, str] = {
    "disable": "disabled",
    "enable": "enabled",
    "retire": "retired",
    "pin": "pinned",
    "unpin": "unpinned",
    "forget": "forgotten",
    "scale": "scaled",
    "unscale": "unscaled",
}
STATES: dict[Action, State] = {
    "disable": "disabled",
    "retire": "retired",
    "pin": "pinned",
    "scale": "scaled",
}


def exclusions(table: Table, queues: Iterable[str]) -> Iterator[tuple[str, Exclusion]]:
    """Queues that routing must not choose, and why.

    Args:
        queues: All queues that are known.
    """
    for queue in queues:
        name, version = keys.model_of(queue)
        control, pin = table.get(queue), table.get(PIN + name)
        if control:
            yield queue, Exclusion(RETIRED if control.state == "retired" else DISABLED, str(control))
        elif pin and pin.version != version:
            yield queue, Exclusion(PINNED, f"version {pin.version} is {pin}")


def merged(
    controlled: Mapping[str, Exclusion], circuits: Mapping[str, Exclusion], ready: Iterable[str]
) -> dict[str, Exclusion]:
    """Operators' exclusions, and those of open circuits while another version of the model is ready.

    A version that keeps failing still answers more requests than none.

    Args:
        ready: Queues with a ready worker.
    """
    able = {keys.model_of(queue)[0] for queue in ready if queue not in controlled and queue not in circuits}
    open_ = {queue: why for queue, why in circuits.items() if keys.model_of(queue)[0] in able}
    return {**open_, **controlled}


def _field(action: Action, name: str, queue: str) -> str:
    """The field that stores an action's control."""
    if action in ("pin", "unpin"):
        return PIN + name
    return SCALE + queue if action in ("scale", "unscale") else queue


class Controls:
    """Writes the controls, each with an entry in the log of decisions."""

    def __init__(self, client: AsyncClient, decisions: DecisionLog) -> None:
        self._client = client
        self._decisions = decisions

    async def apply(
        self,
        action: Action,
        name: str,
        version: int | None,
        *,
        by: str,
        reason: str,
        replicas: int | None = None,
        dry_run: bool = False,
    ) -> VersionControl:
        """Carry out an operator's decision. A repeated call has no further effect but the entry in the log.

        Args:
            version: None to unpin a model.
            replicas: Workers to scale a version to.
            dry_run: Whether to check it only, and change nothing.

        Raises:
            UnknownModelError: The pool has never served the version.
            VersionInUseError: A version to be forgotten has workers or jobs.
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            queue = await self._known_queue(name, version)
            if action == "forget":
                await self._require_unused(queue)
            jobs = cast(bytes | None, await self._client.hget(keys.BACKLOG, queue)) if version else None
            done = VersionControl(
                model_name=name,
                model_version=version,
                state=DONE[action],
                by=by,
                reason=reason,
                open_jobs=max(0, int(jobs or 0)),
                dry_run=dry_run,
            )
            if dry_run:
                return done
            now_ms = to_ms(*await self._client.time())
            if action == "forget":
                await self._forget(queue)
            elif action in ("enable", "unpin", "unscale"):
                await self._client.hdel(keys.CONTROLS, _field(action, name, queue))
            else:
                control = Control(
                    state=STATES[action],
                    version=version or 0,
                    by=by,
                    reason=reason,
                    at_ms=now_ms,
                    replicas=replicas,
                )
                await self._client.hset(keys.CONTROLS, _field(action, name, queue), encode_control(control))
            await self._log(done, now_ms, replicas)
            await self._client.publish(keys.POOL_CHANNEL, queue)
        return done

    async def _log(self, done: VersionControl, at_ms: float, replicas: int | None) -> None:
        reason = done.reason
        if replicas:
            reason = f"{replicas} workers{f': {reason}' if reason else ''}"
        decision = Decision(
            at_ms=at_ms,
            kind=done.state,
            model_name=done.model_name,
            model_version=done.model_version,
            by=done.by,
            reason=reason,
        )
        await self._decisions.add(decision)

    async def _known_queue(self, name: str, version: int | None) -> str:
        """The queue of a version; of a model, that of any of its versions."""
        numbers = cast(list[bytes], await self._client.hkeys(keys.NUMBERS))
        numbers += cast(list[bytes], await self._client.hkeys(keys.CONTROLS))  # of forgotten versions
        known = {keys.model_of(queue): queue for queue in map(bytes.decode, numbers) if keys.is_queue(queue)}
        versions = sorted(each for model, each in known if model == name)
        if not versions:
            names = ", ".join(sorted({model for model, _ in known})) or "none yet"
            raise UnknownModelError(f"the pool has never served {name}; known models: {names}")
        if version is None:
            return known[name, versions[0]]
        if version not in versions:
            listed = ", ".join(map(str, versions))
            raise UnknownModelError(
                f"the pool has never served version {version} of {name}; known versions: {listed}"
            )
        return known[name, version]

    async def _require_unused(self, queue: str) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.hget(keys.BACKLOG, queue)
        pipe.zrange(keys.WORKERS, 0, -1)
        jobs, worker_ids = await pipe.execute()
        names = [worker_id.decode("utf-8", "replace") for worker_id in worker_ids]
        records = cast(
            list[bytes | None], await self._client.mget([keys.worker(each) for each in names or [""]])
        )
        n_workers = sum(_is_of_queue(record, queue) for record in records if record)
        if n_workers or int(jobs or 0) > 0:
            name, version = keys.model_of(queue)
            raise VersionInUseError(
                f"{name}/{version} is in use: live workers {n_workers}, open jobs {max(0, int(jobs or 0))}; "
                f"`modelyard retire {name}/{version}` ends both"
            )

    async def _forget(self, queue: str) -> None:
        """Remove all that is known of a version, unless an operator took it out of service: that stays in force."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hdel(keys.NUMBERS, queue)
        pipe.hdel(keys.BACKLOG, queue)
        pipe.hdel(keys.LAST_RECORDS, queue)
        pipe.hdel(keys.CONTROLS, SCALE + queue)
        pipe.delete(queue)
        await pipe.execute()


def _is_of_queue(record: bytes, queue: str) -> bool:
    """Whether a record is of a worker of the queue; also if the rest of it cannot be read."""
    try:
        return msgspec.json.decode(record, type=_OfQueue).queue == queue
    except msgspec.DecodeError:
        return False


class _OfQueue(msgspec.Struct):
    queue: str = ""
